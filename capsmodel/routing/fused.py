"""Dynamic routing as one operator on the CPU: the votes are made anew in registers in every pass.

`fused_routing` computes what `capsmodel.routing.dynamic` says with compiled kernels
(`capsmodel/kernels/source/routing.cpp`), forward and backward, and never stores the votes of a
batch. It is an operator of PyTorch, `capsmodel::dynamic_routing`, so autograd, `torch.compile` and
`torch.export` know it. Gradients of gradients it does not have; PyTorch's own operations do
(`CAPS_KERNELS=torch`). Shape letters: see `capsmodel.functional`; R passes, L samples of a group,
G groups.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from capsmodel.kernels import has_kernels, loaded_library, refuse_second_derivative

_OUT_OF_MEMORY = 1
"""What a kernel returns that could not get its scratch memory."""


def fused_routing(
    capsules: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    iterations: int,
    leaky: bool = False,
    detach: bool = False,
) -> Tensor:
    """Poses from capsules by dynamic routing, in fp32 on the CPU.

    Rounding apart, what `DynamicRouting` makes of the votes; the result does not depend on the
    number of threads.

    Args:
        capsules: `[B, I, P]`, fp32. Those that lie as `[I, P, B]` in memory are read as they are,
            and their gradient comes so too; others are copied.
        weight: `[I, J, P, D]`, fp32.
        bias: `[J, D]`, fp32, added to the weighted sum in every pass.
        iterations: Passes R, at least 1.
        leaky: As in `DynamicRoutingConfig`.
        detach: As in `DynamicRoutingConfig`.

    Returns:
        Poses `[B, J, D]`. Their gradient can be taken once: it has none of its own.

    Raises:
        ValueError: Shapes, dtypes, devices or `iterations` do not fit.
        KernelError: `native` is forced, and the kernels cannot be made here.
        MemoryError: The scratch memory could not be had.
    """
    given = [capsules, weight] if bias is None else [capsules, weight, bias]
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
    results = dynamic_routing(capsules, weight, bias, iterations, leaky, detach, keep)
    poses: Tensor = results[0]
    return poses


def can_fuse(capsules: Tensor, weight: Tensor, trace: object | None = None) -> bool:
    """Whether `fused_routing` applies: fp32 on the CPU, no trace wanted, kernels there.

    Args:
        capsules: Not empty; of any floating dtype where `weight` is fp32: the caller casts it.
        weight: Decides the dtype of the routing.
        trace: What shall record the passes; the kernels record nothing.
    """
    return (
        trace is None
        and capsules.device.type == weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and capsules.numel() > 0
        and weight.numel() > 0
        and has_kernels("routing")
    )


@torch.library.custom_op("capsmodel::dynamic_routing", mutates_args=(), device_types="cpu")
def dynamic_routing(
    capsules: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    iterations: int,
    leaky: bool,
    detach: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Poses, and with `keep` what the gradient needs; arguments as in `fused_routing`.

    Returns:
        Poses `[B, J, D]`; sums of all passes `[R, G, J, D, L]`; couplings of all passes but the
        first `[R - 1, I, J, G, L]`. Without `keep` the last two are empty.
    """
    check_arguments(capsules, weight, bias, iterations)
    capsules, weight = _readable(capsules), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    results = _empty_results(capsules, weight, iterations, keep, routing_lanes())
    status = _library().routing_forward(
        *map(_address, (capsules, weight, bias, *results)),
        *_sizes(capsules.shape[0], weight),
        iterations,
        leaky,
        _samples_are_last(capsules),
        torch.get_num_threads(),
    )
    _check_status(status)
    return results


