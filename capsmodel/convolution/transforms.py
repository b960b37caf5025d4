"""The compiled transforms of the frequency route, and the sizes of what they make.

`kernels/source/frequency.cpp` has the arithmetic, a library for each side of a phase.
"""

import ctypes

import torch
from torch import Tensor

from capsmodel.kernels import loaded_library

KERNEL = 9
"""Side of the kernel."""
STRIDE = 2
TAPS = 5
"""Side of a phase of the kernel."""
PHASES = 4
SIDES = (10, 14, 16)
"""Sides of a phase for which there are kernels: images of 28, 36 and 40 pixels after a first
convolution of 9x9."""
LANES = 16
"""Channels must come in multiples of it."""


def planes_of(side: int) -> int:
    """Real planes K of a spectrum: 4 real frequencies, three planes for each complex one."""
    return 4 + 3 * (side * side - 4) // 2


def planes_shape(side: int, rows: int, channels: int) -> tuple[int, int, int]:
    """Shape `[K, rows, 4C]` of the planes of so many images or filters."""
    return planes_of(side), rows, PHASES * channels


class Transforms:
    """The transforms for one side of the phases and one dtype of the planes."""

    def __init__(self, side: int, dtype: torch.dtype) -> None:
        self.side = side
        self.dtype = dtype
        self.library = _library(side)
        self.suffix = "bf16" if dtype == torch.bfloat16 else "fp32"

    def run(self, name: str, source: Tensor, target: Tensor, *sizes: int) -> None:
        """Fill `target` from `source`, both contiguous; `sizes` as in `frequency.cpp`."""
        function = getattr(self.library, f"{name}_{self.suffix}")
        function.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_int64] * len(sizes) + [ctypes.c_int]
        status = function(source.data_ptr(), target.data_ptr(), *sizes, torch.get_num_threads())
        if status != 0:
            raise MemoryError(f"{name} of {sizes} could not get its scratch memory")


def fingerprint(weight: Tensor, side: int) -> int:
    """64 bits by which contiguous fp32 weights are known.

    One other value always gives others; several other ones do but by a chance of 2^-32.
    """
    function = _library(side).fingerprint
    function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
    function.restype = ctypes.c_uint64
    return int(function(weight.data_ptr(), weight.numel(), torch.get_num_threads()))


def _library(side: int) -> ctypes.CDLL:
    return loaded_library("frequency", SIDE=side)
