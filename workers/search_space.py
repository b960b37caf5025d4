"""The space of a search: fields of a training specification, and the values each may take.

The control plane validates and previews with it, and the search's driver draws from it, so both
know the same configurations.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from random import Random
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, model_validator

from capsmodel.config import Config
from capsmodel.open_set import Member, OpenSet

FieldPath = Annotated[
    str, Field(max_length=200, pattern=r"^[a-z_][a-z0-9_]*(\.([a-z_][a-z0-9_]*|[0-9]+))*$")
]
"""A field of a TrainSpec by its names, as `model.routing.iterations`."""
Assignment = Mapping[str, Any]
"""A value for every path."""

MAX_CORNERS = 256
LARGEST = 1e15
"""Bound of every range: whole numbers up to here are exact as floating point."""
MAX_STEPS = 1_000_000
"""Most multiples of q in a range."""


class Dimension(Config, ABC):
    """Base of what a field may take."""

    type: str

    @abstractmethod
    def corners(self) -> Sequence[Any]:
        """The extreme values, or all of a list: what must be valid wherever the search goes."""

    @abstractmethod
    def draw(self, chance: Random) -> Any:
        """A value as the searchers draw it."""

    @property
    def size(self) -> float:
        """How many values there are; infinite for real numbers."""
        return math.inf


class ListDimension(Dimension):
    """Base of the dimensions that list their values."""

    values: Annotated[
        tuple[JsonValue, ...],
        Field(max_length=100, strict=False, json_schema_extra={"minItems": 1}),
    ]
    """Numbers, words, or whole objects such as `{"type": "uniform"}`."""

    @model_validator(mode="after")
    def _finite_and_each_once(self) -> Self:
        if not self.values:
            raise ValueError("values are empty: list 1 to 100 of them")
        for index, value in enumerate(self.values):
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"the value {value} is no number to compute with: leave it out")
            if value in self.values[:index]:
                raise ValueError(f"the value {value!r} stands twice: name each once")
        return self

    def corners(self) -> Sequence[Any]:
        """All of them."""
        return self.values

    def draw(self, chance: Random) -> Any:
        """Each as often as any other."""
        return chance.choice(self.values)

    @property
    def size(self) -> float:
        """As many as are listed."""
        return len(self.values)


class Choice(ListDimension):
    """One of the values, drawn."""

    type: Literal["choice"] = "choice"


class Grid(ListDimension):
    """Each of the values, in combination with all others."""

    type: Literal["grid"] = "grid"


class RangeDimension(Dimension):
    """Base of the dimensions between two numbers."""

    low: float = Field(ge=-LARGEST, le=LARGEST)
    high: float = Field(ge=-LARGEST, le=LARGEST)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(
                f"low {self.low:.12g} is larger than high {self.high:.12g}: exchange them"
            )
        if self.low == self.high:
            raise ValueError(
                f"low and high are both {self.low:.12g}, which leaves nothing to search: widen the "
                "range, or set the field in the base"
            )
        return self

    def corners(self) -> Sequence[Any]:
        """Both ends."""
        return (self.low, self.high)


class Uniform(RangeDimension):
    """A real number between low and high."""

    type: Literal["uniform"] = "uniform"

    def draw(self, chance: Random) -> float:
        """Each as likely as any other."""
        return chance.uniform(self.low, self.high)


class LogUniform(RangeDimension):
    """A real number between low and high, whose logarithm is uniform."""

    type: Literal["loguniform"] = "loguniform"
    low: float = Field(ge=-LARGEST, le=LARGEST, json_schema_extra={"exclusiveMinimum": 0})

    @model_validator(mode="after")
    def _has_a_logarithm(self) -> Self:
        check_logarithm(self.type, self.low, instead="uniform")
        return self

    def draw(self, chance: Random) -> float:
        """Each order of magnitude as likely as any other."""
        value = math.exp(chance.uniform(math.log(self.low), math.log(self.high)))
        return min(max(value, self.low), self.high)


class QUniform(RangeDimension):
    """A multiple of q between low and high; a whole number where q, low and high are whole."""

    type: Literal["quniform"] = "quniform"
    q: float = Field(gt=0, le=LARGEST)
    """Distance of neighbouring values; low and high are multiples of it."""

    @model_validator(mode="after")
    def _multiples(self) -> Self:
        if max(abs(self.low), abs(self.high)) > MAX_STEPS * self.q:
            raise ValueError(
                f"q {self.q:.12g} is too fine for {self.low:.12g} to {self.high:.12g}: accepted "
                f"are up to {MAX_STEPS:,} times q; for a range as fine as that write `uniform`"
            )
        for name in ("low", "high"):
            value = getattr(self, name)
            if not math.isclose(value / self.q, round(value / self.q), abs_tol=1e-6):
                raise ValueError(
                    f"{name} {value:.12g} is no multiple of q {self.q:.12g}: the nearest is "
                    f"{self.nearest(value)}"
                )
        return self

    def nearest(self, value: float) -> int | float:
        """The multiple of q next to a number, free of roundings: 0.3, not 0.30000000000000004."""
        multiple = round(value / self.q) * self.q
        if self._whole:
            return round(multiple)
        return float(f"{multiple:.12g}")

    def corners(self) -> Sequence[Any]:
        """Both ends."""
        return (self.nearest(self.low), self.nearest(self.high))

    def draw(self, chance: Random) -> int | float:
        """Each multiple as likely as any other."""
        steps = chance.randint(round(self.low / self.q), round(self.high / self.q))
        return self.nearest(steps * self.q)

    @property
    def _whole(self) -> bool:
        return all(number.is_integer() for number in (self.low, self.high, self.q))

    @property
    def size(self) -> float:
        """Multiples from low to high."""
        return round(self.high / self.q) - round(self.low / self.q) + 1


class RandInt(RangeDimension):
    """A whole number from low to high, both included."""

    type: Literal["randint"] = "randint"
    low: int = Field(ge=-int(LARGEST), le=int(LARGEST))
    high: int = Field(ge=-int(LARGEST), le=int(LARGEST))

    def draw(self, chance: Random) -> int:
        """Each as likely as any other."""
        return chance.randint(self.low, self.high)

    @property
    def size(self) -> float:
        """Whole numbers from low to high."""
        return self.high - self.low + 1


class LogRandInt(RandInt):
    """A whole number from low to high, both included, whose logarithm is uniform."""

    type: Literal["lograndint"] = "lograndint"  # type: ignore[assignment]
    low: int = Field(ge=-int(LARGEST), le=int(LARGEST), json_schema_extra={"exclusiveMinimum": 0})

    @model_validator(mode="after")
    def _has_a_logarithm(self) -> Self:
        check_logarithm(self.type, self.low, instead="randint")
        return self

    def draw(self, chance: Random) -> int:
        """Each order of magnitude as likely as any other."""
        value = math.exp(chance.uniform(math.log(self.low), math.log(self.high + 1)))
        return min(int(value), self.high)


DIMENSIONS = OpenSet(
    "workers.dimensions",
    default="choice",
    members={
        "choice": Member(Choice, "workers.search.distributions:choice"),
        "grid": Member(Grid, "workers.search.distributions:grid"),
        "uniform": Member(Uniform, "workers.search.distributions:uniform"),
        "loguniform": Member(LogUniform, "workers.search.distributions:loguniform"),
        "quniform": Member(QUniform, "workers.search.distributions:quniform"),
        "randint": Member(RandInt, "workers.search.distributions:randint"),
        "lograndint": Member(LogRandInt, "workers.search.distributions:lograndint"),
    },
)


def check_logarithm(kind: str, low: float, instead: str) -> None:
    """Refuse a logarithmic range that begins at 0 or below with a ValueError."""
    if low <= 0:
        raise ValueError(
            f"low {low:.12g} of {kind} has no logarithm: accepted is more than 0; write a small "
            f"number, or `{instead}`"
        )


def corners(space: Mapping[str, Dimension]) -> Iterator[dict[str, Any]]:
    """Extreme assignments.

    All combinations of the dimensions' corners; where those are more than `MAX_CORNERS`, each
    corner once, beside the first corners of the others.
    """
    values = {path: dimension.corners() for path, dimension in space.items()}
    if math.prod(len(each) for each in values.values()) <= MAX_CORNERS:
        for combination in product(*values.values()):
            yield dict(zip(values, combination, strict=True))
        return
    first = {path: each[0] for path, each in values.items()}
    yield first
    for path, each in values.items():
        for value in each[1:]:
            yield {**first, path: value}


def draw(space: Mapping[str, Dimension], seed: int, number: int) -> dict[str, Any]:
    """A random assignment, which `seed` and `number` decide.

    Every path has random numbers of its own, seeded by its name: the order of the paths changes
    nothing, and one dimension more leaves the other values as they were.
    """
    return {
        path: dimension.draw(Random(f"{seed}/{number}/{path}")) for path, dimension in space.items()
    }


def combinations(space: Mapping[str, ListDimension]) -> int:
    """How many assignments the listed values make."""
    return math.prod(len(dimension.values) for dimension in space.values())


def combination(space: Mapping[str, ListDimension], number: int) -> dict[str, Any]:
    """An assignment of listed values by its number, from 0.

    The paths are taken in alphabetical order, the last one varies fastest, and values come as they
    are listed.
    """
    found = {}
    for path in sorted(space, reverse=True):
        values = space[path].values
        number, place = divmod(number, len(values))
        found[path] = values[place]
    return found


def overlap(path: str, place: str) -> bool:
    """Whether one of two places in a document holds the other, or they are the same."""
    return f"{path}.".startswith(f"{place}.") or f"{place}.".startswith(f"{path}.")


def apply(document: Mapping[str, Any], assignment: Assignment) -> dict[str, Any]:
    """A specification's document with the assignment's values in it.

    Parents are set before what lies below them, and a `type` before the other settings beside it.
    A new `type` takes its place alone: the settings of the other type would not fit it.

    Args:
        document: JSON of a specification.
        assignment: A value for each path.

    Raises:
        KeyError: A path leads through something that holds no fields; its argument is the path.
    """
    changed: dict[str, Any] = _copied(document)
    for path in sorted(assignment, key=_order):
        *parents, last = path.split(".")
        place: Any = changed
        for part in parents:
            place = _below(place, part, path)
        _set(place, last, _copied(assignment[path]), path)
    return changed


def _order(path: str) -> tuple[int, bool]:
    return path.count("."), path.rpartition(".")[2] != "type"


def _set(place: Any, name: str, value: Any, path: str) -> None:
    if isinstance(place, list) and name.isdecimal() and int(name) < len(place):
        place[int(name)] = value
        return
    if not isinstance(place, dict):
        raise KeyError(path)
    if name == "type" and place.get("type") != value:
        place.clear()
    place[name] = value


def _below(place: Any, part: str, path: str) -> Any:
    if isinstance(place, dict):
        if place.get(part) is None:
            place[part] = {}
        return place[part]
    if isinstance(place, list) and part.isdecimal() and int(part) < len(place):
        return place[int(part)]
    raise KeyError(path)


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(item) for item in value]
    return value
