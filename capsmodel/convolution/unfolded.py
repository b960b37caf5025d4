"""The unfolded route: a convolution of few channels as one matrix product over patches, on a CPU.

Every patch of the image becomes a row (im2col). With one or three channels a row is short, and the
product twice as fast as PyTorch's convolution; the result lies channels last.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from capsmodel.convolution import Convolution

LARGEST_PATCH = 256
"""Values of a patch: more would take more memory than the speed is worth."""


def applies(layer: "Convolution", images: Tensor, dtype: torch.dtype) -> bool:
    """Whether the route computes this layer: the images get no gradient, patches are small."""
    patch = layer.in_channels * math.prod(layer.kernel_size)
    plain = layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
    return (
        images.device.type == "cpu"
        and dtype in (torch.float32, torch.bfloat16)
        and layer.weight.dtype == torch.float32
        and plain
        and not isinstance(layer.padding, str)
        and patch <= LARGEST_PATCH
        and not images.requires_grad
    )


def convolve(layer: "Convolution", images: Tensor, dtype: torch.dtype) -> Tensor:
    """`layer` of images `[B, C, H, W]`: `[B, F, rows, columns]` in `dtype`, channels last."""
    patches = unfold(images.to(dtype), layer)
    weight = layer.weight.flatten(start_dim=1)
    if layer.bias is not None:  # a weight of the patches' 1: its gradient needs no sum of its own
        weight = torch.cat([weight, layer.bias.unsqueeze(1)], dim=1)
    maps = patches.flatten(end_dim=2) @ weight.T.to(dtype).contiguous()
    if layer.relu:
        maps.relu_()  # a product's gradient does not ask for its result
    return maps.view(*patches.shape[:3], -1).permute(0, 3, 1, 2)


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
