"""What the machine could do at most: operations a second, measured, and those that a net needs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.contenders import Phase
from benchmarks.stopwatch import time_turn, warm_up
from capsmodel.config import CapsNetConfig
from capsmodel.cost import PASSES_OF_A_STEP
from capsmodel.precision import Precision

PRODUCT_SIDE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the matrices, by the type of a device."""
PAPER = CapsNetConfig()
GRID = 10
"""Side of a phase of the features: those at even or odd rows, and even or odd columns, of 20."""
PHASES_OF_STRIDE_2 = 4
DIRECT_PRODUCTS = 729
"""Real products of one phase: 6 x 6 outputs of kernels of 81 / 4 weights on average."""
FREQUENCY_PRODUCTS = 148
"""The same by a real Fourier transform of 10 x 10: 4 real frequencies, and 48 complex ones of 3
products each."""


def operations(phase: Phase) -> int:
    """Of one image of the paper's net with direct convolutions; an addition counts as one.

    Back go the gradients of weights and values, but none of the images.
    """
    forward = PAPER.forward_flops
    assert forward is not None
    if phase == "inference":
        return forward
    return PASSES_OF_A_STEP * forward - _first_convolution()


def operations_by_frequency(phase: Phase) -> int:
    """The same with PrimaryCaps in the frequency domain, its transform being a dense product.

    A separable transform needs fewer, so that this is no floor.
    """
    direct = _primary_convolution()
    products = direct * FREQUENCY_PRODUCTS // DIRECT_PRODUCTS
    maps = PHASES_OF_STRIDE_2 * PAPER.conv_channels
    transforms = 2 * maps * GRID**2 * FREQUENCY_PRODUCTS
    saved = direct - products - transforms
    passes = 1 if phase == "inference" else PASSES_OF_A_STEP
    return operations(phase) - passes * saved


def _first_convolution() -> int:
    channels, height, width = PAPER.image_shape
    positions = (height - PAPER.conv_kernel + 1) * (width - PAPER.conv_kernel + 1)
    return 2 * positions * channels * PAPER.conv_kernel**2 * PAPER.conv_channels


def _primary_convolution() -> int:
    weights = PAPER.conv_channels * PAPER.primary_kernel**2 * PAPER.primary_dim
    return 2 * PAPER.primary_capsules * weights


class Peaks:
    """Matrix product and PrimaryCaps' convolution, as fast as PyTorch does them here."""

    def __init__(self, device: str, batch_size: int) -> None:
        self.device = torch.device(device)
        self._work: dict[str, tuple[Callable[[], Tensor], int]] = {}
        """By name, what to do and its operations."""
        precisions: tuple[Precision, ...] = ("fp32", "bf16")
        for precision in precisions:
            self._add_product(precision, PRODUCT_SIDE[self.device.type])
            self._add_convolution(precision, batch_size)

    def warm_up(self) -> None:
        """Do everything for the first time."""
        for name in self._names():
            with _rounding(name, self.device):
                warm_up(self._function(name), self.device)

    def turn(self) -> dict[str, float]:
        """Operations a second of each; on a GPU also with operands rounded to TF32."""
        found = {}
        for name in self._names():
            with _rounding(name, self.device), torch.no_grad():
                seconds = time_turn(self._function(name), self.device)
            found[name] = self._work[name.replace("tf32", "fp32")][1] / seconds
        return found

    def _names(self) -> list[str]:
        names = list(self._work)
        if self.device.type == "cuda":
            names += [name.replace("fp32", "tf32") for name in names if "fp32" in name]
        return names

    def _function(self, name: str) -> Callable[[], Tensor]:
        return self._work[name.replace("tf32", "fp32")][0]

    def _add_product(self, precision: Precision, side: int) -> None:
        left, right = (torch.rand(side, side, device=self.device) for _ in range(2))
        dtype = _dtype(precision)
        product = partial(torch.mm, left.to(dtype), right.to(dtype))
        self._work[f"product {precision}"] = product, 2 * side**3

    def _add_convolution(self, precision: Precision, batch_size: int) -> None:
        side, kernel = 2 * GRID, PAPER.primary_kernel
        channels = PAPER.conv_channels
        out = PAPER.primary_types * PAPER.primary_dim
        images = torch.rand(batch_size, channels, side, side, device=self.device)
        weight = torch.rand(out, channels, kernel, kernel, device=self.device)
        operands = [
            operand.to(_dtype(precision), memory_format=torch.channels_last)
            for operand in (images, weight)
        ]
        convolution = partial(F.conv2d, *operands, stride=PAPER.primary_stride)
        self._work[f"convolution {precision}"] = convolution, batch_size * _primary_convolution()


def peak_of(peaks: dict[str, float], precision: str) -> float:
    """The better one of product and convolution in a precision, operations a second."""
    return max(rate for name, rate in peaks.items() if name.endswith(precision))


def _dtype(precision: Precision) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" else torch.float32


@contextmanager
def _rounding(name: str, device: torch.device) -> Iterator[None]:
    """Context in which a GPU rounds fp32 operands to TF32 if the name says so, else not."""
    if device.type != "cuda":
        yield
        return
    places: tuple[Any, ...] = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "tf32" if "tf32" in name else "ieee"
    try:
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision
