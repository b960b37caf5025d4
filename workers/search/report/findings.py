"""What all reports of a search start from."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TypeGuard

from workers.search.report.words import ScoreText, short_names, value_text
from workers.search_specs import SearchSpec
from workers.trials import Report, Standing, Trial, TrialState, TrialTable, standings


@dataclass(frozen=True)
class Findings:
    """A search and its trials so far."""

    spec: SearchSpec
    table: TrialTable

    @cached_property
    def trials(self) -> list[Trial]:
        """By number; a score that is not finite is none."""
        return [_finite(trial) for _, trial in sorted(self.table.trials.items())]

    @cached_property
    def standings(self) -> list[Standing]:
        """All configurations, the best first."""
        return standings(self.trials, self.spec.mode)

    @cached_property
    def scored(self) -> list[Standing]:
        """Configurations that have a score, the best first."""
        return [standing for standing in self.standings if standing.mean is not None]

    @cached_property
    def names(self) -> dict[str, str]:
        """Short names of the space's paths."""
        return short_names(self.spec.space)

    @cached_property
    def score(self) -> ScoreText:
        """How scores are written."""
        return ScoreText(self.spec.metric)

    @cached_property
    def importances(self) -> dict[str, float]:
        """How much each parameter explains, the largest first; for a picture and for a page."""
        from workers.search.report.importances import importances

        return importances(self)

    def better(self, one: float, other: float) -> bool:
        """Whether one score is better than another."""
        return one > other if self.spec.mode == "max" else one < other

    def values_text(self, standing: Standing) -> str:
        """`routing.iterations = 3, loss.m_minus = 0.1`."""
        pairs = (
            f"{self.names[path]} = {value_text(standing.values[path])}"
            for path in self.spec.space
            if path in standing.values
        )
        return ", ".join(pairs)

    def counts_text(self) -> str:
        """`12 trials: 5 succeeded, 7 pruned`."""
        numbers = {state: self.table.count(state) for state in TrialState}
        told = ", ".join(f"{number} {state.lower()}" for state, number in numbers.items() if number)
        total = len(self.trials)
        trials = "1 trial" if total == 1 else f"{total} trials"
        return f"{trials}: {told}" if told else trials

    def curve(self, trial: Trial) -> list[tuple[int, float]]:
        """(completed epochs, the search's metric), in order; without what is not finite."""
        reports: list[Report] = self.table.reports.get(trial.number, [])
        points = ((report.epoch, report.metrics.get(self.spec.metric)) for report in reports)
        return [(epoch, value) for epoch, value in points if _is_finite(value)]


def _is_finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _finite(trial: Trial) -> Trial:
    if _is_finite(trial.score):
        return trial
    return trial.model_copy(update={"score": None})


def seconds(trial: Trial) -> float | None:
    """From its start to its end."""
    if trial.started_at is None or trial.ended_at is None:
        return None
    return trial.ended_at - trial.started_at
