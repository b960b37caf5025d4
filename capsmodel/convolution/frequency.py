"""The frequency route: a 9x9 convolution of stride 2 as products frequency by frequency, on a CPU.

The convolution is a sum over four phases (parities of row and column), each a convolution of stride
1 of N x N features with 5 x 5 weights. Their discrete Fourier transforms of N x N turn it into one
matrix product over channels and phases for each frequency: for the paper's net 148 real products
an output channel, input channel and phase, where the direct way takes 729 (36 positions of 81
weights, over 4 phases). The result is exact but for rounding.

In bf16 the operands and results of these products are rounded, transforms are summed in fp32. The
transforms are compiled kernels (`kernels/source/frequency.cpp`), the products PyTorch's.

Shape letters: B batch, C channels in, F channels out, N side of a phase, n rows (and columns) of
the result, K planes: the real numbers by which a spectrum is kept.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from capsmodel.convolution.transforms import (
    KERNEL,
    LANES,
    PHASES,
    SIDES,
    STRIDE,
    TAPS,
    Transforms,
    planes_shape,
)
from capsmodel.kernels import has_kernels, refuse_second_derivative

if TYPE_CHECKING:
    from capsmodel.convolution import Convolution

SCRATCH_BYTES = 96 << 20
"""Planes that only one call needs are made in blocks up to this size, of at least one row."""
SMALLEST_BATCH = 16
"""A way forward with gradients transforms the weights, which smaller batches do not make up for."""


def applies(layer: "Convolution", features: Tensor) -> bool:
    """Whether the route computes this layer, of features on a CPU that fit it."""
    side, odd = divmod(features.shape[-1], STRIDE)
    return (
        layer.kernel_size == (KERNEL, KERNEL)
        and layer.stride == (STRIDE, STRIDE)
        and layer.padding == (0, 0)
        and features.shape[-2] == features.shape[-1]
        and side in SIDES
        and not odd
        and layer.out_channels % LANES == layer.in_channels % LANES == 0
        and len(features) >= SMALLEST_BATCH
        and has_kernels("frequency", SIDE=side)
    )


def convolve(layer: "Convolution", features: Tensor, dtype: torch.dtype) -> Tensor:
    """`layer` of features `[B, C, 2N, 2N]`: fp32 `[B, F, n, n]`, the batch last in memory."""
    side, planes = features.shape[-1] // STRIDE, None
    if torch.is_grad_enabled():
        layer.spectra.drop()
    elif _keeps(layer.weight, side, dtype):
        planes = layer.spectra.of(layer.weight, Transforms(side, dtype))
    maps = frequency_convolution(features, layer.weight, layer.bias, dtype, planes)
    return maps.relu() if layer.relu else maps


def _keeps(weight: Tensor, side: int, dtype: torch.dtype) -> bool:
    """Whether a layer keeps its spectra: one call needs the room, too, and no compiler looks on."""
    filters, channels = weight.shape[:2]
    size = math.prod(planes_shape(side, filters, channels)) * dtype.itemsize
    real = type(weight) in (Tensor, nn.Parameter) and not torch.compiler.is_compiling()
    return real and size <= SCRATCH_BYTES


def frequency_convolution(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    weight_planes: Tensor | None = None,
) -> Tensor:
    """Convolve without padding, in the frequency domain.

    Args:
        features: `[B, C, 2N, 2N]`, N one of `SIDES`; fastest with the channels last in memory.
        weight: `[F, C, 9, 9]`, fp32.
        bias: `[F]`, fp32.
        dtype: Of the products' operands and results, fp32 or bf16; features are cast to it.
        weight_planes: Those of the weight, where they are known and no gradient is wanted.

    Returns:
        fp32 `[B, F, n, n]` with n = N - 4, the batch last in memory.
    """
    given = [features, weight] if bias is None else [features, weight, bias]
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
    channels_last = features.to(dtype).permute(0, 2, 3, 1).contiguous()
    maps: Tensor = convolve_planes(channels_last, weight, bias, keep, weight_planes)[0]
    return maps.permute(3, 2, 0, 1)


@torch.library.custom_op("capsmodel::frequency_convolution", mutates_args=(), device_types="cpu")
def convolve_planes(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    keep: bool,
    known: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Maps `[n, n, F, B]`, planes of features `[K, B, 4C]` and of weights `[K, F, 4C]`.

    Args:
        features: `[B, 2N, 2N, C]`; their dtype is that of all planes.
        weight: `[F, C, 9, 9]`, fp32.
        bias: `[F]`, fp32.
        keep: Whether a gradient will need the planes, which else come out empty.
        known: The planes of the weights; for where `keep` is false.

    Raises:
        ValueError: Shapes, dtypes or devices do not fit.
    """
    _check(features, weight, bias)
    maps, feature_planes, weight_planes = _outputs(features, weight, bias, keep, known)
    features, weight = features.contiguous(), weight.contiguous()
    batch, size, _, channels = features.shape
    filters, transforms = len(weight), Transforms(size // STRIDE, features.dtype)
    spectra = feature_planes if keep else _planes(features, batch)
    transforms.run("analyse_features", features, spectra, batch, channels)
    products = features.new_empty(len(spectra), filters, batch)
    if known is not None:
        torch.bmm(known, spectra.transpose(1, 2), out=products)
    else:
        blocks = [slice(0, filters)] if keep else _blocks(filters, spectra)
        room = weight_planes if keep else _planes(features, blocks[0].stop)
        for rows in blocks:
            block = _first_rows(room, rows.stop - rows.start)
            transforms.run("analyse_weights", weight[rows], block, block.shape[1], channels)
            torch.bmm(block, spectra.transpose(1, 2), out=products[:, rows])
    transforms.run("synthesise_products", products, maps, batch * filters)
    if bias is not None:
        maps += bias[:, None]
    return maps, feature_planes, weight_planes


def _check(features: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Refuse what the kernels cannot read: they check nothing themselves."""
    fits = (
        features.dim() == 4
        and features.numel() > 0
        and features.shape[1:3] in [(STRIDE * side, STRIDE * side) for side in SIDES]
        and features.shape[3] % LANES == 0
        and weight.shape[1:] == (features.shape[3], KERNEL, KERNEL)
        and len(weight) % LANES == 0 < len(weight)
        and (bias is None or bias.shape == (len(weight),))
    )
    kinds = {
        "features": features.dtype in (torch.float32, torch.bfloat16),
        "weight": weight.dtype == torch.float32 and weight.is_cpu,
        "bias": bias is None or (bias.dtype == torch.float32 and bias.is_cpu),
    }
    if not fits or not all(kinds.values()):
        told = ", ".join(
            f"{name} {list(tensor.shape)} of {tensor.dtype} on {tensor.device}"
            for name, tensor in (("features", features), ("weight", weight), ("bias", bias))
            if tensor is not None
        )
        raise ValueError(
            f"{told}; expected features [B, 2N, 2N, C] with N in {SIDES}, fp32 or bf16, weight "
            f"[F, C, 9, 9] and bias [F] of fp32, C and F multiples of {LANES}, all on the CPU"
        )


@convolve_planes.register_fake
def _outputs(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    keep: bool,
    known: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, size, _, _ = features.shape
    extent, filters = size // STRIDE - TAPS + 1, len(weight)
    maps = weight.new_empty(extent, extent, filters, batch)
    if not keep:
        return maps, features.new_empty(0), features.new_empty(0)
    return maps, _planes(features, batch), _planes(features, filters)


def _planes(features: Tensor, rows: int) -> Tensor:
    """Room for the planes of so many images or filters, `[K, rows, 4C]`."""
    _, size, _, channels = features.shape
    return features.new_empty(planes_shape(size // STRIDE, rows, channels))


def _first_rows(room: Tensor, rows: int) -> Tensor:
    """Contiguous planes `[K, rows, 4C]` in the memory of those of at least as many rows."""
    count, _, size = room.shape
    return room.flatten()[: count * rows * size].view(count, rows, size)


def _blocks(rows: int, planes: Tensor) -> list[slice]:
    """Slices of so many rows, as even as can be and the first the largest.

    The planes of each, alike to `planes`, fit `SCRATCH_BYTES`.
    """
    row_bytes = planes.shape[0] * planes.shape[2] * planes.element_size()
    count = math.ceil(rows / max(1, SCRATCH_BYTES // row_bytes))
    step = math.ceil(rows / count)
    return [slice(begin, min(begin + step, rows)) for begin in range(0, rows, step)]


@torch.library.custom_op(
    "capsmodel::frequency_convolution_backward", mutates_args=(), device_types="cpu"
)
def convolve_planes_backward(
    gradient: Tensor, feature_planes: Tensor, weight_planes: Tensor, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of features `[B, 2N, 2N, C]`, weights `[F, C, 9, 9]` and bias `[F]`.

    Args:
        gradient: Of the maps, fp32 `[n, n, F, B]`.
        feature_planes: `[K, B, 4C]`, as the way forward left them.
        weight_planes: `[K, F, 4C]`, as the way forward left them.
        wanted: Which of the three gradients are; the others come out empty.
    """
    of_features, of_weight, of_bias = _gradient_outputs(
        gradient, feature_planes, weight_planes, wanted
    )
    gradient = gradient.contiguous()
    (count, batch, phases), filters = feature_planes.shape, weight_planes.shape[1]
    channels = phases // PHASES
    transforms = Transforms(gradient.shape[0] + TAPS - 1, feature_planes.dtype)
    products = feature_planes.new_empty(count, filters, batch)
    transforms.run("analyse_products", gradient, products, batch * filters)
    if wanted[0]:
        for rows in _blocks(batch, feature_planes):
            planes = torch.bmm(products[:, :, rows].transpose(1, 2), weight_planes)
            sizes = (planes.shape[1], channels)
            transforms.run("synthesise_features", planes, of_features[rows], *sizes)
    if wanted[1]:
        for rows in _blocks(filters, weight_planes):
            planes = torch.bmm(products[:, rows], feature_planes)
            transforms.run("synthesise_weights", planes, of_weight[rows], planes.shape[1], channels)
    if wanted[2]:
        torch.sum(gradient.flatten(end_dim=1).sum(dim=0), dim=1, out=of_bias)
    return of_features, of_weight, of_bias


@convolve_planes_backward.register_fake
def _gradient_outputs(
    gradient: Tensor, feature_planes: Tensor, weight_planes: Tensor, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    extent, _, filters, batch = gradient.shape
    size, channels = STRIDE * (extent + TAPS - 1), feature_planes.shape[2] // PHASES
    features, weight = (batch, size, size, channels), (filters, channels, KERNEL, KERNEL)
    return (
        feature_planes.new_empty(features if wanted[0] else 0),
        gradient.new_empty(weight if wanted[1] else 0),
        gradient.new_empty(filters if wanted[2] else 0),
    )


def _keep_planes(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])


def _backward(ctx: Any, gradient: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return (None,) * 5
    wanted = list(ctx.needs_input_grad[:3])
    found = convolve_planes_backward(gradient, *ctx.saved_tensors, wanted)
    given = [each if want else None for each, want in zip(found, wanted, strict=True)]
    return (*given, None, None)


convolve_planes.register_autograd(_backward, setup_context=_keep_planes)
convolve_planes_backward.register_autograd(refuse_second_derivative("the frequency route"))
