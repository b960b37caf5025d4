"""Settings of the routing algorithms, and the table of them."""

from typing import Literal

from pydantic import Field

from capsmodel.config.base import Config
from capsmodel.open_set import Member, OpenSet


class RoutingConfig(Config):
    """Base of the routing algorithms' settings."""

    type: str

    def flops(self, inputs: int, classes: int, dim: int) -> int | None:
        """Operations that make poses of one sample's votes; None where nobody counted them.

        Sums and products over all votes count, a multiplication with its addition as 2.

        Args:
            inputs: Input capsules I.
            classes: Class capsules J.
            dim: Dimensions D of a class capsule.
        """
        return None


class DynamicRoutingConfig(RoutingConfig):
    """Routing by agreement (Sabour et al. 2017, procedure 1)."""

    type: Literal["dynamic"] = "dynamic"
    iterations: int = Field(default=3, ge=1, le=10)
    """Passes of routing by agreement; the paper uses 3."""
    detach: bool = False
    """Stop the gradient through the coupling coefficients of all passes but the last."""
    leaky: bool = False
    """One more logit, always 0, takes part in the softmax and is dropped after it: a capsule may
    send a part of itself nowhere (the authors' code; off in their runs on MNIST)."""

    def flops(self, inputs: int, classes: int, dim: int) -> int:
        """A sum in the first pass; in each of the others the agreement and a weighted sum."""
        votes = inputs * classes * dim
        return votes + (self.iterations - 1) * (2 * votes + 2 * votes)


class UniformRoutingConfig(RoutingConfig):
    """No routing: every capsule sends 1/J of itself to each of the J parents."""

    type: Literal["uniform"] = "uniform"

    def flops(self, inputs: int, classes: int, dim: int) -> int:
        """A sum."""
        return inputs * classes * dim


class SelfAttentionRoutingConfig(RoutingConfig):
    """Self-attention routing (Mazzia, Salvetti, Chiaberge 2021, Efficient-CapsNet, section 3.2)."""

    type: Literal["self-attention"] = "self-attention"

    def flops(self, inputs: int, classes: int, dim: int) -> int:
        """A sum, the agreement with it, a weighted sum."""
        votes = inputs * classes * dim
        return votes + 2 * votes + 2 * votes


ROUTINGS = OpenSet(
    "capsmodel.routings",
    default="dynamic",
    members={
        "dynamic": Member(DynamicRoutingConfig, "capsmodel.routing.dynamic:DynamicRouting"),
        "uniform": Member(UniformRoutingConfig, "capsmodel.routing.uniform:UniformRouting"),
        "self-attention": Member(
            SelfAttentionRoutingConfig, "capsmodel.routing.self_attention:SelfAttentionRouting"
        ),
    },
)
