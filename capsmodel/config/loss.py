"""Settings of the losses, and the table of them."""

from typing import Literal, Self

from pydantic import Field, model_validator

from capsmodel.config.base import Config
from capsmodel.open_set import Member, OpenSet


class LossConfig(Config):
    """Base of the losses' settings."""

    type: str
    reconstruction_weight: float = Field(default=0.0005, ge=0, le=10)
    """Weight of the reconstruction error SUMMED over an image's pixels (section 4.1)."""


class MarginLossConfig(LossConfig):
    """Margin loss (section 3, equation 4), averaged over the batch."""

    type: Literal["margin"] = "margin"
    m_plus: float = Field(default=0.9, gt=0, le=1)
    """The capsule of a class that is present should be at least this long."""
    m_minus: float = Field(default=0.1, ge=0, lt=1)
    """The capsule of a class that is absent should be at most this long."""
    lambda_: float = Field(default=0.5, ge=0, le=10, alias="lambda")
    """Weight of the absent classes."""
    scale: Literal["sum", "half-mean"] = "sum"
    """`sum` adds the classes up, as the paper says; `half-mean` is half their mean, as in the
    authors' code, where reconstruction thereby weighs 2 J times as much against the margin."""

    @model_validator(mode="after")
    def _margins_in_order(self) -> Self:
        if self.m_minus >= self.m_plus:
            raise ValueError(f"m_minus {self.m_minus} must be smaller than m_plus {self.m_plus}")
        return self


class CrossEntropyLossConfig(LossConfig):
    """Cross-entropy: softmax over the classes, or with two targets a sigmoid for each class."""

    type: Literal["cross-entropy"] = "cross-entropy"
    scale: float = Field(default=10.0, gt=0, le=100)
    """A capsule's logit is this many times its length less 1/2; a CNN has logits of its own."""


LOSSES = OpenSet(
    "capsmodel.losses",
    default="margin",
    members={
        "margin": Member(MarginLossConfig, "capsmodel.losses.margin:MarginLoss"),
        "cross-entropy": Member(
            CrossEntropyLossConfig, "capsmodel.losses.cross_entropy:CrossEntropyLoss"
        ),
    },
)
