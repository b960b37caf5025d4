"""Schedulers: a resumed search has the rungs of the one that was cut off, and none trips."""

from collections.abc import Iterable
from typing import Any

import pytest
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from support.search_books import METRIC, make_spec
from workers.search.schedulers import Medians, recall
from workers.search.trainable import EPOCH
from workers.search.trial import told
from workers.search_specs import SCHEDULERS, SearchSpec
from workers.trials import Report, Trial, TrialState, TrialTable

CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP
ASHA = {"type": "asha", "grace_epochs": 1, "reduction_factor": 2}
MEDIAN = {"type": "median", "grace_epochs": 1, "min_trials": 2}
Curve = tuple[float | None, ...]
CURVES: tuple[Curve, ...] = (
    (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.91, 0.92),
    (0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.81, 0.82),
    (0.6, None, 0.8, 0.9, 0.91, 0.92, 0.93, 0.94),
    (0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.71, 0.72),
    (0.7, 0.75, 0.65, 0.8, 0.86, 0.87, 0.88, 0.89),
)


def make(spec: SearchSpec) -> TrialScheduler:
    _, longest = spec.epochs_range
    return SCHEDULERS.implementation(spec.scheduler.type)(spec.scheduler, spec, longest)


def a_spec(scheduler: dict[str, Any], **changes: Any) -> SearchSpec:
    return make_spec(base={"epochs": 8}, scheduler=scheduler, **changes)


class Live:
    """A scheduler as Tune uses it, and the book that the driver would keep meanwhile."""

    def __init__(self, scheduler: TrialScheduler, sign: float = 1.0, metric: str = METRIC) -> None:
        self.scheduler = scheduler
        self.sign = sign
        self.metric = metric
        self.table = TrialTable()
        self.running: dict[int, TuneTrial] = {}
        self.now = 0.0

    def begin(self, number: int) -> None:
        name = f"{id(self)}_{number}"
        self.running[number] = TuneTrial("t", config={"number": number}, trial_id=name, stub=True)
        self.scheduler.on_trial_add(None, self.running[number])
        self._note(number, TrialState.RUNNING)

    def tell(self, number: int, epoch: int, score: float | None, last: bool = False) -> str:
        """What Tune does with a result; the decision."""
        self.now += 1
        signed = None if score is None else self.sign * score
        metrics: dict[str, float | None] = {self.metric: signed, "train_epoch/accuracy": 0.1}
        report = Report(number=number, epoch=epoch, step=epoch, at=self.now, metrics=metrics)
        self.table.reports.setdefault(number, []).append(report)
        result, trial = told(report), self.running[number]
        decision = STOP if last else self.scheduler.on_trial_result(None, trial, result)
        if decision == STOP:
            self.end(number, TrialState.SUCCEEDED if last else TrialState.PRUNED, result)
        return decision

    def end(self, number: int, state: TrialState, result: dict[str, Any]) -> None:
        self.scheduler.on_trial_complete(None, self.running.pop(number), result)
        self._note(number, state)

    def play(self, curves: Iterable[Curve], first: int = 0) -> dict[int, list[str]]:
        """All at once, epoch by epoch; the decisions."""
        curves = list(curves)
        for number in range(len(curves)):
            self.begin(first + number)
        decisions: dict[int, list[str]] = {}
        for epoch in range(1, 9):
            for number, curve in enumerate(curves, start=first):
                if number in self.running:
                    score = curve[epoch - 1]
                    decision = self.tell(number, epoch, score, last=epoch == len(curve))
                    decisions.setdefault(number, []).append(decision)
        return decisions

    def _note(self, number: int, state: TrialState) -> None:
        self.table.add_trial(
            Trial(number=number, configuration=number, seed=0, values={}, state=state)
        )


def rungs(scheduler: AsyncHyperBandScheduler) -> list[tuple[float, list[float]]]:
    (bracket,) = scheduler._brackets
    return [(milestone, sorted(known.values())) for milestone, known in bracket._rungs]


@pytest.mark.parametrize("metric", ["val/accuracy", "val/total_loss"])
def test_a_resumed_search_has_the_rungs_of_the_one_that_was_cut_off(metric: str) -> None:
    spec = a_spec(ASHA, metric=metric)
    sign = 1.0 if spec.mode == "max" else -1.0
    live = Live(make(spec), sign, metric)
    decisions = live.play(CURVES)
    assert not live.running
    assert decisions[3] == [STOP], "the poorest is ended early"
    assert len(decisions[2]) == 8, "the best is not"
    again = make(spec)
    recall(again, live.table, metric)
    assert rungs(again) == rungs(live.scheduler)
    assert any(len(known) == 5 for _, known in rungs(again))
    later = Live(again, sign, metric)
    new = [(0.2, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9), (0.9,) * 8, (0.61,) * 8]
    expected = live.play(new, first=10)
    assert later.play(new, first=10) == expected
    assert expected[10] == [STOP]


@pytest.mark.parametrize("scheduler", [ASHA, MEDIAN], ids=["asha", "median"])
def test_a_trial_that_goes_on_is_not_judged_again(scheduler: dict[str, Any]) -> None:
    """It was the first, then; now it would be among the last."""
    spec = a_spec(scheduler)
    live = Live(make(spec))
    live.begin(0)
    assert live.tell(0, 1, 0.4) == CONTINUE
    for number, score in enumerate([0.5, 0.6, 0.7], start=1):
        live.begin(number)
        for epoch in (1, 2, 3):
            if number in live.running:
                live.tell(number, epoch, score)
    again = make(spec)
    recall(again, live.table, METRIC)
    later = Live(again)
    later.begin(0)
    assert later.tell(0, 1, 0.4) == CONTINUE
    fresh = Live(again)
    fresh.begin(7)
    assert fresh.tell(7, 1, 0.3) == STOP, "a new one is"
    if isinstance(again, Medians):
        assert [result[EPOCH] for result in again._results[later.running[0]]] == [1]
    else:
        assert len(rungs(again)[-1][1]) == 5, "it has its place once"
    assert later.tell(0, 2, 0.4) == live.tell(0, 2, 0.4) == STOP


