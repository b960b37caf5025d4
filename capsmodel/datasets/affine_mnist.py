"""Affine MNIST: a synthetic set with the ranges of affNIST, which tests robustness to pose.

What is learnt is `expanded-mnist`; what is tested are MNIST's test digits under affine transforms
that were never learnt (Sabour et al. 2017, section 5.2). The published affNIST files hold other
draws, so a result on this set is no result on affNIST.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from capsmodel.batch import Batch
from capsmodel.config import AffineMnistConfig, MnistConfig
from capsmodel.datasets import Dataset, load_dataset
from capsmodel.datasets.composition import Part, RandomComposition
from capsmodel.datasets.expanded_mnist import Placed

CANVAS = 40
"""Side of the images, in pixels."""
MAX_ANGLE = 20.0
"""Rotation either way, in degrees."""
MAX_SHEAR = 0.2
"""Pixels that a row moves sideways for each pixel of its distance from the middle."""
SCALES = (0.8, 1.2)
"""Magnification, for each axis of its own."""
MAX_SHIFT = 2.0
"""Translation each way, in pixels. The other transforms together bring the corner of a 20x20 box
about the middle up to 17.6 pixels away from it, so the box stays on the canvas."""
FIXED_SEED = 50_000
"""Seed of the first transform of every test digit: part of the data set."""


def load(config: AffineMnistConfig, data_dir: Path) -> Dataset:
    """Load MNIST to be placed on 40x40 pixels in training and transformed in the test.

    Raises:
        DataMissingError: MNIST's files are missing.
        DataCorruptError: MNIST's files are damaged.
    """
    return replace(
        load_dataset(MnistConfig(), data_dir),
        name=config.type,
        composition=Placed(config.max_shift),
        test_composition=Transformed(config.test_copies),
    )


class Transformed(RandomComposition):
    """A picture stretched, sheared, rotated and moved on a canvas of 40x40 pixels.

    The images are made when they are asked for: 32 transforms of 10,000 digits take no memory.
    """

    def __init__(self, copies: int = 1) -> None:
        """Set the number of held-out transforms of each picture."""
        super().__init__(FIXED_SEED, rounds=copies)

    def image_shape(self, stored: tuple[int, int, int]) -> tuple[int, int, int]:
        """40x40 pixels, whatever is stored."""
        return stored[0], CANVAS, CANVAS

    @property
    def identity(self) -> str:
        """Kind, canvas, ranges of the transforms, copies and seed."""
        return (
            f"transformed(canvas={CANVAS}, angle={MAX_ANGLE}, shear={MAX_SHEAR}, scale={SCALES}, "
            f"max_shift={MAX_SHIFT}, copies={self.rounds}, seed={FIXED_SEED})"
        )

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """float64 `[count, 6]`: the parameters that `transform_images` takes, uniform and apart."""
        smallest, largest = SCALES
        ranges = [
            (-MAX_ANGLE, MAX_ANGLE),
            (-MAX_SHEAR, MAX_SHEAR),
            (smallest, largest),
            (smallest, largest),
            (-MAX_SHIFT, MAX_SHIFT),
            (-MAX_SHIFT, MAX_SHIFT),
        ]
        low, high = torch.tensor(ranges, dtype=torch.float64).unbind(dim=1)
        draws = torch.rand(count, len(ranges), generator=generator, dtype=torch.float64)
        return low + draws * (high - low)

    def compose(self, part: Part, pictures: Tensor, drawn: Tensor) -> Batch:
        """Images `[B, C, 40, 40]` with the pictures under the drawn transforms."""
        images = transform_images(part.images[pictures], drawn, CANVAS)
        return Batch(images, part.labels[pictures])


def transform_images(images: Tensor, parameters: Tensor, canvas: int) -> Tensor:
    """Draw images on a square canvas, each under an affine transform about its middle.

    The four pixels about a point decide its brightness (bilinear); outside there is zero. This is
    computed in float64: roundings of fp32 would leave some pixels a grey level apart from one
    device to the next.

    Args:
        images: uint8 `[B, C, S, S]`.
        parameters: float64 `[B, 6]`: angle (degrees, clockwise), shear (the lower half moves to the
            right), scale down, scale to the right, shift down, shift to the right (pixels);
            applied in the order scale, shear, rotation, shift.
        canvas: Side of the canvas, in pixels.

    Returns:
        uint8 `[B, C, canvas, canvas]`, rounded.
    """
    batch, channels, side, _ = images.shape
    maps = inverse_maps(parameters)
    # affine_grid counts in half sides: of the canvas where it draws, of the image where it reads.
    maps[:, :, :2] *= canvas / side
    maps[:, :, 2] *= 2 / side
    grid = affine_grid(maps, [batch, channels, canvas, canvas], align_corners=False)
    drawn = grid_sample(images.double(), grid, padding_mode="zeros", align_corners=False)
    return drawn.round().to(torch.uint8)


def inverse_maps(parameters: Tensor) -> Tensor:
    """Where in the image each point of the canvas is read.

    Args:
        parameters: float64 `[B, 6]`, see `transform_images`.

    Returns:
        float64 `[B, 2, 3]`: maps (x, y, 1) on the canvas to (x, y) in the image, in pixels to the
        right of and below the middle.
    """
    angle, shear, scale_y, scale_x, down, right = parameters.unbind(dim=1)
    cos, sin = angle.deg2rad().cos(), angle.deg2rad().sin()
    to_x = torch.stack([cos + shear * sin, sin - shear * cos], dim=1) / scale_x[:, None]
    to_y = torch.stack([-sin, cos], dim=1) / scale_y[:, None]
    linear = torch.stack([to_x, to_y], dim=1)
    shift = torch.stack([right, down], dim=1).unsqueeze(-1)
    return torch.cat([linear, -linear @ shift], dim=2)
