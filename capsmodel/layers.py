"""The two layers of capsules: primary capsules (convolution) and routed class capsules."""

import math

import torch
from torch import Tensor, nn

from capsmodel.config import CapsNetConfig
from capsmodel.convolution import Convolution
from capsmodel.initialization import BIAS, STD, official_layer_, official_weight_
from capsmodel.precision import full_precision
from capsmodel.primary_capsules import maps_to_capsules
from capsmodel.routing import VoteShape, build_routing
from capsmodel.routing.trace import RoutingTrace

PRIMARY_GAIN = 0.4
"""Makes initial primary capsules about 0.2 long at any width; the authors' weights, meant for the
1/32 of their uniform pass, would make them 0.98 long, where squash has no gradient left."""


class PrimaryCaps(nn.Module):
    """Convolutional capsules: at every position of the grid one capsule of each type (section 4).

    Channels `P*t .. P*t + P-1` of the convolution at (y, x) are capsule type t there; the capsules
    come in the order type, row, column.

    Attributes:
        conv: The convolution; it has a bias of its own unless `bias` takes its place.
        bias: `[types, P]`, where `primary_coupling` is `uniform`.
    """

    def __init__(self, config: CapsNetConfig) -> None:
        super().__init__()
        self.types = config.primary_types
        self.dim = config.primary_dim
        self.uniform = config.primary_coupling == "uniform"
        self.conv = Convolution(
            config.conv_channels,
            self.types * self.dim,
            config.primary_kernel,
            config.primary_stride,
            config.primary_padding,
            bias=not self.uniform,
        )
        self.bias = nn.Parameter(torch.zeros(self.types, self.dim)) if self.uniform else None
        self._initialize(official=config.initialization == "official")

    def _initialize(self, official: bool) -> None:
        if official:
            official_layer_(self.conv)
            if self.bias is not None:
                nn.init.constant_(self.bias, BIAS)
            return
        fan_in = self.conv.in_channels * math.prod(self.conv.kernel_size)
        divisor = self.types if self.uniform else 1
        nn.init.normal_(self.conv.weight, std=divisor * PRIMARY_GAIN / math.sqrt(fan_in))

    def forward(self, features: Tensor) -> Tensor:
        """Capsules `[B, I, P]`, fp32 and shorter than 1, from features `[B, channels, H, W]`."""
        maps = self.conv(features)  # [B, types * P, rows, columns]
        with full_precision(features.device):
            s = maps.to(self.conv.weight.dtype)
            if self.bias is not None:
                s = s / self.types + self.bias.flatten()[:, None, None]
            return maps_to_capsules(s, self.dim)


class RoutingCaps(nn.Module):
    """Capsules of the classes: every input capsule votes, and a routing decides (section 4).

    Attributes:
        weight: `[I, J, P, D]`, the matrices W of equation 2.
        bias: `[J, D]` where `class_bias` asks for it, else None.
        routing: The algorithm; it holds no reference to weight or bias.
    """

    def __init__(self, config: CapsNetConfig) -> None:
        super().__init__()
        shape = VoteShape(config.primary_capsules, config.classes, config.class_dim)
        self.weight = nn.Parameter(
            torch.empty(shape.inputs, shape.classes, config.primary_dim, shape.dim)
        )
        official_weight_(self.weight, STD)
        start = BIAS if config.initialization == "official" else 0.0
        self.bias = (
            nn.Parameter(torch.full((shape.classes, shape.dim), start))
            if config.class_bias
            else None
        )
        self.routing = build_routing(config.routing, shape)

    def forward(self, capsules: Tensor, trace: RoutingTrace | None = None) -> Tensor:
        """Poses `[B, J, D]` in fp32 from capsules `[B, I, P]`; see `RoutingTrace` for `trace`."""
        return self.routing.route(capsules, self.weight, self.bias, trace)
