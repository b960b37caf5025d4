"""A routing of one's own beside the paper's: `python examples/own_routing.py`.

Inverted dot-product attention (Tsai, Srivastava, Goh, Salakhutdinov 2020, arXiv 2002.04764,
procedure 1) in forty lines. Trains two nets that differ in nothing but the routing for an epoch
each, and shows how decided the routings are. Needs what `train.py` needs.
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from capsmodel import CapsNetConfig, Trainer, TrainingConfig
from capsmodel.analysis import trace_routing
from capsmodel.config import (
    ROUTINGS,
    DecoderConfig,
    DynamicRoutingConfig,
    Mnist5kConfig,
    OptimizerConfig,
    RoutingConfig,
)
from capsmodel.functional import squash
from capsmodel.routing import Routing, VoteShape, weighted_sum
from capsmodel.routing.trace import RoutingTrace


class InvertedAttentionConfig(RoutingConfig):
    """The parents compete for every vote, as in dynamic routing; LayerNorm takes squash's place."""

    type: Literal["inverted-attention"] = "inverted-attention"
    iterations: int = Field(default=2, ge=1, le=10)
    """Passes; all parents share alike in the first."""


class InvertedAttentionRouting(Routing):
    """A vote goes where it agrees with the last pass's pose alone, not with the sum of all poses.

    The original classifies by a linear layer on the poses. In this library the length of a capsule
    is the probability of its class, so the poses are squashed when the last pass is done.
    """

    def __init__(self, config: InvertedAttentionConfig, shape: VoteShape) -> None:
        """Take the sizes of the votes for the weights of the LayerNorm."""
        super().__init__(config, shape)
        self.iterations = config.iterations
        self.normalize = nn.LayerNorm(shape.dim)

    def forward(
        self, votes: Tensor, bias: Tensor | None = None, trace: RoutingTrace | None = None
    ) -> Tensor:
        """Poses `[B, J, D]` from votes `[B, J, I, D]`."""
        coupling = torch.full_like(votes[..., 0], 1 / votes.shape[1])  # [B, J, I]
        total = weighted_sum(coupling, votes, bias)  # [B, J, D]
        if trace is not None:
            trace.record(coupling, votes, squash(total))
        for _ in range(1, self.iterations):
            parents = self.normalize(total).unsqueeze(-1)
            coupling = (votes @ parents).squeeze(-1).softmax(dim=1)
            total = weighted_sum(coupling, votes, bias)
            if trace is not None:
                trace.record(coupling, votes, squash(total))
        return squash(total)


# From here on `{"type": "inverted-attention"}` is a routing like any other, in this process. Jobs
# run in others. For them put both classes into a package that is installed beside the service and
# on the nodes, the configuration in a module that imports no torch, with
#     MEMBER = Member(InvertedAttentionConfig, "my_package.routing:InvertedAttentionRouting")
# and name it in the package's pyproject.toml (see capsmodel/open_set.py):
#     [project.entry-points."capsmodel.routings"]
#     inverted-attention = "my_package.config:MEMBER"
ROUTINGS.register("inverted-attention", InvertedAttentionConfig, InvertedAttentionRouting)


def train(routing: RoutingConfig) -> Trainer:
    """A thin net after one epoch of 4,000 digits."""
    model = CapsNetConfig(
        conv_channels=32,
        conv_stride=2,
        primary_types=8,
        primary_kernel=7,
        routing=routing,
        decoder=DecoderConfig(hidden=(128, 256)),
    )
    config = TrainingConfig(
        dataset=Mnist5kConfig(),
        model=model,
        optimizer=OptimizerConfig(learning_rate=5e-3),
        batch_size=32,
        epochs=1,
    )
    trainer = Trainer(config)
    trainer.fit()
    return trainer


for routing in (DynamicRoutingConfig(iterations=3), InvertedAttentionConfig(iterations=2)):
    trainer = train(routing)
    images = trainer.examples("test", 100).as_pixels().images
    entropy = trace_routing(trainer.model, images).entropy.mean(dim=(1, 2))  # of each pass
    print(f"{routing.type}: test accuracy {trainer.evaluate('test').accuracy:.1%}")
    print("  entropy of a capsule's shares, pass by pass:", [f"{nats:.3f}" for nats in entropy])
print(f"  (a capsule that shares itself out alike among ten has ln 10 = {math.log(10):.3f})")
