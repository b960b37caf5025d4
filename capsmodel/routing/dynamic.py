"""Dynamic routing: routing by agreement (Sabour et al. 2017, procedure 1)."""

from torch import Tensor

from capsmodel.config import DynamicRoutingConfig
from capsmodel.functional import squash
from capsmodel.routing import Routing


class DynamicRouting(Routing):
    """Each pass sends a vote where the earlier passes' poses agree with it (procedure 1).

    The logits of a pass are the sum over the earlier passes of `<u_hat, v>`, which equals
    `<u_hat, sum of v>`: the poses are summed up, and the logits need no storage.
    """

    def __init__(self, config: DynamicRoutingConfig) -> None:
        super().__init__()
        self.iterations = config.iterations
        self.detach = config.detach

    def forward(self, votes: Tensor) -> Tensor:
        """Poses `[B, J, D]` from votes `[B, J, I, D]`."""
        classes = votes.shape[1]
        # The first logits are all 0, so every coupling coefficient is 1/J.
        poses = squash(votes.sum(dim=2) / classes)
        pose_sum = poses
        for iteration in range(2, self.iterations + 1):
            coupling = coupling_coefficients(votes, pose_sum)
            if self.detach and iteration < self.iterations:
                coupling = coupling.detach()
            poses = squash((coupling.unsqueeze(2) @ votes).squeeze(2))
            pose_sum = pose_sum + poses
        return poses


def coupling_coefficients(votes: Tensor, pose_sum: Tensor) -> Tensor:
    """How each input capsule shares itself out among the classes (equation 3).

    Args:
        votes: `[B, J, I, D]`.
        pose_sum: Sum of the poses of all passes so far, `[B, J, D]`.

    Returns:
        `[B, J, I]`, non-negative; the sum over J is 1.
    """
    logits = (votes @ pose_sum.unsqueeze(-1)).squeeze(-1)
    return logits.softmax(dim=1)
