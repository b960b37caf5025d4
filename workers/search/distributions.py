"""Dimensions of a space as Optuna knows them: one function a kind, named in `DIMENSIONS`."""

import json
from collections.abc import Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from workers.search_space import (
    DIMENSIONS,
    Choice,
    Dimension,
    Grid,
    ListDimension,
    LogRandInt,
    LogUniform,
    QUniform,
    RandInt,
    Uniform,
)


def choice(config: Choice) -> BaseDistribution:
    """One of the values."""
    return CategoricalDistribution([_plain(value) for value in config.values])


def grid(config: Grid) -> BaseDistribution:
    """One of the values."""
    return CategoricalDistribution([_plain(value) for value in config.values])


def uniform(config: Uniform) -> BaseDistribution:
    """A real number."""
    return FloatDistribution(config.low, config.high)


def loguniform(config: LogUniform) -> BaseDistribution:
    """A real number on a logarithmic scale."""
    return FloatDistribution(config.low, config.high, log=True)


def quniform(config: QUniform) -> BaseDistribution:
    """A multiple of q."""
    return FloatDistribution(config.low, config.high, step=config.q)


def randint(config: RandInt) -> BaseDistribution:
    """A whole number; Optuna includes both ends, as we do."""
    return IntDistribution(config.low, config.high)


def lograndint(config: LogRandInt) -> BaseDistribution:
    """A whole number on a logarithmic scale."""
    return IntDistribution(config.low, config.high, log=True)


def distributions(space: Mapping[str, Dimension]) -> dict[str, BaseDistribution]:
    """Optuna's side of a space."""
    return {
        path: DIMENSIONS.implementation(dimension.type)(dimension)
        for path, dimension in space.items()
    }


def encoded(space: Mapping[str, Dimension], values: Mapping[str, Any]) -> dict[str, Any]:
    """An assignment as Optuna takes it."""
    return {
        path: _plain(value) if isinstance(space[path], ListDimension) else value
        for path, value in values.items()
    }


def decoded(space: Mapping[str, Dimension], values: Mapping[str, Any]) -> dict[str, Any]:
    """What Optuna chose as an assignment."""
    return {path: _decoded(space[path], value) for path, value in values.items()}


def _decoded(dimension: Dimension, value: Any) -> Any:
    if isinstance(dimension, ListDimension):
        return next(each for each in dimension.values if _plain(each) == value)
    if isinstance(dimension, QUniform):
        # Optuna adds up steps of q: 0.30000000000000004 is meant as 0.3.
        return dimension.nearest(value)
    return value


def _plain(value: Any) -> Any:
    """Optuna's categories are scalars; a list or an object stands for itself as JSON."""
    return value if isinstance(value, bool | int | float | str | None) else json.dumps(value)
