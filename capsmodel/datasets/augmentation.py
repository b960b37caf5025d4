"""Augmentation of training images: random shifts, the only one of the authors' recipe on MNIST."""

from typing import Any

import torch
from torch import Tensor


class RandomShift:
    """Shifts every image by up to `max_shift` pixels each way, independently, filling with zeros.

    The shifts are drawn on the CPU, so a seed means the same shifts on every device; the images
    move on the device that holds them, without waiting for it.
    """

    def __init__(self, max_shift: int, seed: int) -> None:
        self.max_shift = max_shift
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, images: Tensor) -> Tensor:
        """Shifted copies of images `[B, C, H, W]` of any dtype; none where `max_shift` is 0."""
        if self.max_shift == 0:
            return images
        spread = 2 * self.max_shift + 1
        shifts = torch.randint(spread, (len(images), 2), generator=self._generator)
        shifts -= self.max_shift
        if images.is_cuda:
            shifts = shifts.pin_memory().to(images.device, non_blocking=True)
        return shift_images(images, shifts, self.max_shift)

    def state_dict(self) -> dict[str, Any]:
        """State of the generator."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken."""
        self._generator.set_state(state["generator"])


def shift_images(images: Tensor, shifts: Tensor, max_shift: int) -> Tensor:
    """Move images down and to the right, each by a shift of its own; zeros come in.

    Args:
        images: `[B, C, H, W]`.
        shifts: int64 `[B, 2]`, pixels down and pixels to the right in -max_shift .. max_shift.
        max_shift: Bound of the shifts.

    Returns:
        `[B, C, H, W]`.
    """
    batch, channels, height, width = images.shape
    padded = torch.nn.functional.pad(images, [max_shift] * 4)
    device = images.device
    rows = max_shift + torch.arange(height, device=device) - shifts[:, :1]  # [B, H]
    columns = max_shift + torch.arange(width, device=device) - shifts[:, 1:]  # [B, W]
    return padded[
        torch.arange(batch, device=device)[:, None, None, None],
        torch.arange(channels, device=device)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
