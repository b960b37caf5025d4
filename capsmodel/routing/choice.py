"""Which kernel routes: the CPU's, the GPU's, or none, where PyTorch's operations do."""

from typing import Protocol

from torch import Tensor

from capsmodel.kernels import own_operators
from capsmodel.precision import full_precision
from capsmodel.routing.fused import can_fuse, fused_routing
from capsmodel.routing.trace import RoutingTrace
from capsmodel.routing.triton_routing import triton_routing, triton_usable


class RoutingKernel(Protocol):
    """Dynamic routing from capsules straight to poses."""

    def __call__(
        self,
        capsules: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        iterations: int,
        leaky: bool = False,
        detach: bool = False,
    ) -> Tensor:
        """Poses `[B, J, D]` from capsules `[B, I, P]` and weight `[I, J, P, D]`."""


def routing_kernel(
    capsules: Tensor, weight: Tensor, trace: RoutingTrace | None
) -> RoutingKernel | None:
    """The kernel for capsules and weight; None where a trace is wanted, or none applies."""
    if trace is not None or not own_operators():
        return None
    if can_fuse(capsules, weight):
        return fused_routing
    if triton_usable(capsules, weight):
        return triton_routing
    return None


def route_by_kernel(
    capsules: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    trace: RoutingTrace | None,
    *,
    iterations: int,
    leaky: bool = False,
    detach: bool = False,
) -> Tensor | None:
    """Poses in the dtype of `weight` whatever autocast says; None where no kernel applies."""
    with full_precision(capsules.device):
        capsules = capsules.to(weight.dtype)
        kernel = routing_kernel(capsules, weight, trace)
        if kernel is None:
            return None
        return kernel(capsules, weight, bias, iterations=iterations, leaky=leaky, detach=detach)
