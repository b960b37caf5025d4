"""`Batch`: what a data set hands to a model and a loss."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Labelled images, with one target each or with T targets that overlap."""

    images: Tensor
    """`[B, C, H, W]`: uint8 as it is stored, floating point in [0, 1] as a model sees it."""
    labels: Tensor
    """int64 `[B]`, or `[B, T]`: the classes present, in no order."""
    parts: Tensor | None = None
    """`[B, T, C, H, W]`: every target's picture alone; None where the image is the one target."""

    def as_pixels(self) -> "Batch":
        """The same with bytes as fp32 in [0, 1]."""
        parts = None if self.parts is None else self.parts.float() / 255
        return Batch(self.images.float() / 255, self.labels, parts)

    @property
    def drawings(self) -> Tensor:
        """What reconstructions are held against: the parts, or the image itself."""
        return self.images if self.parts is None else self.parts
