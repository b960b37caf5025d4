"""Uniform routing: no agreement, each vote counts 1/J. The ablation of dynamic routing."""

from torch import Tensor

from capsmodel.config import UniformRoutingConfig
from capsmodel.functional import squash
from capsmodel.routing import Routing


class UniformRouting(Routing):
    """Every capsule sends 1/J of itself to each parent: the first pass of procedure 1."""

    def __init__(self, config: UniformRoutingConfig) -> None:
        super().__init__()

    def forward(self, votes: Tensor) -> Tensor:
        """Poses `[B, J, D]` from votes `[B, J, I, D]`."""
        classes = votes.shape[1]
        return squash(votes.sum(dim=2) / classes)
