"""The decoder: an image from the pose of one class capsule (section 4.1)."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from capsmodel.config import CapsNetConfig, DecoderConfig
from capsmodel.initialization import official_layer_


class Decoder(nn.Module):
    """Fully connected: J*D -> hidden, ReLU -> ... -> pixels, sigmoid (figure 2).

    The input holds the poses of ALL classes, those of the other classes set to zero, so that the
    decoder knows which class it draws.
    """

    def __init__(self, config: DecoderConfig, net: CapsNetConfig) -> None:
        """A decoder for the capsules and images of `net`."""
        super().__init__()
        self.classes = net.classes
        self.image_shape = net.image_shape
        channels, height, width = net.image_shape
        layers: list[nn.Module] = []
        for units_in, units_out in pairwise((net.classes * net.class_dim, *config.hidden)):
            layers += [nn.Linear(units_in, units_out), nn.ReLU()]
        layers.append(nn.Linear(config.hidden[-1], channels * height * width))
        if net.initialization == "official":
            for layer in layers:
                if isinstance(layer, nn.Linear):
                    official_layer_(layer)
        self.layers = nn.Sequential(*layers)

    def forward(self, poses: Tensor, target: Tensor) -> Tensor:
        """Draw each sample from the pose of its target class, or of each of its target classes.

        Args:
            poses: `[B, J, D]`.
            target: int64 `[B]` in 0 .. J-1, or `[B, T]`.

        Returns:
            Images `[B, C, H, W]`, or `[B, T, C, H, W]`, in [0, 1], fp32 (bf16 has too few steps
            for grey levels).
        """
        mask = nn.functional.one_hot(target, self.classes).to(poses.dtype)  # [B, (T,) J]
        if target.dim() == 2:
            poses = poses.unsqueeze(1)
        pixels: Tensor = self.layers((poses * mask.unsqueeze(-1)).flatten(-2))
        at_least_fp32 = torch.promote_types(pixels.dtype, torch.float32)
        drawn: Tensor = pixels.to(at_least_fp32).sigmoid()
        return drawn.view(*target.shape, *self.image_shape)
