"""Self-attention routing (Mazzia, Salvetti, Chiaberge 2021, "Efficient-CapsNet", section 3.2)."""

import math

import torch
from torch import Tensor, nn

from capsmodel.config import SelfAttentionRoutingConfig
from capsmodel.functional import exponential_squash
from capsmodel.routing import Routing, VoteShape, weighted_sum
from capsmodel.routing.trace import RoutingTrace


class SelfAttentionRouting(Routing):
    """A vote counts by its agreement with all votes for the same class; one pass, no iteration.

    `c[i,j] = softmax over j of (sum over k of <u_hat[j|i], u_hat[j|k]> / sqrt(D)) + prior[i,j]`.
    The sum over k needs no I x I matrix: it is `<u_hat[j|i], sum over k of u_hat[j|k]>`.

    Attributes:
        prior: `[I, J]`, trained; 0 at the start.
    """

    def __init__(self, config: SelfAttentionRoutingConfig, shape: VoteShape) -> None:
        super().__init__(config, shape)
        self.prior = nn.Parameter(torch.zeros(shape.inputs, shape.classes))

    def forward(
        self, votes: Tensor, bias: Tensor | None = None, trace: RoutingTrace | None = None
    ) -> Tensor:
        """Poses `[B, J, D]` from votes `[B, J, I, D]`."""
        everything = votes.sum(dim=2).unsqueeze(-1)  # [B, J, D, 1]
        agreement = (votes @ everything).squeeze(-1) / math.sqrt(votes.shape[-1])
        attention = agreement.softmax(dim=1)
        coupling = attention + self.prior.T
        poses = exponential_squash(weighted_sum(coupling, votes, bias))
        if trace is not None:
            trace.record(coupling, votes, poses, shares=attention)
        return poses
