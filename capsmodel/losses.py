"""The losses: margin loss and reconstruction error, and how they make up a training's loss."""

from typing import NamedTuple

import torch
from torch import Tensor

from capsmodel.config import LOSSES, LossConfig, MarginLossConfig
from capsmodel.model import CapsNetOutput
from capsmodel.precision import full_precision


class LossTerms(NamedTuple):
    """A loss and what it is made of; scalars, means over the batch."""

    total: Tensor
    """What training minimises: margin + reconstruction_weight * reconstruction."""
    margin: Tensor
    """Loss of the classification, summed over classes."""
    reconstruction: Tensor
    """Squared error SUMMED over an image, without its weight; 0 where there is no decoder."""


class MarginLoss:
    """Margin loss plus weighted reconstruction error (section 3 and section 4.1)."""

    def __init__(self, config: MarginLossConfig) -> None:
        self.config = config

    def __call__(self, output: CapsNetOutput, images: Tensor, labels: Tensor) -> LossTerms:
        """The loss of a batch, in fp32 whatever autocast says.

        Args:
            output: What the model made of `images`.
            images: `[B, C, H, W]` in [0, 1].
            labels: int64 `[B]` in 0 .. J-1.
        """
        config = self.config
        with full_precision(images.device):
            margin = margin_loss(
                output.lengths, labels, config.m_plus, config.m_minus, config.lambda_
            )
            if output.reconstruction is None:
                return LossTerms(margin, margin, torch.zeros_like(margin))
            reconstruction = reconstruction_loss(output.reconstruction, images)
            total = margin + config.reconstruction_weight * reconstruction
        return LossTerms(total, margin, reconstruction)


def margin_loss(
    lengths: Tensor,
    labels: Tensor,
    m_plus: float = 0.9,
    m_minus: float = 0.1,
    lambda_: float = 0.5,
) -> Tensor:
    """Margin loss (equation 4), summed over classes, averaged over the batch.

    `T max(0, m+ - |v|)^2 + lambda (1 - T) max(0, |v| - m-)^2` for every class.

    Args:
        lengths: Lengths of the class capsules, `[B, J]`.
        labels: int64 `[B]` in 0 .. J-1.
        m_plus: Length that the capsule of the class present should reach.
        m_minus: Length that the capsules of the other classes should not exceed.
        lambda_: Weight of the absent classes.

    Returns:
        A scalar.
    """
    present = torch.nn.functional.one_hot(labels, lengths.shape[1]).to(lengths.dtype)
    too_short = (m_plus - lengths).relu().square()
    too_long = (lengths - m_minus).relu().square()
    per_class = present * too_short + lambda_ * (1 - present) * too_long
    return per_class.sum(dim=1).mean()


def reconstruction_loss(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Squared error, SUMMED over an image's pixels (section 4.1), averaged over the batch.

    Args:
        reconstruction: `[B, C, H, W]`.
        images: `[B, C, H, W]`.

    Returns:
        A scalar.
    """
    return (reconstruction - images).square().flatten(1).sum(dim=1).mean()


def build_loss(config: LossConfig) -> MarginLoss:
    """The loss that `config` names: called as `MarginLoss` is, it returns `LossTerms`."""
    loss: MarginLoss = LOSSES.implementation(config.type)(config)
    return loss
