"""What every model offers: classes from images, and where it can, images from capsules."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from capsmodel.config import MODELS, ModelConfig


class ModelOutput(NamedTuple):
    """What a model makes of a batch of images."""

    lengths: Tensor
    """`[B, J]` in [0, 1], but for rounding: the probability of each class; those of capsules need
    not sum to 1."""
    poses: Tensor | None
    """`[B, J, D]`: the capsules of the classes; None where a model has none."""
    reconstruction: Tensor | None
    """`[B, C, H, W]` in [0, 1], with T targets `[B, T, C, H, W]`; None without a decoder."""
    logits: Tensor | None = None
    """`[B, J]`, of models whose probabilities come from logits."""


class Model(nn.Module, ABC):
    """Base of the models; constructed with the model's configuration alone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.image_shape = config.image_shape
        self.classes = config.classes
        self.targets = config.targets

    def forward(self, images: Tensor, target: Tensor | None = None) -> ModelOutput:
        """Classify images and draw them again, after a check of the arguments.

        Args:
            images: Floating point `[B, C, H, W]` in [0, 1].
            target: int64 `[B]`, the class from whose capsule each image is drawn, or `[B, T]` to
                draw several; None draws from the longest capsule, from the two longest where two
                classes are present.

        Returns:
            Lengths, poses and reconstructions.

        Raises:
            ValueError: An argument has another shape, dtype or range.
        """
        check_images(images, self.image_shape)
        if target is not None:
            check_target(target, len(images), self.classes)
        return self.compute(images, target)

    @abstractmethod
    def compute(self, images: Tensor, target: Tensor | None = None) -> ModelOutput:
        """`forward` without the check, which waits for the device: for a caller that is sure."""

    @abstractmethod
    def reconstruct(self, poses: Tensor, target: Tensor) -> Tensor | None:
        """Images from poses `[B, J, D]`, perturbed perhaps; None where there is no decoder.

        `[B, C, H, W]` for a target `[B]`, `[B, T, C, H, W]` for `[B, T]`.
        """

    @property
    def draws(self) -> bool:
        """Whether the model reconstructs."""
        return False


def build_model(config: ModelConfig) -> Model:
    """The model that `config` names, with fresh weights from torch's global generator."""
    model: Model = MODELS.implementation(config.type)(config)
    return model


def predicted_classes(lengths: Tensor, targets: int) -> Tensor:
    """The classes with the greatest lengths `[B, J]`: int64 `[B]`, or `[B, T]`, longest first."""
    if targets == 1:
        return lengths.argmax(dim=1)
    return lengths.topk(targets, dim=1).indices


def check_images(images: Tensor, image_shape: tuple[int, int, int]) -> None:
    """Refuse images that are no floating point `[B, C, H, W]` in [0, 1] with a ValueError."""
    if images.dim() != 4 or tuple(images.shape[1:]) != tuple(image_shape) or not len(images):
        raise ValueError(
            f"images have shape {list(images.shape)}, expected [B, C, H, W] = "
            f"[B, {', '.join(map(str, image_shape))}] with B >= 1"
        )
    if not images.is_floating_point():
        raise ValueError(
            f"images are {images.dtype}, expected floating point in [0, 1]: divide bytes by 255"
        )
    low, high = (bound.item() for bound in torch.aminmax(images))
    if not (low >= 0 and high <= 1):  # NaN fails too
        raise ValueError(
            f"images have values from {low:g} to {high:g}, expected [0, 1]: divide bytes by 255"
        )


def check_target(target: Tensor, batch: int, classes: int) -> None:
    """Refuse targets that are no int64 `[B]` or `[B, T]` in 0 .. J-1 with a ValueError."""
    fits = target.dim() in (1, 2) and len(target) == batch and target.numel() > 0
    if target.dtype != torch.int64 or not fits:
        raise ValueError(
            f"target is {target.dtype} {list(target.shape)}, expected torch.int64 [{batch}] or "
            f"[{batch}, T]"
        )
    low, high = (bound.item() for bound in torch.aminmax(target))
    if low < 0 or high >= classes:
        raise ValueError(f"target has values from {low} to {high}, expected 0 to {classes - 1}")
