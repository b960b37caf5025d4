"""Learning-rate schedules: their ends, their middle and the warm-up."""

import math

import pytest

from capsmodel.config import (
    ConstantScheduleConfig,
    CosineScheduleConfig,
    ExponentialScheduleConfig,
)
from capsmodel.schedules import learning_rate_factor


def test_constant() -> None:
    assert learning_rate_factor(ConstantScheduleConfig(), 500, 1000) == 1


@pytest.mark.parametrize("step", [0, 1, 999, 2000, 100_000])
def test_exponential_is_continuous_and_has_a_floor(step) -> None:
    expected = max(1e-3, 0.96 ** (step / 2000))
    assert learning_rate_factor(ExponentialScheduleConfig(), step, 10**6) == expected


def test_exponential_ends_at_the_floor() -> None:
    config = ExponentialScheduleConfig(floor=0.01)
    assert learning_rate_factor(config, 10**6, 10**6) == 0.01


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 1), (250, 0.5 + math.sqrt(0.125)), (500, 0.5), (1000, 0)]
)
def test_cosine(step, expected) -> None:
    assert learning_rate_factor(CosineScheduleConfig(), step, 1000) == pytest.approx(expected)


def test_cosine_ends_at_the_floor_and_stays_there() -> None:
    config = CosineScheduleConfig(floor=0.1)
    assert learning_rate_factor(config, 1000, 1000) == pytest.approx(0.1)
    assert learning_rate_factor(config, 2000, 1000) == pytest.approx(0.1)


def test_warm_up_rises_linearly_from_zero() -> None:
    config = ConstantScheduleConfig(warmup_steps=4)
    factors = [learning_rate_factor(config, step, 1000) for step in range(6)]
    assert factors == [0, 0.25, 0.5, 0.75, 1, 1]
