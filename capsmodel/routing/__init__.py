"""Routing: from the votes of the input capsules to the poses of the class capsules.

`Routing` is what every algorithm implements, `build_routing` makes the one that a configuration
names. Shape letters: see `capsmodel.functional`.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from capsmodel.config import ROUTINGS, RoutingConfig
from capsmodel.functional import compute_votes
from capsmodel.precision import full_precision
from capsmodel.routing.trace import RoutingTrace


class VoteShape(NamedTuple):
    """Sizes of one sample's votes, for algorithms with weights of their own."""

    inputs: int
    """Input capsules I."""
    classes: int
    """Class capsules J."""
    dim: int
    """Dimensions D of a class capsule."""


class Routing(nn.Module, ABC):
    """Base of the routing algorithms."""

    def __init__(self, config: RoutingConfig, shape: VoteShape) -> None:
        super().__init__()

    @abstractmethod
    def forward(
        self, votes: Tensor, bias: Tensor | None = None, trace: RoutingTrace | None = None
    ) -> Tensor:
        """Poses from votes.

        Args:
            votes: `[B, J, I, D]`, fp32.
            bias: `[J, D]`, added to the weighted sum of the votes in every pass.
            trace: Where given, each pass is recorded in it.

        Returns:
            Poses `[B, J, D]`, each of a length up to 1.
        """

    def route(
        self,
        capsules: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        trace: RoutingTrace | None = None,
    ) -> Tensor:
        """Poses from capsules: makes the votes and routes them, in fp32 whatever autocast says.

        An implementation that recomputes the votes where it needs them overrides this method.

        Args:
            capsules: Input capsules `[B, I, P]`.
            weight: One matrix a pair of capsules, `[I, J, P, D]`.
            bias: `[J, D]`, as in `forward`.
            trace: As in `forward`.

        Returns:
            Poses `[B, J, D]`.
        """
        with full_precision(capsules.device):
            poses: Tensor = self(compute_votes(capsules.to(weight.dtype), weight), bias, trace)
        return poses


def build_routing(config: RoutingConfig, shape: VoteShape) -> Routing:
    """The routing that `config` names, for votes of this shape."""
    routing: Routing = ROUTINGS.implementation(config.type)(config, shape)
    return routing


def weighted_sum(coupling: Tensor, votes: Tensor, bias: Tensor | None) -> Tensor:
    """Total input of the class capsules (equation 2): `s[j] = sum over i of c[i,j] u_hat[j|i]`.

    Args:
        coupling: `[B, J, I]`.
        votes: `[B, J, I, D]`.
        bias: `[J, D]`, or None.

    Returns:
        `[B, J, D]`.
    """
    total = (coupling.unsqueeze(2) @ votes).squeeze(2)
    return total if bias is None else total + bias


def equal_sum(votes: Tensor, share: float, bias: Tensor | None) -> Tensor:
    """`weighted_sum` where every coupling coefficient is `share`: it needs no product."""
    total = votes.sum(dim=2) * share
    return total if bias is None else total + bias
