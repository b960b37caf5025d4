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
    return AsyncHyperBandScheduler(
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


class Medians(MedianStoppingRule):  # type: ignore[misc]  # Ray has no types
    """Tune's rule, which looks into every trial's last result for its epoch and metric."""

    def on_trial_complete(
        self, controller: object, trial: TuneTrial, result: dict[str, Any]
    ) -> None:
        """Take the last result in, unless it is known or, as of a trial that failed, empty."""
        if EPOCH not in result or self._metric not in result:
            return
        known = self._results.get(trial)
        if not known or known[-1][EPOCH] < result[EPOCH]:
            super().on_trial_complete(controller, trial, result)


def recall(scheduler: TrialScheduler, table: TrialTable, metric: str) -> None:
    """Have a new scheduler know what the search's ended trials reported.

    Its rungs are then those of the search that was cut off. Trials that go on report again by
    themselves. Each report comes as a trial's last one, of which no scheduler has to decide
    anything: what was decided then is not for it to repeat, since it knows less now.
    """
    reports = [
        report
        for number, reports in table.reports.items()
        for report in reports
        if table.trials[number].state.ended and report.metrics.get(metric) is not None
    ]
    stubs: dict[int, TuneTrial] = {}
    for report in sorted(reports, key=lambda report: report.at):
        if report.number not in stubs:
            stubs[report.number] = TuneTrial("past", trial_id=f"past_{report.number}", stub=True)
        result = {EPOCH: report.epoch, metric: report.metrics[metric]}
        scheduler.on_trial_add(None, stubs[report.number])
        scheduler.on_trial_complete(None, stubs[report.number], result)
