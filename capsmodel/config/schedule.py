"""Settings of the learning-rate schedules, and the table of them."""

from typing import Literal

from pydantic import Field

from capsmodel.config.base import Config
from capsmodel.open_set import Member, OpenSet


class ScheduleConfig(Config):
    """Base of the learning-rate schedules' settings."""

    type: str
    warmup_steps: int = Field(default=0, ge=0, le=1_000_000)
    """Steps over which the learning rate rises linearly from 0."""


class ConstantScheduleConfig(ScheduleConfig):
    """The learning rate stays as it is."""

    type: Literal["constant"] = "constant"


class ExponentialScheduleConfig(ScheduleConfig):
    """`decay_rate ^ (step / decay_steps)`, continuous, with a floor: the authors' recipe."""

    type: Literal["exponential"] = "exponential"
    decay_rate: float = Field(default=0.96, gt=0, le=1)
    decay_steps: int = Field(default=2000, ge=1, le=100_000_000)
    floor: float = Field(default=1e-3, ge=0, le=1)
    """Smallest factor; 1e-3 of a learning rate of 1e-3 is the authors' 1e-6."""


class CosineScheduleConfig(ScheduleConfig):
    """Half a cosine from 1 to `floor` over the whole of the training."""

    type: Literal["cosine"] = "cosine"
    floor: float = Field(default=0.0, ge=0, le=1)


SCHEDULES = OpenSet(
    "capsmodel.schedules",
    default="constant",
    members={
        "constant": Member(ConstantScheduleConfig, "capsmodel.schedules:constant"),
        "exponential": Member(ExponentialScheduleConfig, "capsmodel.schedules:exponential"),
        "cosine": Member(CosineScheduleConfig, "capsmodel.schedules:cosine"),
    },
)
