"""Routing: from the votes of the input capsules to the poses of the class capsules.

`Routing` is what every algorithm implements, `build_routing` makes the one that a configuration
names. Shape letters: see `capsmodel.functional`.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from capsmodel.config import ROUTINGS, RoutingConfig
from capsmodel.functional import compute_votes
from capsmodel.precision import full_precision


class Routing(nn.Module, ABC):
    """Base of the routing algorithms; constructed with the algorithm's configuration alone."""

    @abstractmethod
    def forward(self, votes: Tensor) -> Tensor:
        """Poses from votes.

        Args:
            votes: `[B, J, I, D]`, fp32.

        Returns:
            Poses `[B, J, D]`, each shorter than 1.
        """

    def route(self, capsules: Tensor, weight: Tensor) -> Tensor:
        """Poses from capsules: makes the votes and routes them, in fp32 whatever autocast says.

        An implementation that recomputes the votes where it needs them overrides this method.

        Args:
            capsules: Input capsules `[B, I, P]`.
            weight: One matrix a pair of capsules, `[I, J, P, D]`.

        Returns:
            Poses `[B, J, D]`.
        """
        with full_precision(capsules.device):
            poses: Tensor = self(compute_votes(capsules.to(weight.dtype), weight))
        return poses


def build_routing(config: RoutingConfig) -> Routing:
    """The routing that `config` names."""
    routing: Routing = ROUTINGS.implementation(config.type)(config)
    return routing
