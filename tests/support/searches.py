"""A search of five configurations, and the trials that its driver would have written."""

from typing import Any

from service.queue.job import Job
from service.queue.store import NewEvent, Store
from workers.attempt import AttemptFolder, Reason
from workers.trials import Report, Trial, TrialState, TrialTable, TrialWriter, trials_file

RATES = (0.001, 0.002, 0.003, 0.004, 0.005)

SEARCH: dict[str, Any] = {
    "name": "rates",
    "experiment": "searches",
    "base": {"dataset": {"type": "mnist-5k"}, "epochs": 4, "seed": 7},
    "space": {
        "optimizer.learning_rate": {"type": "grid", "values": list(RATES)},
    },
    "algorithm": {"type": "grid"},
    "seeds": 2,
}
"""Ten trials."""

SCORES: tuple[float | None, ...] = (0.90, 0.92, 0.97, 0.95, None, 0.99, 0.5, None, None, None)
"""Of the trials 0 to 9; two after another are of one configuration."""
STATES = (
    TrialState.SUCCEEDED,
    TrialState.SUCCEEDED,
    TrialState.SUCCEEDED,
    TrialState.SUCCEEDED,
    TrialState.FAILED,
    TrialState.FAILED,
    TrialState.PRUNED,
    TrialState.RUNNING,
)
"""Of those that were chosen; the last configuration was not yet."""


def trials() -> list[Trial]:
    """As the driver knows them: configuration 1 (trials 2 and 3) is the best."""
    return [
        Trial(
            number=number,
            configuration=number // 2,
            seed=number % 2,
            values={"optimizer.learning_rate": RATES[number // 2]},
            state=state,
            score=SCORES[number],
            score_epoch=None if SCORES[number] is None else 2,
            epoch=0 if SCORES[number] is None else 3 - number % 2,
            epochs=4,
            reason=Reason.DIVERGED if state is TrialState.FAILED else None,
            evidence="loss is nan" if state is TrialState.FAILED else "",
            run_id=f"run-{number}",
            started_at=1000.0 + number,
            ended_at=1000.0 + 3 * number + 10 if state.ended else None,
        )
        for number, state in enumerate(STATES)
    ]


def start(store: Store, search_id: str) -> Job:
    """An attempt of the search, that Ray has."""
    job = store.start_attempt(store.get(search_id), NewEvent("started", "started"))
    job = store.update(job, attempt={"submitted_at": store.now()}, experiment_id="1", run_id="p")
    return job


def write_trials(folder: AttemptFolder, rows: list[Trial] | None = None) -> TrialWriter:
    """Write them as the driver does, with a report each."""
    writer = TrialWriter(trials_file(folder), TrialTable())
    for trial in trials() if rows is None else rows:
        writer.trial(trial.model_copy(update={"state": TrialState.WAITING, "score": None}))
        writer.report(Report(number=trial.number, epoch=1, step=9, at=1.0, metrics={"a": 1.0}))
        writer.trial(trial)
    return writer
