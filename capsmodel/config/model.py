"""Settings of the models, and the table of them."""

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from capsmodel.config.base import Config, ImageShape
from capsmodel.config.routing import ROUTINGS, DynamicRoutingConfig, RoutingConfig
from capsmodel.open_set import Member, OpenSet

MAX_WEIGHTS = 100_000_000
"""Largest number of weights of one layer."""


class DecoderConfig(Config):
    """The reconstruction network of section 4.1: fully connected, ReLU, sigmoid at the end."""

    hidden: Annotated[
        tuple[Annotated[int, Field(ge=1, le=8192)], ...],
        Field(min_length=1, max_length=6, strict=False),
    ] = (512, 1024)
    """Units of each hidden layer, in order."""


class ModelConfig(Config):
    """Base of the models' settings. In a training the data set gives what is left out here."""

    type: str
    image_shape: ImageShape = (1, 28, 28)
    """Channels, height and width of an image, in pixels; by default those of the data set."""
    classes: int = Field(default=10, ge=2, le=1000)
    """Number of classes J; by default those of the data set."""
    targets: int = Field(default=1, ge=1, le=2)
    """Classes present in an image: 2 where digits overlap; by default those of the data set."""

    @property
    def forward_flops(self) -> int | None:
        """Floating point operations of one image's way forward; None where nobody counted them.

        Convolutions, fully connected layers, votes and routing count, a multiplication with its
        addition as 2. Biases, activations, squash, softmax, pooling and losses do not.
        """
        return None


