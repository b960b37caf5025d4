"""Losses: what training minimises. `Loss` is what each implements, `build_loss` makes one."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from capsmodel.batch import Batch
from capsmodel.config import LOSSES, LossConfig
from capsmodel.model import ModelOutput
from capsmodel.precision import full_precision


class LossTerms(NamedTuple):
    """A loss and what it is made of; scalars, means over the batch."""

    total: Tensor
    """What training minimises: classification + reconstruction_weight * reconstruction."""
    classification: Tensor
    """Loss of the classification."""
    reconstruction: Tensor
    """Squared error SUMMED over an image, without its weight; 0 where there is no decoder."""


class Loss(ABC):
    """Base of the losses; constructed with the loss's configuration alone."""

    def __init__(self, config: LossConfig) -> None:
        self.reconstruction_weight = config.reconstruction_weight

    def __call__(self, output: ModelOutput, batch: Batch) -> LossTerms:
        """The loss of a batch, in fp32 whatever autocast says.

        Args:
            output: What the model made of the batch's images, with its labels as the target.
            batch: Images in [0, 1], and labels.
        """
        with full_precision(batch.images.device):
            classification = self.classification(output, batch.labels)
            if output.reconstruction is None:
                nothing = torch.zeros_like(classification)
                return LossTerms(classification, classification, nothing)
            reconstruction = reconstruction_loss(output.reconstruction, batch.drawings)
            total = classification + self.reconstruction_weight * reconstruction
        return LossTerms(total, classification, reconstruction)

    @abstractmethod
    def classification(self, output: ModelOutput, labels: Tensor) -> Tensor:
        """Loss of the classification, a scalar.

        Args:
            output: What the model made of the images.
            labels: int64 `[B]`, or `[B, T]` where T classes are present.
        """


def reconstruction_loss(reconstruction: Tensor, drawings: Tensor) -> Tensor:
    """Squared error, SUMMED over an image's pixels (section 4.1), averaged over the batch.

    Where several digits overlap, the errors of all their reconstructions are added (section 6).

    Args:
        reconstruction: `[B, C, H, W]`, or `[B, T, C, H, W]`.
        drawings: What should have been drawn, of the same shape.

    Returns:
        A scalar.
    """
    return (reconstruction - drawings).square().flatten(1).sum(dim=1).mean()


def present_classes(labels: Tensor, classes: int) -> Tensor:
    """1 where a class is present in an image and 0 where not, bool `[B, J]`.

    Args:
        labels: int64 `[B]` or `[B, T]`.
        classes: Number of classes J.
    """
    present = torch.zeros(len(labels), classes, dtype=torch.bool, device=labels.device)
    return present.scatter(1, labels.view(len(labels), -1), True)


def build_loss(config: LossConfig) -> Loss:
    """The loss that `config` names."""
    loss: Loss = LOSSES.implementation(config.type)(config)
    return loss
