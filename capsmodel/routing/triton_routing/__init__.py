"""Dynamic routing on a GPU: Triton kernels that make the votes where they need them.

What PyTorch does in some fifty passes over votes of hundreds of megabytes takes two launches a
pass here, and the votes are never stored; docs/decisions/0015-kernels.md tells what is where. The
results are the same at every run: nothing is added up in an order that chance decides.

Triton is imported at the first call, so this module can be imported without it. The operators are
opaque to torch.compile, which Triton's own interpreter, used in tests, requires; nothing could be
fused into these kernels anyway. They neither wait for the GPU nor keep memory between calls, so a
CUDA graph can hold them once they were called before.
"""

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from capsmodel.routing.triton_routing.records import (
    Gradients,
    Passes,
    empty_gradients,
    empty_passes,
)
from capsmodel.routing.triton_routing.tiles import Shape, fits

OLDEST_GPU = (8, 0)
"""Compute capability of the first GPUs whose tensor cores take TF32."""


def triton_usable(capsules: Tensor, weight: Tensor) -> bool:
    """Whether `triton_routing` can route these: fp32, on one NVIDIA GPU, with Triton installed.

    Args:
        capsules: `[B, I, P]`.
        weight: `[I, J, P, D]`.
    """
    return (
        capsules.device.type == "cuda"
        and capsules.device == weight.device
        and capsules.dtype == weight.dtype == torch.float32
        and fits(_shape(capsules, weight))
        and _gpu_usable(capsules.device)
    )


def triton_routing(
    capsules: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    iterations: int,
    leaky: bool = False,
    detach: bool = False,
) -> Tensor:
    """Poses of the class capsules by dynamic routing (procedure 1), with gradients.

    Args:
        capsules: Input capsules `[B, I, P]`, fp32.
        weight: One matrix a pair of capsules, `[I, J, P, D]`, fp32.
        bias: `[J, D]`, added to the weighted sum of the votes in every pass.
        iterations: Passes, at least 1.
        leaky: One more logit, always 0, takes part in the softmax and is dropped after it.
        detach: The coupling coefficients of all passes but the last pass no gradient on.

    Returns:
        Poses `[B, J, D]`, fp32.

    Raises:
        ValueError: Shapes or dtypes do not fit each other or the kernels.
    """
    _check(capsules, weight, bias, iterations)
    made: tuple[Tensor, ...] = _forward(capsules, weight, bias, iterations, leaky, detach)
    return made[0]


@torch.library.custom_op("capsmodel::triton_routing", mutates_args=())
def _forward(
    capsules: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    iterations: int,
    leaky: bool,
    detach: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The members of `Passes`; only the first has a gradient."""
    from capsmodel.routing.triton_routing.launch import route

    with torch.cuda.device_of(capsules):  # type: ignore[no-untyped-call]
        return route(capsules, weight, bias, iterations, leaky)


@_forward.register_fake
def _(
    capsules: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    iterations: int,
    leaky: bool,
    detach: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return empty_passes(capsules, weight, iterations)


@torch.library.custom_op("capsmodel::triton_routing_backward", mutates_args=())
def _backward(
    gradient: Tensor,
    capsules: Tensor,
    weight: Tensor,
    totals: Tensor,
    pose_sums: Tensor,
    couplings: Tensor,
    leaky: bool,
    detach: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The members of `Gradients`, from the gradient of the poses."""
    from capsmodel.routing.triton_routing.launch import unroute

    made = Passes(gradient, totals, pose_sums, couplings)
    with torch.cuda.device_of(capsules):  # type: ignore[no-untyped-call]
        return unroute(gradient, capsules, weight, made, leaky, detach)


@_backward.register_fake
def _(
    gradient: Tensor,
    capsules: Tensor,
    weight: Tensor,
    totals: Tensor,
    pose_sums: Tensor,
    couplings: Tensor,
    leaky: bool,
    detach: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_gradients(capsules, weight, totals)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    capsules, weight, bias, _, ctx.leaky, ctx.detach = inputs
    _, totals, pose_sums, couplings = output
    ctx.biased = bias is not None
    ctx.save_for_backward(capsules, weight, totals, pose_sums, couplings)
    ctx.mark_non_differentiable(totals, pose_sums, couplings)
    ctx.set_materialize_grads(False)  # or zeros as large as the couplings would be made


def _gradients(ctx: Any, gradient: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    made = Gradients(*_backward(gradient, *ctx.saved_tensors, ctx.leaky, ctx.detach))
    of_bias = made.totals.sum(dim=(0, 1)) if ctx.biased else None
    return made.capsules, made.weight, of_bias, None, None, None


_forward.register_autograd(_gradients, setup_context=_keep_for_backward)


def _shape(capsules: Tensor, weight: Tensor) -> Shape:
    inputs, classes, input_dim, dim = weight.shape
    return Shape(len(capsules), inputs, classes, input_dim, dim)


@cache
def _gpu_usable(device: torch.device) -> bool:
    if torch.version.hip is not None or find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= OLDEST_GPU


def _check(capsules: Tensor, weight: Tensor, bias: Tensor | None, iterations: int) -> None:
    """Raise what `triton_routing` promises."""
    if weight.dim() != 4 or capsules.dim() != 3 or capsules.shape[1:] != weight.shape[::2]:
        raise ValueError(
            f"capsules {list(capsules.shape)} do not fit weight {list(weight.shape)}; expected "
            "[B, I, P] and [I, J, P, D]"
        )
    if bias is not None and bias.shape != weight.shape[1::2]:
        raise ValueError(
            f"bias is {list(bias.shape)}, expected [J, D] = {list(weight.shape[1::2])}"
        )
    for name, operand in (("capsules", capsules), ("weight", weight), ("bias", bias)):
        if operand is not None and operand.dtype != torch.float32:
            raise ValueError(f"{name} is {operand.dtype}, expected torch.float32")
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}, expected at least 1")
    if not fits(_shape(capsules, weight)):
        raise ValueError(
            f"capsules {list(capsules.shape)} and weight {list(weight.shape)} are empty or too "
            "large for the kernels; see triton_usable"
        )