def test_asha_ends_the_hopeless_at_its_rungs_alone() -> None:
    live = Live(make(a_spec({**ASHA, "grace_epochs": 2})))
    for number in range(4):
        live.begin(number)
        assert live.tell(number, 1, 0.1 * number) == CONTINUE
    assert live.tell(3, 2, 0.9) == CONTINUE
    assert live.tell(0, 2, 0.1) == STOP


# ---------------------------------------------------------------------------------- median


def test_median_ends_what_is_worse_than_the_others() -> None:
    live = Live(make(a_spec(MEDIAN)))
    decisions = live.play(CURVES)
    assert decisions[3][-1] == STOP
    assert len(decisions[3]) < 8
    assert len(decisions[2]) == 8


def test_median_never_pauses_while_it_knows_few_others() -> None:
    class Controller:
        def get_live_trials(self) -> list[Any]:
            waiting = TuneTrial("waiting", trial_id="w", stub=True)
            waiting.status = TuneTrial.PENDING
            return [waiting]

    scheduler = make(a_spec({**MEDIAN, "min_trials": 5}))
    trial = TuneTrial("trial", trial_id="t", stub=True)
    scheduler.on_trial_add(None, trial)
    for epoch in range(1, 8):
        result = {EPOCH: epoch, METRIC: 0.1}
        assert scheduler.on_trial_result(Controller(), trial, result) == CONTINUE


def test_a_trial_that_measured_nothing_does_not_trip_the_others() -> None:
    """Tune tells of its end with a result that holds neither epoch nor metric."""
    live = Live(make(a_spec(MEDIAN)))
    live.begin(0)
    live.end(0, TrialState.FAILED, {"done": True})
    live.begin(1)
    live.tell(1, 1, 0.5)
    live.end(1, TrialState.FAILED, {"done": True, EPOCH: 1, METRIC: 0.5})
    live.begin(2)
    live.tell(2, 1, None)
    live.end(2, TrialState.FAILED, {"done": True, EPOCH: 1})
    live.play(CURVES, first=10)
    assert not live.running


@pytest.mark.parametrize("scheduler", [ASHA, MEDIAN], ids=["asha", "median"])
def test_what_is_not_a_number_never_reaches_the_scheduler(scheduler: dict[str, Any]) -> None:
    none = Report(number=0, epoch=1, step=9, at=1.0, metrics={METRIC: None, "val/x": 0.5})
    assert told(none).keys() == {"val/x", EPOCH, "report"}
    live = Live(make(a_spec(scheduler)))
    curves = [(0.5, None, 0.5, None, 0.5, 0.5, 0.5, None), *CURVES]
    live.play(curves)
    again = make(a_spec(scheduler))
    recall(again, live.table, METRIC)
    Live(again).play(curves, first=10)


def test_recalling_repeats_no_decision() -> None:
    """They are told in another order than then, and might be decided otherwise."""
    spec = a_spec(MEDIAN)
    live = Live(make(spec))
    for number, score in enumerate([0.1, 0.11, 0.12, 0.9, 0.9, 0.3]):
        live.begin(number)
        for epoch in (1, 2, 3):
            if number in live.running:
                live.tell(number, epoch, score)
    for number in (3, 4, 5):
        live.end(number, TrialState.CANCELLED, {})
    assert len(live.table.reports[5]) == 3, "it was let go on"
    again = make(spec)
    recall(again, live.table, METRIC)
    assert isinstance(again, Medians)
    later = Live(again)
    later.begin(9)
    assert later.tell(9, 1, 0.05) == STOP
    assert [len(results) for results in again._results.values()] == [3, 3, 3, 3, 3, 3, 1]


def test_median_knows_what_a_trial_tells_again_once() -> None:
    """Its process died, and another one goes on."""
    live = Live(make(a_spec(MEDIAN)))
    for number, score in enumerate([0.5, 0.6, 0.7]):
        live.begin(number)
        live.tell(number, 1, score)
        live.tell(number, 2, score)
    for epoch in (1, 2):
        assert live.tell(2, epoch, 0.7) == CONTINUE
    assert live.tell(2, 3, 0.7) == CONTINUE
    assert isinstance(live.scheduler, Medians)
    told_of = live.scheduler._results[live.running[2]]
    assert [result[EPOCH] for result in told_of] == [1, 2, 3]


def test_median_knows_each_last_report_once() -> None:
    live = Live(make(a_spec(MEDIAN)))
    live.play(CURVES)
    assert isinstance(live.scheduler, Medians)
    for results in live.scheduler._results.values():
        epochs = [result[EPOCH] for result in results]
        assert epochs == sorted(set(epochs))


def test_without_a_scheduler_all_run_to_their_end() -> None:
    live = Live(make(a_spec({"type": "none"})))
    assert isinstance(live.scheduler, FIFOScheduler)
    assert all(len(found) == 8 for found in live.play(CURVES).values())
    recall(make(a_spec({"type": "none"})), live.table, METRIC)
