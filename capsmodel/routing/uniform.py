"""Uniform routing: no agreement, each vote counts 1/J. The ablation of dynamic routing."""

import torch
from torch import Tensor

from capsmodel.functional import squash
from capsmodel.precision import full_precision
from capsmodel.routing import Routing, equal_sum
from capsmodel.routing.choice import routing_kernel
from capsmodel.routing.trace import RoutingTrace


class UniformRouting(Routing):
    """Every capsule sends 1/J of itself to each parent: the first pass of procedure 1."""

    def route(
        self,
        capsules: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        trace: RoutingTrace | None = None,
    ) -> Tensor:
        """Poses `[B, J, D]` from capsules `[B, I, P]`, by a kernel where one applies."""
        with full_precision(capsules.device):
            capsules = capsules.to(weight.dtype)
            kernel = routing_kernel(capsules, weight, trace)
            if kernel is None:
                return super().route(capsules, weight, bias, trace)
            return kernel(capsules, weight, bias, iterations=1)

    def forward(
        self, votes: Tensor, bias: Tensor | None = None, trace: RoutingTrace | None = None
    ) -> Tensor:
        """Poses `[B, J, D]` from votes `[B, J, I, D]`."""
        share = 1 / votes.shape[1]
        poses = squash(equal_sum(votes, share, bias))
        if trace is not None:
            trace.record(torch.full_like(votes[..., 0], share), votes, poses)
        return poses
