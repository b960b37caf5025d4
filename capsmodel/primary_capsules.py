"""Primary capsules from the maps of their convolution: squash, and the order of the capsules.

`maps_to_capsules` is one operator on a CPU where there are kernels, a few of PyTorch's elsewhere.
Shape letters: see `capsmodel.functional`; T types of capsules, n rows and m columns of the grid.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from capsmodel.functional import squash
from capsmodel.kernels import has_kernels, loaded_library, refuse_second_derivative

_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


def maps_to_capsules(maps: Tensor, dim: int) -> Tensor:
    """Squashed capsules in the order type, row, column (section 4, equation 1).

    Args:
        maps: `[B, T*P, n, m]`: channels `P*t` to `P*t + P-1` at (y, x) are capsule type t there.
        dim: Dimensions P of a capsule.

    Returns:
        Capsules `[B, T*n*m, P]` of the dtype of `maps`.
    """
    plain = maps.device.type == "cpu" and maps.dtype == torch.float32 and maps.numel() > 0
    if plain and has_kernels("primary"):
        capsules: Tensor = arrange(maps.permute(2, 3, 1, 0).contiguous(), dim)
        return capsules.permute(2, 0, 1)
    batch, channels, rows, columns = maps.shape
    grid = squash(maps.reshape(batch, channels // dim, dim, rows, columns), dim=2)
    return grid.permute(0, 1, 3, 4, 2).flatten(1, 3)


@torch.library.custom_op("capsmodel::primary_capsules", mutates_args=(), device_types="cpu")
def arrange(maps: Tensor, dim: int) -> Tensor:
    """Capsules `[T*n*m, P, B]` from maps `[n, m, T*P, B]`, both fp32."""
    if maps.dim() != 4 or maps.dtype != torch.float32 or maps.shape[2] % dim:
        raise ValueError(
            f"maps are {list(maps.shape)} of {maps.dtype}, expected [n, m, T*{dim}, B] of "
            "torch.float32"
        )
    maps = maps.contiguous()
    capsules: Tensor = _empty_capsules(maps, dim)
    _library().primary_forward(maps.data_ptr(), capsules.data_ptr(), *_sizes(maps, dim))
    return capsules


@arrange.register_fake
def _empty_capsules(maps: Tensor, dim: int) -> Tensor:
    rows, columns, channels, batch = maps.shape
    return maps.new_empty(channels // dim * rows * columns, dim, batch)


@torch.library.custom_op(
    "capsmodel::primary_capsules_backward", mutates_args=(), device_types="cpu"
)
def arrange_backward(maps: Tensor, gradient: Tensor) -> Tensor:
    """Gradient of the maps from that of the capsules `[T*n*m, P, B]`."""
    maps = maps.contiguous()
    result = torch.empty_like(maps)
    sizes = _sizes(maps, gradient.shape[1])
    given = gradient.contiguous()
    _library().primary_backward(maps.data_ptr(), given.data_ptr(), result.data_ptr(), *sizes)
    return result


@arrange_backward.register_fake
def _(maps: Tensor, gradient: Tensor) -> Tensor:
    return torch.empty_like(maps)


def _keep_maps(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    return arrange_backward(*ctx.saved_tensors, gradient), None


arrange.register_autograd(_backward, setup_context=_keep_maps)
arrange_backward.register_autograd(refuse_second_derivative("the primary capsules' kernel"))


def _sizes(maps: Tensor, dim: int) -> tuple[int, int, int, int, int]:
    """B, T, P, n*m and the number of threads, as the kernels take them."""
    rows, columns, channels, batch = maps.shape
    return batch, channels // dim, dim, rows * columns, torch.get_num_threads()


def _library() -> ctypes.CDLL:
    library = loaded_library("primary")
    sizes = [_LONG, _LONG, _LONG, _LONG, _INT]
    library.primary_forward.argtypes = [_POINTER, _POINTER, *sizes]
    library.primary_backward.argtypes = [_POINTER, _POINTER, _POINTER, *sizes]
    return library
