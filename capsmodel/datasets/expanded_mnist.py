"""Expanded MNIST: digits placed at random on 40x40 pixels (Sabour et al. 2017, section 5.2)."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from capsmodel.batch import Batch
from capsmodel.config import ExpandedMnistConfig, MnistConfig
from capsmodel.datasets import Dataset, load_dataset
from capsmodel.datasets.composition import Part, RandomComposition, draw_shifts, shift_images

MARGIN = 6
"""Pixels added on every side of a digit: 28x28 becomes 40x40. A shift by so many loses nothing."""
FIXED_SEED = 40_000
"""Seed of the held-out placements: part of the data set, no training changes it."""


def load(config: ExpandedMnistConfig, data_dir: Path) -> Dataset:
    """Load MNIST to be placed on 40x40 pixels; it stays in memory as 28x28.

    Raises:
        DataMissingError: MNIST's files are missing.
        DataCorruptError: MNIST's files are damaged.
    """
    return replace(
        load_dataset(MnistConfig(), data_dir),
        name=config.type,
        composition=Placed(config.max_shift),
        test_composition=Placed(config.max_shift),
    )


class Placed(RandomComposition):
    """A picture somewhere on a canvas that is larger by 6 pixels on every side.

    In training it lies up to `max_shift` pixels from the middle each way, anew every time; a
    held-out one lies up to 6 pixels from it, whatever `max_shift`, and always there.
    """

    def __init__(self, max_shift: int = MARGIN) -> None:
        super().__init__(FIXED_SEED)
        self.max_shift = max_shift

    def image_shape(self, stored: tuple[int, int, int]) -> tuple[int, int, int]:
        """Larger by 6 pixels on every side."""
        channels, height, width = stored
        return channels, height + 2 * MARGIN, width + 2 * MARGIN

    @property
    def identity(self) -> str:
        """Kind, margin, held-out shift and seed."""
        return f"placed(margin={MARGIN}, max_shift={MARGIN}, seed={FIXED_SEED})"

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """int64 `[count, 2]`: shifts from the middle of up to `max_shift`."""
        return draw_shifts(count, self.max_shift, generator)

    def draw_fixed(self, count: int, generator: torch.Generator) -> Tensor:
        """int64 `[count, 2]`: shifts from the middle of up to 6."""
        return draw_shifts(count, MARGIN, generator)

    def compose(self, part: Part, pictures: Tensor, drawn: Tensor) -> Batch:
        """Images `[B, C, H, W]` with the pictures moved by the drawn shifts."""
        images = shift_images(part.images[pictures], drawn, max_shift=MARGIN, margin=MARGIN)
        return Batch(images, part.labels[pictures])
