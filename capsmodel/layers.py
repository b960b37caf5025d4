"""The two layers of capsules: primary capsules (convolution) and routed class capsules."""

import math

import torch
from torch import Tensor, nn

from capsmodel.functional import squash
from capsmodel.precision import full_precision
from capsmodel.routing import Routing

PRIMARY_GAIN = 0.4
"""Makes initial primary capsules about 0.2 long at any width; the authors' weights, meant for the
1/32 of their uniform pass, would make them 0.98 long, where squash has no gradient left."""
VOTE_STD = 0.1
"""Standard deviation of the initial routing weights, as in the authors' code."""


class PrimaryCaps(nn.Module):
    """Convolutional capsules: at every position of the grid one capsule of each type (section 4).

    Channels `P*t .. P*t + P-1` of the convolution at (y, x) are capsule type t there; the capsules
    come in the order type, row, column.
    """

    def __init__(self, in_channels: int, types: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.types = types
        self.dim = dim
        self.conv = nn.Conv2d(in_channels, types * dim, kernel, stride)
        fan_in = in_channels * kernel**2
        nn.init.normal_(self.conv.weight, std=PRIMARY_GAIN / math.sqrt(fan_in))

    def forward(self, features: Tensor) -> Tensor:
        """Capsules `[B, I, P]`, fp32 and shorter than 1, from features `[B, channels, H, W]`."""
        grid = self.conv(features).unflatten(1, (self.types, self.dim))  # [B, types, P, rows, cols]
        with full_precision(features.device):
            capsules = squash(grid.to(self.conv.weight.dtype), dim=2)
        return capsules.permute(0, 1, 3, 4, 2).flatten(1, 3)


class RoutingCaps(nn.Module):
    """Capsules of the classes: every input capsule votes, and a routing decides (section 4).

    Attributes:
        weight: `[I, J, P, D]`, the matrices W of equation 2.
        routing: The algorithm; it holds no reference to the weight.
    """

    def __init__(
        self, inputs: int, input_dim: int, outputs: int, output_dim: int, routing: Routing
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs, input_dim, output_dim))
        nn.init.trunc_normal_(self.weight, std=VOTE_STD, a=-2 * VOTE_STD, b=2 * VOTE_STD)
        self.routing = routing

    def forward(self, capsules: Tensor) -> Tensor:
        """Poses `[B, J, D]` in fp32 from capsules `[B, I, P]`."""
        return self.routing.route(capsules, self.weight)
