"""The unfolded route: a convolution of few channels as one matrix product over patches, on a CPU.

Every patch of the image becomes a row (im2col). With one or three channels a row is short, and the
product twice as fast as PyTorch's convolution; the result lies channels last. Products go in
blocks of patches that caches hold, so that the ReLU and its gradient cost no pass of their own.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from capsmodel.kernels import refuse_second_derivative

if TYPE_CHECKING:
    from capsmodel.convolution import Convolution

LARGEST_PATCH = 256
"""Values of a patch: more would take more memory than the speed is worth."""
BLOCK_BYTES = 4 << 20
"""Results of a block of patches."""


def applies(layer: "Convolution", images: Tensor) -> bool:
    """Whether the route computes this layer, of images on a CPU that fit it.

    Patches must be small, and the images get no gradient.
    """
    patch = layer.in_channels * math.prod(layer.kernel_size)
    return patch <= LARGEST_PATCH and not images.requires_grad


def convolve(layer: "Convolution", images: Tensor, dtype: torch.dtype) -> Tensor:
    """`layer` of images `[B, C, H, W]`: `[B, F, rows, columns]` in `dtype`, channels last."""
    patches = unfold(images.to(dtype), layer)
    weight = layer.weight.flatten(start_dim=1)
    if layer.bias is not None:  # a weight of the patches' 1: its gradient needs no sum of its own
        weight = torch.cat([weight, layer.bias.unsqueeze(1)], dim=1)
    maps = multiply_patches(patches.flatten(end_dim=2), weight.T.to(dtype).contiguous(), layer.relu)
    shaped: Tensor = maps.view(*patches.shape[:3], -1)
    return shaped.permute(0, 3, 1, 2)


def unfold(images: Tensor, layer: "Convolution") -> Tensor:
    """Patches that a layer sees, of images `[B, C, H, W]`, each followed by a 1 for the bias.

    Returns:
        `[B, rows, columns, C * k * k + 1]`; without the 1 where the layer has no bias.
    """
    if layer.padding != (0, 0):
        vertical, horizontal = map(int, layer.padding)
        images = functional.pad(images, (horizontal, horizontal, vertical, vertical))
    (height, width), (down, right) = layer.kernel_size, layer.stride
    windows = images.unfold(2, height, down).unfold(3, width, right)  # [B, C, rows, columns, k, k]
    batch, channels, rows, columns = windows.shape[:4]
    size = channels * height * width
    patches = images.new_ones(batch, rows, columns, size + (layer.bias is not None))
    inner = patches[..., :size].view(batch, rows, columns, channels, height, width)
    inner.copy_(windows.permute(0, 2, 3, 1, 4, 5))
    return patches


@torch.library.custom_op("capsmodel::patch_product", mutates_args=(), device_types="cpu")
def multiply_patches(patches: Tensor, weight: Tensor, relu: bool) -> Tensor:
    """Results `[N, F]` of patches `[N, P]`, which get no gradient, and weight `[P, F]`."""
    maps: Tensor = _empty_maps(patches, weight, relu)
    for rows in _blocks(maps):
        block = torch.mm(patches[rows], weight, out=maps[rows])
        if relu:
            block.relu_()
    return maps


@multiply_patches.register_fake
def _empty_maps(patches: Tensor, weight: Tensor, relu: bool) -> Tensor:
    return patches.new_empty(len(patches), weight.shape[1])


@torch.library.custom_op("capsmodel::patch_product_backward", mutates_args=(), device_types="cpu")
def multiply_patches_backward(gradient: Tensor, patches: Tensor, maps: Tensor | None) -> Tensor:
    """Gradient of the weight from that of the results, and from the results if a ReLU made them."""
    # Blocks are summed in fp32.
    total = patches.new_zeros(patches.shape[1], gradient.shape[1], dtype=torch.float32)
    for rows in _blocks(gradient):
        block = gradient[rows]
        if maps is not None:
            block = torch.ops.aten.threshold_backward(block, maps[rows], 0)
        total += patches[rows].T @ block
    return total.to(patches.dtype)


@multiply_patches_backward.register_fake
def _(gradient: Tensor, patches: Tensor, maps: Tensor | None) -> Tensor:
    return patches.new_empty(patches.shape[1], gradient.shape[1])


def _blocks(maps: Tensor) -> Iterator[slice]:
    step = max(1, BLOCK_BYTES // max(1, maps.shape[1] * maps.element_size()))
    return (slice(begin, begin + step) for begin in range(0, len(maps), step))


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], output if inputs[2] else None)


def _backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
    return None, multiply_patches_backward(gradient, *ctx.saved_tensors), None


multiply_patches.register_autograd(_backward, setup_context=_keep)
multiply_patches_backward.register_autograd(refuse_second_derivative("the unfolded route"))
