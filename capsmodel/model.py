"""The models: what every model offers, and the CapsNet of Sabour et al. 2017 (figures 1 and 2)."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from capsmodel.config import MODELS, CapsNetConfig, ModelConfig
from capsmodel.decoder import Decoder
from capsmodel.functional import lengths
from capsmodel.layers import PrimaryCaps, RoutingCaps
from capsmodel.routing import build_routing


class CapsNetOutput(NamedTuple):
    """What a model makes of a batch of images."""

    lengths: Tensor
    """`[B, J]` in [0, 1): the probability of each class; they need not sum to 1."""
    poses: Tensor
    """`[B, J, D]`: the capsules of the classes."""
    reconstruction: Tensor | None
    """`[B, C, H, W]` in [0, 1]; None without a decoder."""


class Model(nn.Module, ABC):
    """Base of the models; constructed with the model's configuration alone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.image_shape = config.image_shape
        self.classes = config.classes

    def forward(self, images: Tensor, target: Tensor | None = None) -> CapsNetOutput:
        """Classify images and draw them again, after a check of the arguments.

        Args:
            images: Floating point `[B, C, H, W]` in [0, 1].
            target: int64 `[B]`, the class from whose capsule each image is drawn; None draws from
                the longest capsule.

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
    def compute(self, images: Tensor, target: Tensor | None = None) -> CapsNetOutput:
        """`forward` without the check, which waits for the device: for a caller that is sure."""

    @abstractmethod
    def reconstruct(self, poses: Tensor, target: Tensor) -> Tensor | None:
        """Images `[B, C, H, W]` from poses `[B, J, D]`, perturbed perhaps; None has no decoder."""


class CapsNet(Model):
    """Convolution, primary capsules, routed class capsules, decoder (section 4).

    With the default configuration it has 8,215,568 parameters, 1,411,344 of them the decoder's.
    """

    def __init__(self, config: CapsNetConfig | None = None) -> None:
        config = config or CapsNetConfig()
        super().__init__(config)
        channels, _, _ = config.image_shape
        self.conv = nn.Conv2d(
            channels, config.conv_channels, config.conv_kernel, config.conv_stride
        )
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        self.primary_caps = PrimaryCaps(
            config.conv_channels,
            config.primary_types,
            config.primary_dim,
            config.primary_kernel,
            config.primary_stride,
        )
        self.class_caps = RoutingCaps(
            config.primary_capsules,
            config.primary_dim,
            config.classes,
            config.class_dim,
            build_routing(config.routing),
        )
        self.decoder = (
            Decoder(config.decoder, config.classes, config.class_dim, config.image_shape)
            if config.decoder
            else None
        )

    def compute(self, images: Tensor, target: Tensor | None = None) -> CapsNetOutput:
        """`forward` without the check of its arguments."""
        features = self.conv(images).relu()
        poses = self.class_caps(self.primary_caps(features))
        presence = lengths(poses)
        if target is None:
            target = presence.argmax(dim=1)
        return CapsNetOutput(presence, poses, self.reconstruct(poses, target))

    def reconstruct(self, poses: Tensor, target: Tensor) -> Tensor | None:
        """Images `[B, C, H, W]` drawn from the `target` capsules of poses `[B, J, D]`.

        Args:
            poses: Class capsules as `forward` returns them, or perturbed ones (section 5.1).
            target: int64 `[B]`, the class to draw from.

        Returns:
            Images in [0, 1]; None where the model has no decoder.
        """
        if self.decoder is None:
            return None
        images: Tensor = self.decoder(poses, target)
        return images


def build_model(config: ModelConfig) -> Model:
    """The model that `config` names, with fresh weights from torch's global generator."""
    model: Model = MODELS.implementation(config.type)(config)
    return model


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
    """Refuse targets that are no int64 `[B]` in 0 .. J-1 with a ValueError."""
    if target.dtype != torch.int64 or target.shape != (batch,):
        raise ValueError(
            f"target is {target.dtype} {list(target.shape)}, expected torch.int64 [{batch}]"
        )
    low, high = (bound.item() for bound in torch.aminmax(target))
    if low < 0 or high >= classes:
        raise ValueError(f"target has values from {low} to {high}, expected 0 to {classes - 1}")
