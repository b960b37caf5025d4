"""Uniform routing: no agreement, each vote counts 1/J. The ablation of dynamic routing."""

import torch
from torch import Tensor

from capsmodel.functional import squash
from capsmodel.routing import Routing, equal_sum
from capsmodel.routing.choice import route_by_kernel
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
        poses = route_by_kernel(
            capsules,
            weight,
            bias,
            trace,
            iterations=1,
        )
        return super().route(capsules, weight, bias, trace) if poses is None else poses

    def forward(
        self, votes: Tensor, bias: Tensor | None = None, trace: RoutingTrace | None = None
    ) -> Tensor:
        """Poses `[B, J, D]` from votes `[B, J, I, D]`."""
        share = 1 / votes.shape[1]
        poses = squash(equal_sum(votes, share, bias))
        if trace is not None:
            trace.record(torch.full_like(votes[..., 0], share), votes, poses)
        return poses
