"""The decoder: an image from the pose of one class capsule (section 4.1)."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from capsmodel.config import DecoderConfig


class Decoder(nn.Module):
    """Fully connected: J*D -> hidden, ReLU -> ... -> pixels, sigmoid (figure 2).

    The input holds the poses of ALL classes, those of the other classes set to zero, so that the
    decoder knows which class it draws.
    """

    def __init__(
        self,
        config: DecoderConfig,
        classes: int,
        class_dim: int,
        image_shape: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.classes = classes
        self.image_shape = image_shape
        channels, height, width = image_shape
        layers: list[nn.Module] = []
        for units_in, units_out in pairwise((classes * class_dim, *config.hidden)):
            layers += [nn.Linear(units_in, units_out), nn.ReLU()]
        layers.append(nn.Linear(config.hidden[-1], channels * height * width))
        self.layers = nn.Sequential(*layers)

    def forward(self, poses: Tensor, target: Tensor) -> Tensor:
        """Draw each sample from the pose of its target class.

        Args:
            poses: `[B, J, D]`.
            target: int64 `[B]` in 0 .. J-1.

        Returns:
            Images `[B, C, H, W]` in [0, 1], fp32 (bf16 has too few steps for grey levels).
        """
        mask = nn.functional.one_hot(target, self.classes).to(poses.dtype)
        pixels: Tensor = self.layers((poses * mask.unsqueeze(-1)).flatten(1))
        at_least_fp32 = torch.promote_types(pixels.dtype, torch.float32)
        return pixels.to(at_least_fp32).sigmoid().view(-1, *self.image_shape)