class CapsNetConfig(ModelConfig):
    """The architecture of section 4 (figure 1); the defaults are the paper's MNIST net."""

    type: Literal["capsnet"] = "capsnet"
    conv_channels: int = Field(default=256, ge=1, le=2048)
    """Kernels of the first convolution."""
    conv_kernel: int = Field(default=9, ge=1, le=31)
    """Side of the first convolution's kernel, in pixels."""
    conv_stride: int = Field(default=1, ge=1, le=8)
    """Stride of the first convolution."""
    conv_padding: int = Field(default=0, ge=0, le=30)
    """Zeros around the image, in pixels on each side."""
    primary_types: int = Field(default=32, ge=1, le=256)
    """Primary capsule types: at every position of the grid one capsule of each type."""
    primary_dim: int = Field(default=8, ge=1, le=128)
    """Dimensions of a primary capsule."""
    primary_kernel: int = Field(default=9, ge=1, le=31)
    """Side of the primary capsules' kernel, in pixels of the first feature map."""
    primary_stride: int = Field(default=2, ge=1, le=8)
    """Stride of the primary capsules' convolution."""
    primary_padding: int = Field(default=0, ge=0, le=30)
    """Zeros around the first feature map, in its pixels on each side."""
    primary_coupling: Literal["none", "uniform"] = "none"
    """`none` squashes the convolution's output, as the paper says; `uniform` first divides it by
    the number of types and then adds the bias: the authors' one pass of routing over the types."""
    class_dim: int = Field(default=16, ge=1, le=256)
    """Dimensions D of a class capsule (the paper's DigitCaps)."""
    class_bias: bool = False
    """A trained bias per class and dimension, added inside every pass (the authors' code)."""
    initialization: Literal["scaled", "official"] = "scaled"
    """`scaled` follows the fan-in of convolutions and decoder, W has deviation 0.1; `official` is
    the authors' code: truncated normal, of deviation 0.05 in the first convolution and 0.1
    everywhere else, and every bias 0.1."""
    routing: Annotated[RoutingConfig, ROUTINGS] = DynamicRoutingConfig()
    decoder: DecoderConfig | None = DecoderConfig()
    """None trains without reconstruction."""

    @property
    def primary_grid(self) -> tuple[int, int]:
        """Height and width of the grid of primary capsules."""
        _, height, width = self.image_shape
        return self._grid_side(height), self._grid_side(width)

    @property
    def primary_capsules(self) -> int:
        """Number I of primary capsules: types x grid height x grid width."""
        rows, columns = self.primary_grid
        return self.primary_types * rows * columns

    @property
    def forward_flops(self) -> int | None:
        """Both convolutions, votes, routing, and one drawing for each class present."""
        routing = self.routing.flops(self.primary_capsules, self.classes, self.class_dim)
        if routing is None:
            return None
        channels, height, width = self.image_shape
        features = self._features_side(height) * self._features_side(width)
        conv = 2 * features * channels * self.conv_kernel**2 * self.conv_channels
        primary = 2 * self.conv_channels * self.primary_kernel**2 * self.primary_dim
        votes = 2 * self.primary_dim * self.classes * self.class_dim
        capsules = self.primary_capsules * (primary + votes)
        return conv + capsules + routing + self.targets * self._decoder_flops

    @property
    def _decoder_flops(self) -> int:
        if self.decoder is None:
            return 0
        units = (self.classes * self.class_dim, *self.decoder.hidden, math.prod(self.image_shape))
        return sum(2 * units_in * units_out for units_in, units_out in pairwise(units))

    def _features_side(self, pixels: int) -> int:
        return conv_side(pixels, self.conv_kernel, self.conv_stride, self.conv_padding)

    def _grid_side(self, pixels: int) -> int:
        return conv_side(
            self._features_side(pixels),
            self.primary_kernel,
            self.primary_stride,
            self.primary_padding,
        )

    @model_validator(mode="after")
    def _image_fits(self) -> Self:
        if min(self.primary_grid) < 1:
            raise ValueError(self._misfit())
        for layer, factors in self._layers():
            check_weights(layer, factors)
        return self

    def _layers(self) -> Iterator[tuple[str, dict[str, int]]]:
        """Every layer with the factors of its number of weights."""
        channels, height, width = self.image_shape
        yield (
            "the first convolution",
            {
                "channels": channels,
                "conv_kernel squared": self.conv_kernel**2,
                "conv_channels": self.conv_channels,
            },
        )
        yield (
            "the primary capsules",
            {
                "conv_channels": self.conv_channels,
                "primary_kernel squared": self.primary_kernel**2,
                "primary_types": self.primary_types,
                "primary_dim": self.primary_dim,
            },
        )
        yield (
            "the routing",
            {
                "primary capsules": self.primary_capsules,
                "primary_dim": self.primary_dim,
                "classes": self.classes,
                "class_dim": self.class_dim,
            },
        )
        if self.decoder is not None:
            units = (
                self.classes * self.class_dim,
                *self.decoder.hidden,
                channels * height * width,
            )
            for units_in, units_out in pairwise(units):
                yield "the decoder", {"units in": units_in, "units out": units_out}

    def _misfit(self) -> str:
        """The arithmetic by which the image is too small."""
        _, height, width = self.image_shape
        pixels = min(height, width)
        features = self._features_side(pixels)
        first = conv_arithmetic(
            "conv", pixels, self.conv_kernel, self.conv_stride, self.conv_padding
        )
        steps = [f"{first} = {features}"]
        if features >= 1:
            second = conv_arithmetic(
                "primary", features, self.primary_kernel, self.primary_stride, self.primary_padding
            )
            steps.append(f"{second} = {self._grid_side(pixels)}")
        features_needed = max(1, self.primary_kernel - 2 * self.primary_padding)
        smallest = (
            self.conv_kernel + self.conv_stride * (features_needed - 1) - 2 * self.conv_padding
        )
        return (
            f"an image of {height}x{width} pixels is too small: {'; '.join(steps)}, at least 1 is "
            f"needed, so {smallest} pixels a side; use a larger image, smaller kernels, a smaller "
            "conv_stride or more padding"
        )


