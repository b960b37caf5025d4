"""Schedulers, which end hopeless trials early: one function a member of `SCHEDULERS`."""

import math
from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from workers.search.trainable import EPOCH
from workers.search_specs import AshaConfig, MedianConfig, NoSchedulerConfig, SearchSpec
from workers.trials import TrialTable


def none(config: NoSchedulerConfig, spec: SearchSpec, epochs: int) -> TrialScheduler:
    """Every trial runs to its end."""
    return FIFOScheduler()


def asha(config: AshaConfig, spec: SearchSpec, epochs: int) -> TrialScheduler:
    """Rungs at grace_epochs times the powers of reduction_factor; all trials share them."""
    return Halving(
        time_attr=EPOCH,
        metric=spec.metric,
        mode=spec.mode,
        max_t=max(epochs, config.grace_epochs + 1),
        grace_period=config.grace_epochs,
        reduction_factor=config.reduction_factor,
    )


def median(config: MedianConfig, spec: SearchSpec, epochs: int) -> TrialScheduler:
    """Ends a trial whose best is worse than the median of the others' means so far."""
    return Medians(
        time_attr=EPOCH,
        metric=spec.metric,
        mode=spec.mode,
        grace_period=config.grace_epochs,
        min_samples_required=config.min_trials,
        min_time_slice=math.inf,  # else it pauses trials while it knows too few others
    )


class Halving(AsyncHyperBandScheduler):  # type: ignore[misc]  # Ray has no types
    """Tune's ASHA, where a trial that goes on has the places on the rungs that it had."""

    def on_trial_add(self, controller: object, trial: TuneTrial) -> None:
        """Give it the places under which `recall` noted it; those are not decided again."""
        super().on_trial_add(controller, trial)
        past = _past(trial.config.get("number"))
        for bracket in self._brackets:
            for _, recorded in bracket._rungs:
                if past in recorded:
                    recorded[trial.trial_id] = recorded.pop(past)


class Medians(MedianStoppingRule):  # type: ignore[misc]  # Ray has no types
    """Tune's rule, which looks into every trial's last result for its epoch and metric."""

    def on_trial_add(self, controller: object, trial: TuneTrial) -> None:
        """Have a trial that goes on be the one that `recall` noted."""
        super().on_trial_add(controller, trial)
        past = _past(trial.config.get("number"))
        for known in [each for each in self._results if each.trial_id == past]:
            self._results[trial] = self._results.pop(known)

    def on_trial_result(self, controller: object, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Decide, unless a trial that goes on tells again what is known."""
        if self._knows(trial, result):
            return str(TrialScheduler.CONTINUE)
        return str(super().on_trial_result(controller, trial, result))

    def on_trial_complete(
        self, controller: object, trial: TuneTrial, result: dict[str, Any]
    ) -> None:
        """Take the last result in, unless it is known or, as of a trial that failed, empty."""
        measured = EPOCH in result and self._metric in result
        if measured and not self._knows(trial, result):
            super().on_trial_complete(controller, trial, result)

    def _knows(self, trial: TuneTrial, result: dict[str, Any]) -> bool:
        known = self._results.get(trial)
        return bool(known) and EPOCH in result and known[-1][EPOCH] >= result[EPOCH]


def recall(scheduler: TrialScheduler, table: TrialTable, metric: str) -> None:
    """Have a new scheduler know what the search's trials reported.

    Its rungs are then those of the search that was cut off. Each report comes as a trial's last
    one, of which no scheduler has to decide anything: what was decided then stays decided. Trials
    that go on report again from their first epoch, and that too asks for nothing but what is new.
    """
    reports = [
        report
        for reports in table.reports.values()
        for report in reports
        if report.metrics.get(metric) is not None
    ]
    stubs: dict[int, TuneTrial] = {}
    for report in sorted(reports, key=lambda report: report.at):
        if report.number not in stubs:
            stubs[report.number] = TuneTrial("past", trial_id=_past(report.number), stub=True)
        result = {EPOCH: report.epoch, metric: report.metrics[metric]}
        scheduler.on_trial_add(None, stubs[report.number])
        scheduler.on_trial_complete(None, stubs[report.number], result)


def _past(number: int | None) -> str:
    """What a trial is called before Tune gives it a name in this attempt."""
    return f"past_{number}"