@dynamic_routing.register_fake
def _(
    capsules: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    iterations: int,
    leaky: bool,
    detach: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_results(capsules, weight, iterations, keep, routing_lanes())


@torch.library.custom_op("capsmodel::dynamic_routing_backward", mutates_args=(), device_types="cpu")
def dynamic_routing_backward(
    gradient: Tensor,
    capsules: Tensor,
    weight: Tensor,
    sums: Tensor,
    couplings: Tensor,
    leaky: bool,
    detach: bool,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of capsules, weight and bias from the `gradient` of the poses `[B, J, D]`.

    Args:
        gradient: fp32.
        capsules: `[B, I, P]`; their gradient lies like them in memory, as far as `dynamic_routing`
            reads them without a copy.
        weight: `[I, J, P, D]`.
        sums: Of all passes, as `dynamic_routing` gave them, like `couplings`.
        couplings: Of all passes but the first.
        leaky: As in the forward pass.
        detach: As in `DynamicRoutingConfig`.
        wanted: Of which of the three a gradient is wanted; the others come out empty.
    """
    gradient, capsules, weight = gradient.contiguous(), _readable(capsules), weight.contiguous()
    sums, couplings = sums.contiguous(), couplings.contiguous()
    results = _empty_gradients(capsules, weight, wanted)
    status = _library().routing_backward(
        *map(_address, (gradient, capsules, weight, sums, couplings, *results)),
        *_sizes(gradient.shape[0], weight),
        sums.shape[0],
        leaky,
        detach,
        _samples_are_last(capsules),
        torch.get_num_threads(),
    )
    _check_status(status)
    return results


@dynamic_routing_backward.register_fake
def _(
    gradient: Tensor,
    capsules: Tensor,
    weight: Tensor,
    sums: Tensor,
    couplings: Tensor,
    leaky: bool,
    detach: bool,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_gradients(capsules, weight, wanted)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    capsules, weight, _, _, ctx.leaky, ctx.detach, ctx.keep = inputs
    _, sums, couplings = output
    ctx.mark_non_differentiable(sums, couplings)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(capsules, weight, sums, couplings)


def _differentiate(ctx: Any, gradient: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return (None,) * 7
    if not ctx.keep:
        raise RuntimeError("a gradient is taken of a routing that was told to keep nothing for it")
    capsules, weight, sums, couplings = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:3])
    gradients = dynamic_routing_backward(
        gradient, capsules, weight, sums, couplings, ctx.leaky, ctx.detach, wanted
    )
    found = [each if want else None for each, want in zip(gradients, wanted, strict=True)]
    return (*found, None, None, None, None)


dynamic_routing.register_autograd(_differentiate, setup_context=_remember)
dynamic_routing_backward.register_autograd(refuse_second_derivative("the fused routing"))


def check_arguments(capsules: Tensor, weight: Tensor, bias: Tensor | None, iterations: int) -> None:
    """Refuse what the kernels cannot read with a ValueError: they check nothing themselves."""
    if capsules.dim() != 3 or weight.dim() != 4:
        raise ValueError(
            f"capsules have shape {list(capsules.shape)} and weight {list(weight.shape)}, "
            "expected [B, I, P] and [I, J, P, D]"
        )
    _, inputs, capsule_dim = capsules.shape
    if (weight.shape[0], weight.shape[2]) != (inputs, capsule_dim):
        raise ValueError(
            f"weight has shape {list(weight.shape)}, expected [I, J, P, D] = "
            f"[{inputs}, J, {capsule_dim}, D] for capsules {list(capsules.shape)}"
        )
    if bias is not None and bias.shape != (weight.shape[1], weight.shape[3]):
        raise ValueError(
            f"bias has shape {list(bias.shape)}, expected [J, D] = "
            f"[{weight.shape[1]}, {weight.shape[3]}]"
        )
    if capsules.numel() == 0 or weight.numel() == 0:
        raise ValueError(
            f"capsules {list(capsules.shape)} or weight {list(weight.shape)} are empty, expected "
            "at least 1 in every dimension"
        )
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}, expected at least 1")
    for name, tensor in (("capsules", capsules), ("weight", weight), ("bias", bias)):
        if tensor is not None and (tensor.dtype, tensor.device.type) != (torch.float32, "cpu"):
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device}, expected torch.float32 on the CPU"
            )


def routing_lanes() -> int:
    """L, how many samples the kernels route at once on this machine."""
    lanes: int = _library().routing_lanes()
    return lanes


def _library() -> ctypes.CDLL:
    library = loaded_library("routing")
    if not getattr(library, "routing_declared", False):
        _declare(library)
    return library


def _declare(library: ctypes.CDLL) -> None:
    size, pointer, flag = ctypes.c_int64, ctypes.c_void_p, ctypes.c_int
    library.routing_lanes.argtypes = []
    library.routing_lanes.restype = size
    library.routing_forward.argtypes = [*[pointer] * 6, *[size] * 6, flag, flag, flag]
    library.routing_backward.argtypes = [*[pointer] * 8, *[size] * 6, *[flag] * 4]
    for function in (library.routing_forward, library.routing_backward):
        function.restype = ctypes.c_int
    library.routing_declared = True  # type: ignore[attr-defined]


def _empty_results(
    capsules: Tensor, weight: Tensor, passes: int, keep: bool, lanes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What `dynamic_routing` returns, not filled in."""
    batch = capsules.shape[0]
    inputs, classes, _, dim = weight.shape
    poses = capsules.new_empty(batch, classes, dim)
    if not keep:
        return poses, capsules.new_empty(0), capsules.new_empty(0)
    groups = (batch + lanes - 1) // lanes
    sums = capsules.new_empty(passes, groups, classes, dim, lanes)
    couplings = capsules.new_empty(passes - 1, inputs, classes, groups, lanes)
    return poses, sums, couplings


def _empty_gradients(
    capsules: Tensor, weight: Tensor, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """What `dynamic_routing_backward` returns, not filled in."""
    batch, inputs, capsule_dim = capsules.shape
    of_capsules, of_weight, of_bias = wanted
    if not of_capsules:
        capsule_gradient = capsules.new_empty(0)
    elif _samples_are_last(capsules):
        capsule_gradient = capsules.new_empty(inputs, capsule_dim, batch).permute(2, 0, 1)
    else:
        capsule_gradient = capsules.new_empty(batch, inputs, capsule_dim)
    return (
        capsule_gradient,
        weight.new_empty(weight.shape if of_weight else 0),
        weight.new_empty((weight.shape[1], weight.shape[3]) if of_bias else 0),
    )


def _samples_are_last(capsules: Tensor) -> bool:
    """Whether capsules `[B, I, P]` lie as `[I, P, B]` in memory, as primary capsules come."""
    return not capsules.is_contiguous() and capsules.permute(1, 2, 0).is_contiguous()


def _readable(capsules: Tensor) -> Tensor:
    """The capsules in one of the two orders in memory that the kernels read."""
    return capsules if _samples_are_last(capsules) else capsules.contiguous()


def _sizes(batch: int, weight: Tensor) -> tuple[int, ...]:
    """B, I, J, P, D as the kernels take them."""
    return (batch, *weight.shape)


def _address(tensor: Tensor | None) -> int | None:
    """Where a tensor without gaps lies; None, C's null, where it is missing or empty."""
    return None if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


def _check_status(status: int) -> None:
    if status == _OUT_OF_MEMORY:
        raise MemoryError(
            "the routing's scratch memory could not be had; a smaller batch needs less"
        )
    if status != 0:
        raise RuntimeError(f"the routing's kernel ended with status {status}")
