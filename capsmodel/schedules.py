"""Learning-rate schedules: functions of (config, step, total_steps) that give a factor in [0, 1].

`step` counts from 0. A warm-up of n steps multiplies the factor by `step / n` until it is over.
"""

import math

from capsmodel.config import (
    SCHEDULES,
    ConstantScheduleConfig,
    CosineScheduleConfig,
    ExponentialScheduleConfig,
    ScheduleConfig,
)


def learning_rate_factor(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """What the schedule named by `config` multiplies the learning rate of `step` by."""
    factor: float = SCHEDULES.implementation(config.type)(config, step, total_steps)
    return factor


def constant(config: ConstantScheduleConfig, step: int, total_steps: int) -> float:
    """1 after the warm-up."""
    return _warm_up(config, step)


def exponential(config: ExponentialScheduleConfig, step: int, total_steps: int) -> float:
    """`decay_rate ^ (step / decay_steps)`, not below the floor: the authors' recipe."""
    decay: float = config.decay_rate ** (step / config.decay_steps)
    return _warm_up(config, step) * max(config.floor, decay)


def cosine(config: CosineScheduleConfig, step: int, total_steps: int) -> float:
    """Half a cosine from 1 at step 0 to the floor at `total_steps`, where it stays."""
    progress = min(1.0, step / total_steps)
    wave = (1 + math.cos(math.pi * progress)) / 2
    return _warm_up(config, step) * (config.floor + (1 - config.floor) * wave)


def _warm_up(config: ScheduleConfig, step: int) -> float:
    if step >= config.warmup_steps:
        return 1.0
    return step / config.warmup_steps
