"""Uniform routing: no agreement, each vote counts 1/J. The ablation of dynamic routing."""

import torch
from torch import Tensor

from capsmodel.functional import squash
from capsmodel.routing import Routing, equal_sum
from capsmodel.routing.trace import RoutingTrace


class UniformRouting(Routing):
    """Every capsule sends 1/J of itself to each parent: the first pass of procedure 1."""

    def forward(
        self, votes: Tensor, bias: Tensor | None = None, trace: RoutingTrace | None = None
    ) -> Tensor:
        """Poses `[B, J, D]` from votes `[B, J, I, D]`."""
        share = 1 / votes.shape[1]
        poses = squash(equal_sum(votes, share, bias))
        if trace is not None:
            trace.record(torch.full_like(votes[..., 0], share), votes, poses)
        return poses
