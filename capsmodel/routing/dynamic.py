"""Dynamic routing: routing by agreement (Sabour et al. 2017, procedure 1)."""

import torch
from torch import Tensor

from capsmodel.config import DynamicRoutingConfig
from capsmodel.functional import squash
from capsmodel.routing import Routing, VoteShape, equal_sum, weighted_sum
from capsmodel.routing.choice import route_by_kernel
from capsmodel.routing.trace import RoutingTrace


class DynamicRouting(Routing):
    """Each pass sends a vote where the earlier passes' poses agree with it (procedure 1).

    The logits of a pass are the sum over the earlier passes of `<u_hat, v>`, which equals
    `<u_hat, sum of v>`: the poses are summed up, and the logits need no storage.
    """

    def __init__(self, config: DynamicRoutingConfig, shape: VoteShape) -> None:
        super().__init__(config, shape)
        self.iterations = config.iterations
        self.detach = config.detach
        self.leaky = config.leaky

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
            iterations=self.iterations,
            leaky=self.leaky,
            detach=self.detach,
        )
        return super().route(capsules, weight, bias, trace) if poses is None else poses

    def forward(
        self, votes: Tensor, bias: Tensor | None = None, trace: RoutingTrace | None = None
    ) -> Tensor:
        """Poses `[B, J, D]` from votes `[B, J, I, D]`."""
        parents = votes.shape[1] + self.leaky
        # The first logits are all 0, so every parent, a leak among them, gets the same share.
        poses = squash(equal_sum(votes, 1 / parents, bias))
        if trace is not None:
            trace.record(torch.full_like(votes[..., 0], 1 / parents), votes, poses)
        pose_sum = poses
        for iteration in range(2, self.iterations + 1):
            coupling = coupling_coefficients(votes, pose_sum, self.leaky)
            if self.detach and iteration < self.iterations:
                coupling = coupling.detach()
            poses = squash(weighted_sum(coupling, votes, bias))
            if trace is not None:
                trace.record(coupling, votes, poses)
            pose_sum = pose_sum + poses
        return poses


def coupling_coefficients(votes: Tensor, pose_sum: Tensor, leaky: bool = False) -> Tensor:
    """How each input capsule shares itself out among the classes (equation 3).

    Args:
        votes: `[B, J, I, D]`.
        pose_sum: Sum of the poses of all passes so far, `[B, J, D]`.
        leaky: One more logit, always 0, takes part and is dropped.

    Returns:
        `[B, J, I]`, non-negative; the sum over J is 1, with a leak less than 1.
    """
    logits = (votes @ pose_sum.unsqueeze(-1)).squeeze(-1)
    if leaky:
        nowhere = torch.zeros_like(logits[:, :1])
        return torch.cat([nowhere, logits], dim=1).softmax(dim=1)[:, 1:]
    return logits.softmax(dim=1)
