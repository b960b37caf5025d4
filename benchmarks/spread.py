"""Figures of many rounds as one, with how far they lie apart."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles, between which half of the rounds lie."""

    median: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        return (
            f"{format(self.median, spec)} ({format(self.low, spec)} to {format(self.high, spec)})"
        )


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of at least one value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def ratios(of: Sequence[float], to: Sequence[float]) -> Spread:
    """How many times as large the one is, round by round: noise that lasts falls on both alike."""
    return spread([one / other for one, other in zip(of, to, strict=True)])
