"""Makes views of searches: of the queue's record and of what the driver wrote of its trials."""

import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from service.api.present import Presenter
from service.api.search_views import (
    ConfigurationView,
    SearchItem,
    SearchLinks,
    SearchView,
    TrialLinks,
    TrialView,
)
from service.api.views import MlflowView
from service.queue.job import Job, State
from workers.attempt import TrialCounts, hint_for
from workers.search_specs import SearchSpec
from workers.trials import Mode, Standing, Trial, TrialState, standings


class SearchPresenter:
    """Presents searches, beside the presenter of jobs."""

    def __init__(self, jobs: Presenter) -> None:
        self._jobs = jobs

    def item(self, job: Job) -> SearchItem:
        """A search as it stands in a list."""
        return SearchItem(**dict(self._jobs.item(job)) | {"links": _links(job.id)})

    def search(self, job: Job, trials: Sequence[Trial]) -> SearchView:
        """All of a search but its trials."""
        assert isinstance(job.spec, SearchSpec)
        board = leaderboard(trials, job.spec.mode)
        return SearchView(
            **dict(self._jobs.job(job)) | {"links": _links(job.id)},
            metric=job.spec.metric,
            mode=job.spec.mode,
            counts=_counts(job, job.spec, trials),
            best=board[0] if board and board[0].rank else None,
        )

    def trial(self, job: Job, trial: Trial) -> TrialView:
        """One trial."""
        mlflow = None
        if trial.run_id is not None and job.experiment_id is not None:
            url = self._jobs.run_url(job.experiment_id, trial.run_id)
            mlflow = MlflowView(experiment_id=job.experiment_id, run_id=trial.run_id, url=url)
        base = f"/v1/searches/{job.id}"
        told = trial.model_dump(exclude={"run_id", "started_at", "ended_at", "shipped"})
        return TrialView(
            **told,
            hint=hint_for(trial.reason),
            started_at=_time(trial.started_at),
            ended_at=_time(trial.ended_at),
            duration_s=duration_s(trial),
            mlflow=mlflow,
            links=TrialLinks(search=base, logs=f"{base}/trials/{trial.number}/logs"),
        )


def settled(job: Job, trials: Iterable[Trial]) -> list[Trial]:
    """The trials as they are, whatever a killed driver could not write down any more."""
    if job.state is State.RUNNING:
        return list(trials)
    state = TrialState.CANCELLED if job.state.terminal else TrialState.WAITING
    return [t if t.state.ended else t.model_copy(update={"state": state}) for t in trials]


def leaderboard(trials: Iterable[Trial], mode: Mode) -> list[ConfigurationView]:
    """Configurations, the best first."""
    return [_configuration(n, s, mode) for n, s in enumerate(standings(trials, mode), start=1)]


def duration_s(trial: Trial) -> float | None:
    """Seconds from the trial's start to its end, or to now."""
    end = time.time() if trial.state is TrialState.RUNNING else trial.ended_at
    if trial.started_at is None or end is None:
        return None
    return round(max(0.0, end - trial.started_at), 1)


def _configuration(place: int, standing: Standing, mode: Mode) -> ConfigurationView:
    best = standing.best(mode)
    states = [trial.state for trial in standing.trials]
    return ConfigurationView(
        rank=None if standing.mean is None else place,
        configuration=standing.configuration,
        values=standing.values,
        mean=standing.mean,
        deviation=standing.deviation,
        trials=[trial.number for trial in standing.trials],
        scored=len(standing.scored),
        states={state: states.count(state) for state in TrialState if state in states},
        epoch=max(trial.epoch for trial in standing.trials),
        epochs=max(trial.epochs for trial in standing.trials),
        best_trial=None if best is None else best.number,
    )


def _counts(job: Job, spec: SearchSpec, trials: Sequence[Trial]) -> TrialCounts:
    """Trials by state; before the search's end those that are not chosen yet wait too."""
    states = [trial.state for trial in trials]
    total = max(spec.configurations * spec.seeds, len(trials))
    chosen = {state.value.lower(): states.count(state) for state in TrialState}
    if not job.state.terminal:
        chosen["waiting"] += total - len(trials)
    return TrialCounts(total=total, **chosen)


def _links(search: str) -> SearchLinks:
    base, job = f"/v1/searches/{search}", f"/v1/jobs/{search}"
    return SearchLinks(
        self=base,
        cancel=f"{base}/cancel",
        pause=f"{base}/pause",
        resume=f"{base}/resume",
        retry=f"{job}/retry",
        logs=f"{job}/logs",
        events=f"{job}/events",
        attempts=f"{job}/attempts",
        search=base,
        trials=f"{base}/trials",
        configurations=f"{base}/configurations",
        retry_failed=f"{base}/retry-failed",
        promote=f"{base}/promote",
    )


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