class CnnConfig(ModelConfig):
    """The paper's CNN baseline (section 5); the defaults are its MNIST net, 35.4M parameters.

    Convolutions of stride 1 that keep the size, ReLU, fully connected layers, dropout before the
    last one. It has no capsules: nothing is reconstructed.
    """

    type: Literal["cnn"] = "cnn"
    channels: Annotated[
        tuple[Annotated[int, Field(ge=1, le=2048)], ...],
        Field(min_length=1, max_length=10, strict=False),
    ] = (256, 256, 128)
    """Kernels of each convolution, in order."""
    kernels: Annotated[
        tuple[Annotated[int, Field(ge=1, le=31)], ...],
        Field(min_length=1, max_length=10, strict=False),
    ] = (5, 5, 5)
    """Side of each convolution's kernel, in pixels."""
    pool: int = Field(default=1, ge=1, le=4)
    """Side and stride of the max-pooling after each convolution; 1 pools nothing."""
    hidden: Annotated[
        tuple[Annotated[int, Field(ge=1, le=8192)], ...],
        Field(min_length=0, max_length=6, strict=False),
    ] = (328, 192)
    """Units of each fully connected layer but the last, which has one a class."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Share of the last hidden layer's units that a training step leaves out."""

    @property
    def features(self) -> int:
        """Values that the convolutions hand to the first fully connected layer."""
        _, height, width = self.image_shape
        for _ in self.channels:
            height, width = -(-height // self.pool), -(-width // self.pool)
        return self.channels[-1] * height * width

    @property
    def forward_flops(self) -> int:
        """Convolutions and fully connected layers."""
        _, height, width = self.image_shape
        flops = 0
        widths = pairwise((self.image_shape[0], *self.channels))
        for (channels_in, channels_out), kernel in zip(widths, self.kernels, strict=True):
            flops += 2 * height * width * channels_in * kernel**2 * channels_out
            height, width = -(-height // self.pool), -(-width // self.pool)
        units = (self.features, *self.hidden, self.classes)
        return flops + sum(2 * units_in * units_out for units_in, units_out in pairwise(units))

    @model_validator(mode="after")
    def _layers_fit(self) -> Self:
        if len(self.kernels) != len(self.channels):
            raise ValueError(
                f"kernels {list(self.kernels)} and channels {list(self.channels)} differ in "
                "length: give one kernel size for each convolution"
            )
        widths = pairwise((self.image_shape[0], *self.channels))
        for (channels_in, channels_out), kernel in zip(widths, self.kernels, strict=True):
            factors = {
                "channels in": channels_in,
                "kernel squared": kernel**2,
                "channels out": channels_out,
            }
            check_weights("a convolution", factors)
        for units_in, units_out in pairwise((self.features, *self.hidden, self.classes)):
            check_weights("a fully connected layer", {"units in": units_in, "units out": units_out})
        return self


MODELS = OpenSet(
    "capsmodel.models",
    default="capsnet",
    members={
        "capsnet": Member(CapsNetConfig, "capsmodel.capsnet:CapsNet"),
        "cnn": Member(CnnConfig, "capsmodel.cnn:Cnn"),
    },
)


def conv_side(pixels: int, kernel: int, stride: int, padding: int) -> int:
    """Side of a convolution's output, 0 where the kernel does not fit."""
    room = pixels + 2 * padding - kernel
    return room // stride + 1 if pixels > 0 and room >= 0 else 0


def conv_arithmetic(name: str, pixels: int, kernel: int, stride: int, padding: int) -> str:
    """How `conv_side` comes to its result, with the names of the settings."""
    return (
        f"floor(({pixels} + 2 * {name}_padding {padding} - {name}_kernel {kernel}) / "
        f"{name}_stride {stride}) + 1"
    )


def check_weights(layer: str, factors: Mapping[str, int]) -> None:
    """Refuse more than `MAX_WEIGHTS` weights with a ValueError that shows the factors."""
    weights = math.prod(factors.values())
    if weights > MAX_WEIGHTS:
        product = " x ".join(f"{value} {name}" for name, value in factors.items())
        raise ValueError(
            f"{layer}: {product} = {weights:,} weights, at most {MAX_WEIGHTS:,} in one layer"
        )
