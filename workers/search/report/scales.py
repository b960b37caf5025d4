"""Where a value stands on an upright axis, from 0 at the foot to 1 at the top, and its marks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from workers.search.report.words import ScoreText, number_text, value_text
from workers.search_space import Dimension, ListDimension, LogRandInt, LogUniform, RandInt
from workers.search_space import RangeDimension as Range

MOST_NAMED = 16
"""Values of a list that are named on its axis."""
MARKS = 6
"""Marks of an axis of numbers, about."""
NEAREST = 1e-3
"""From what could not be better to the next score, where nothing else is known."""
ROOM = 0.07
"""Share of the scores' axis left free above the best and below the worst."""
NARROW = 0.02
"""Decades left free at each side of equal scores."""


@dataclass(frozen=True)
class Scale:
    """An axis of the parallel coordinates."""

    name: str
    place: Callable[[Any], float]
    marks: Sequence[tuple[float, str]]
    """(place, text), from the foot to the top."""


def scale_of(name: str, dimension: Dimension) -> Scale:
    """The axis of a dimension: logarithmic, linear, or one step a listed value.

    Raises:
        TypeError: A dimension that is neither a list nor a range.
    """
    if isinstance(dimension, ListDimension):
        return _listed(name, dimension.values)
    if not isinstance(dimension, Range):
        raise TypeError(f"{type(dimension).__name__} is neither a ListDimension nor a range")
    if isinstance(dimension, LogUniform | LogRandInt):
        return logarithmic(name, dimension.low, dimension.high)
    return linear(name, dimension.low, dimension.high, whole=isinstance(dimension, RandInt))


def linear(name: str, low: float, high: float, whole: bool = False) -> Scale:
    """Between two different numbers; what lies beyond stands at the end."""
    from matplotlib.ticker import MaxNLocator

    def place(value: Any) -> float:
        return min(max((float(value) - low) / (high - low), 0.0), 1.0)

    found = MaxNLocator(nbins=MARKS, integer=whole, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    slack = 1e-9 * (high - low)
    marks = [float(mark) for mark in found if low - slack <= mark <= high + slack]
    return Scale(name, place, [(place(mark), number_text(mark)) for mark in marks])


def logarithmic(name: str, low: float, high: float) -> Scale:
    """Between two positive numbers: marks at powers of ten, and between them on a short axis."""

    def place(value: Any) -> float:
        share = math.log(float(value) / low) / math.log(high / low)
        return min(max(share, 0.0), 1.0)

    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5)):
        numbers = [step * 10.0**decade for decade in decades for step in steps]
        inside = [number for number in numbers if low * (1 - 1e-9) <= number <= high * (1 + 1e-9)]
        if len(inside) >= 3:
            break
    marks = inside if len(inside) >= 2 else [low, high]
    return Scale(name, place, [(place(mark), number_text(mark)) for mark in marks])


def of_scores(text: ScoreText, scores: Sequence[float]) -> Scale:
    """The axis of scores, on which good ones can be told apart beside hopeless ones.

    Logarithmic in the loss, or in the error where the score is an accuracy: from 90 to 95 % is as
    far as from 98 to 99 %.

    Args:
        text: How scores are written.
        scores: Those to be shown, as they are measured; at least one.
    """
    distances = [_distance(text, score) for score in scores]
    floor = min((distance for distance in distances if distance > 0), default=NEAREST) / 2
    logs = [math.log10(max(distance, floor)) for distance in distances]
    room = ROOM * (max(logs) - min(logs)) or NARROW
    low, high = min(logs) - room, max(logs) + room

    def place(score: Any) -> float:
        log = math.log10(max(_distance(text, score), floor))
        share = min(max((log - low) / (high - low), 0.0), 1.0)
        return 1 - share if text.per_cent else share

    marks = _marks_of_scores(text, 10**low, 10**high)
    if min(distances) <= 0:  # what could not be better has no logarithm: it stands at the floor
        perfect = 1.0 if text.per_cent else 0.0
        marks = [perfect, *(mark for mark in marks if _distance(text, mark) > 1.5 * floor)]
    return Scale(text.label, place, [(place(mark), text.mark(mark)) for mark in marks])


def _distance(text: ScoreText, score: float) -> float:
    """From what could not be better: 0 for a loss, 1 for an accuracy."""
    return 1 - score if text.per_cent else score


def _marks_of_scores(text: ScoreText, low: float, high: float) -> list[float]:
    """Scores between two distances: round ones of each decade, or evenly on a short axis."""
    from matplotlib.ticker import MaxNLocator

    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 2, 3, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        found = [step * 10.0**decade for decade in decades for step in steps]
        inside = [distance for distance in found if low <= distance <= high]
        if len(inside) >= MARKS - 1:
            break
    if len(inside) < MARKS - 2:
        found = [float(each) for each in MaxNLocator(nbins=MARKS).tick_values(low, high)]
        inside = [distance for distance in found if low <= distance <= high]
    return [1 - distance for distance in inside] if text.per_cent else inside


def _listed(name: str, values: Sequence[Any]) -> Scale:
    last = max(len(values) - 1, 1)

    def place(value: Any) -> float:
        return values.index(value) / last if len(values) > 1 else 0.5

    every = math.ceil(len(values) / MOST_NAMED)
    return Scale(name, place, [(place(value), value_text(value)) for value in values[::every]])
