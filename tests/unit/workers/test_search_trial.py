"""A trial as its actor performs it: told epoch by epoch, whatever cuts it off in between."""

import json
import multiprocessing
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from capsmodel.checkpoint import CheckpointFolder, CheckpointInfo, load_checkpoint
from capsmodel.training import Trainer
from support.killable_trial import perform_and_die
from support.search_books import METRIC, RATE, make_attempt, make_spec
from workers import stop as stop_module
from workers.attempt import AttemptFolder, Reason, Result
from workers.search import trial as module
from workers.search.trainable import EPOCH, TrialOrder, WorkersLostError
from workers.search.trial import perform
from workers.search_specs import SearchSpec
from workers.spool import points_from
from workers.trials import Report, all_reports, read_reports, reports_file, trial_folder

EPOCHS = 3
BASE: dict[str, Any] = {
    "dataset": {"type": "mnist-5k", "per_class": 20, "validation_fraction": 0.02},
    "batch_size": 32,
    "epochs": EPOCHS,
    "optimizer": {"learning_rate": 0.003},
}
DEEP = {"type": "cnn", "channels": [4, 4, 4], "kernels": [3, 3, 3], "hidden": [8, 8, 8]}
"""Whose numbers overflow at a learning rate of a million."""
Told = dict[str, Any]


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(stop_module, "LOOK_EVERY_S", 0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


class Trial:
    """A trial of search `s1` and all that it tells."""

    def __init__(
        self, storage: Path, spec: SearchSpec | None = None, rate: float = 0.03, number: int = 0
    ) -> None:
        self.storage = storage
        self.spec = spec or make_spec(base=BASE)
        self.values = {RATE: rate}
        self.number = number
        self.attempt = 1
        self.told: list[Told] = []
        self.results: list[Result | None] = []
        """What the folder held while each report was told."""

    @property
    def search(self) -> AttemptFolder:
        return AttemptFolder(self.storage, "s1", self.attempt)

    @property
    def folder(self) -> AttemptFolder:
        return trial_folder(self.storage, "s1", self.number, self.attempt)

    def order(self) -> TrialOrder:
        if not (self.search.path / "attempt.json").exists():
            self.search.write_attempt(make_attempt(self.spec, self.attempt))
        return TrialOrder(
            search="s1", attempt=self.attempt, number=self.number, seed=0, values=self.values
        )

    def perform(self, act: Callable[[Told], Any] = lambda report: None) -> list[Told]:
        """Perform it; what it tells, `act` hears of afterwards."""
        told: list[Told] = []

        def tell(report: Told) -> None:
            told.append(report)
            self.told.append(report)
            self.results.append(self.folder.read_result())
            act(report)

        perform(self.order(), self.storage, tell)
        return told

    def result(self) -> Result:
        result = self.folder.read_result()
        assert result is not None
        return result

    def points(self) -> Counter[tuple[str, int]]:
        """Metrics of all attempts."""
        files = [each.metrics for each in [*self.folder.earlier(), self.folder]]
        return Counter((p.name, p.step) for file in files for p in points_from(file, 0)[0])


def end_at(epoch: int, error: type[BaseException] = SystemExit) -> Callable[[Told], None]:
    """As the scheduler does: the report does not return."""

    def act(report: Told) -> None:
        if report[EPOCH] == epoch:
            raise error

    return act


def bare(reports: list[Report]) -> list[Any]:
    """Without what a clock decides."""
    return [
        (r.epoch, r.step, {k: v for k, v in r.metrics.items() if not k.startswith("speed/")})
        for r in reports
    ]


def epochs(told: list[Told]) -> list[tuple[int, bool]]:
    return [(report[EPOCH], report.get("done", False)) for report in told]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """Never interrupted."""
    trial = Trial(tmp_path_factory.mktemp("whole"))
    trial.perform()
    return trial


# ------------------------------------------------------------------------------ undisturbed


def test_each_epoch_is_told_once_and_the_last_one_after_the_result(whole: Trial) -> None:
    assert epochs(whole.told) == [(1, False), (2, False), (3, True)]
    assert whole.results[:2] == [None, None]
    assert whole.results[2] == whole.result()
    reports = read_reports(whole.folder)
    assert [json.loads(told["report"]) for told in whole.told] == [
        json.loads(report.model_dump_json()) for report in reports
    ]
    assert whole.told[0][METRIC] == reports[0].metrics[METRIC]


def test_a_trial_leaves_its_best_weights_and_never_reads_the_test_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    evaluate = Trainer._evaluate

    def noted(self: Trainer, split: Any, **given: Any) -> Any:
        read.append(split)
        return evaluate(self, split, **given)

    monkeypatch.setattr(Trainer, "_evaluate", noted)
    trial = Trial(tmp_path)
    trial.perform()
    result = trial.result()
    assert set(read) == {"validation"}
    assert (result.outcome, result.reason) == ("succeeded", Reason.COMPLETED)
    assert not any("test" in name for report in trial.told for name in report)
    best = result.checkpoints["best"]
    scores = [report[METRIC] for report in trial.told]
    assert scores[best.epoch - 1] == max(scores)
    assert load_checkpoint(tmp_path / best.path, best.sha256)
    assert [path.name for path in trial.folder.checkpoints.glob("*.pt")] == ["best.pt"]
    assert not trial.folder.artifacts.exists()


def test_early_stopping_ends_a_trial_with_its_last_report(tmp_path: Path) -> None:
    base = {**BASE, "epochs": 8, "early_stopping": {"patience": 1}}
    base["optimizer"] = {"learning_rate": 1e-9}
    trial = Trial(tmp_path, make_spec(base=base), rate=1e-9)
    trial.perform()
    assert epochs(trial.told) == [(1, False), (2, True)]
    assert trial.result().evidence == "2 epochs (early-stopping)"


def test_two_trials_load_the_data_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    load = module.load_dataset
    monkeypatch.setattr(module, "load_dataset", lambda config: loaded.append(1) or load(config))
    module._loaded.cache_clear()
    for number in (0, 1):
        Trial(tmp_path, rate=0.001 * (1 + number), number=number).perform()
    assert len(loaded) == 1
    dataset = BASE["dataset"] | {"max_shift": 1}
    other = Trial(tmp_path / "other", make_spec(base={**BASE, "dataset": dataset, "epochs": 1}))
    other.perform()
    assert len(loaded) == 2, "another data set is another"


# ----------------------------------------------------------------------------- interrupted


@pytest.mark.parametrize("epoch", [1, 2])
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("attempt", [1, 2], ids=["same attempt", "next attempt"])
def test_a_trial_cut_off_at_a_report_goes_on_as_if_it_never_was(
    tmp_path: Path, whole: Trial, epoch: int, error: type[BaseException], attempt: int
) -> None:
    trial = Trial(tmp_path)
    with pytest.raises(error):
        trial.perform(end_at(epoch, error))
    assert trial.folder.read_result() is None
    trial.attempt = attempt
    again = trial.perform()
    assert epochs(again) == [(1, False), (2, False), (3, True)]
    assert bare(all_reports(trial.folder)) == bare(all_reports(whole.folder))
    assert set(trial.points().values()) == {1}
    assert trial.points().keys() >= {(METRIC, report.step) for report in all_reports(whole.folder)}
    best, expected = trial.result().checkpoints["best"], whole.result().checkpoints["best"]
    assert (best.epoch, best.step) == (expected.epoch, expected.step)


@pytest.mark.parametrize(
    "name", ["save", "mark_best", "keep"], ids=["saving", "marking the best", "clearing up"]
)
@pytest.mark.parametrize("time", [1, 2])
def test_a_trial_cut_off_between_two_files_goes_on_as_if_it_never_was(
    tmp_path: Path, whole: Trial, monkeypatch: pytest.MonkeyPatch, name: str, time: int
) -> None:
    calls = []
    method = getattr(CheckpointFolder, name)

    def broken(self: CheckpointFolder, *given: Any, **named: Any) -> CheckpointInfo:
        calls.append(1)
        if len(calls) == (1 if name == "keep" else time):
            if time == 2:
                method(self, *given, **named)
            raise KeyboardInterrupt
        found: CheckpointInfo = method(self, *given, **named)
        return found

    monkeypatch.setattr(CheckpointFolder, name, broken)
    trial = Trial(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trial.perform()
    monkeypatch.undo()
    trial.perform()
    assert bare(all_reports(trial.folder)) == bare(all_reports(whole.folder))
    assert set(trial.points().values()) == {1}
    best, expected = trial.result().checkpoints["best"], whole.result().checkpoints["best"]
    assert (best.epoch, best.step) == (expected.epoch, expected.step)


def test_a_best_checkpoint_that_was_not_marked_is_marked_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best epoch is the very one in which the process died, and none that follows is better."""

    def die(self: CheckpointFolder, info: CheckpointInfo) -> CheckpointInfo:
        raise KeyboardInterrupt

    trial = Trial(tmp_path, rate=1e-9)
    monkeypatch.setattr(CheckpointFolder, "mark_best", die)
    with pytest.raises(KeyboardInterrupt):
        trial.perform()
    monkeypatch.undo()
    trial.perform()
    assert trial.result().checkpoints["best"].epoch == 1


@pytest.fixture(scope="module")
def processes() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["workers.search.trial", "capsmodel.capsnet", "torch._dynamo"])
    return context


@pytest.mark.slow
def test_a_killed_process_costs_no_more_than_an_epoch(
    tmp_path: Path, whole: Trial, processes: Any
) -> None:
    trial = Trial(tmp_path)
    process = processes.Process(target=perform_and_die, args=(trial.order(), tmp_path, 2))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    with reports_file(trial.folder).open("a") as file:
        file.write('\n{"number": 0, "ep')  # as a kill would tear it
    with trial.folder.metrics.open("a") as file:
        file.write('{"t": 3, "ste')
    assert epochs(trial.perform()) == [(1, False), (2, False), (3, True)]
    assert bare(all_reports(trial.folder)) == bare(all_reports(whole.folder))
    assert set(trial.points().values()) == {1}


def test_a_trial_that_died_with_its_work_done_tells_of_it(tmp_path: Path, whole: Trial) -> None:
    trial = Trial(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trial.perform(end_at(EPOCHS, KeyboardInterrupt))
    assert trial.result().outcome == "succeeded"
    assert epochs(trial.perform())[-1] == (3, True)
    assert bare(all_reports(trial.folder)) == bare(all_reports(whole.folder))


# --------------------------------------------------------------------------------- stopped


@pytest.mark.parametrize(
    ("ask", "outcome", "reason"),
    [
        (lambda t: t.search.request_stop("pause"), "paused", Reason.PAUSED),
        (lambda t: t.search.request_stop("cancel"), "cancelled", Reason.CANCELLED),
        (lambda t: t.folder.request_stop("cancel"), "cancelled", Reason.CANCELLED),
        (lambda t: t.search.request_leave(), "interrupted", Reason.INTERRUPTED),
        (lambda t: t.folder.request_leave(), "interrupted", Reason.INTERRUPTED),
        (
            lambda t: AttemptFolder(t.storage, "s1", 2).path.mkdir(),
            "interrupted",
            Reason.INTERRUPTED,
        ),
    ],
    ids=["search paused", "search cancelled", "trial cancelled", "leave", "own leave", "later"],
)
def test_a_trial_that_is_asked_to_leave_saves_and_leaves(
    tmp_path: Path, whole: Trial, ask: Callable[[Trial], Any], outcome: str, reason: Reason
) -> None:
    trial = Trial(tmp_path)
    told = trial.perform(lambda report: ask(trial))
    assert epochs(told) == [(1, False)]
    result = trial.result()
    assert (result.outcome, result.reason) == (outcome, reason)
    assert result.step == whole_steps(whole) // EPOCHS + 1, "one step after it was asked"
    trial.attempt = 2
    assert epochs(trial.perform()) == [(1, False), (2, False), (3, True)]
    assert bare(all_reports(trial.folder)) == bare(all_reports(whole.folder))
    assert set(trial.points().values()) == {1}


def whole_steps(whole: Trial) -> int:
    return whole.result().step


def test_a_trial_that_runs_too_long_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Trial(tmp_path, make_spec(base={**BASE, "max_runtime_s": 1, "epochs": 10_000}))
    trial.perform()
    result = trial.result()
    assert (result.outcome, result.reason) == ("failed", Reason.DEADLINE)


# ---------------------------------------------------------------------------------- failed


def test_a_training_that_diverges_says_so(tmp_path: Path) -> None:
    spec = make_spec(
        base={**BASE, "model": DEEP, "loss": {"type": "cross-entropy"}},
        space={RATE: {"type": "loguniform", "low": 1e-4, "high": 1e6}},
    )
    trial = Trial(tmp_path, spec, rate=1e6)
    told = trial.perform()
    result = trial.result()
    assert (result.outcome, result.reason) == ("failed", Reason.DIVERGED)
    assert result.evidence.startswith("DivergedError: ")
    assert not any(done for _, done in epochs(told))
    Trial(tmp_path, spec, rate=0.003, number=1).perform()
    good = trial_folder(tmp_path, "s1", 1, 1).read_result()
    assert good is not None
    assert good.outcome == "succeeded", "the process is good for the next one"


def test_an_error_becomes_the_trials_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*given: Any) -> Any:
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(module, "dataset_on", broken)
    trial = Trial(tmp_path)
    assert trial.perform() == []
    result = trial.result()
    assert (result.outcome, result.reason) == ("failed", Reason.ERROR)
    assert result.evidence == "ZeroDivisionError: a mistake"
    assert "Traceback" in capfd.readouterr().err


def test_values_that_fit_together_nowhere_are_the_trials_failure(tmp_path: Path) -> None:
    trial = Trial(tmp_path, rate=-1.0)
    trial.perform()
    assert trial.result().reason is Reason.ERROR


def test_a_lost_worker_is_tunes_business(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*given: Any) -> Any:
        raise WorkersLostError("worker 1 died")

    monkeypatch.setattr(module, "train_alone", lost)
    trial = Trial(tmp_path)
    with pytest.raises(WorkersLostError):
        trial.perform()
    assert trial.folder.read_result() is None


@pytest.mark.parametrize("metric", ["val/accuracy", "val/total_loss", "val/reconstruction_loss"])
@pytest.mark.parametrize("cut_at", [None, 1, 2])
def test_the_weights_that_stay_are_those_of_the_score(
    tmp_path: Path, metric: str, cut_at: int | None
) -> None:
    trial = Trial(tmp_path, make_spec(base=BASE | {"epochs": 5}, metric=metric))
    if cut_at is not None:
        with pytest.raises(SystemExit):
            trial.perform(end_at(cut_at))
        trial.attempt = 2
    trial.perform()
    scores = {report.epoch: report.metrics[metric] or 0.0 for report in all_reports(trial.folder)}
    pick = max if trial.spec.mode == "max" else min
    best = pick(sorted(scores), key=lambda epoch: scores[epoch])
    assert trial.result().checkpoints["best"].epoch == best
