"""MultiMNIST: two digits of different classes on one another (Sabour et al. 2017, section 6.1)."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from capsmodel.batch import Batch
from capsmodel.config import Mnist5kConfig, MnistConfig, MultiMnistConfig
from capsmodel.datasets import DataMissingError, Dataset, load_dataset
from capsmodel.datasets.composition import Part, RandomComposition, draw_shifts, shift_images

SOURCES = {"mnist": MnistConfig(), "mnist-5k": Mnist5kConfig()}
MARGIN = 4
"""Pixels added on every side of a digit: 28x28 becomes 36x36, whatever the shift."""
DIGIT_SIDE = 20
"""Side of the box that holds a digit of MNIST, in pixels."""
FIXED_SEED = 36_000
"""Seed of the held-out pairs' first round: part of the data set, no training changes it."""
PARTNER_DRAWS = 2**62
"""Partner numbers are drawn below this: so far above the number of pictures that the remainder of
a division by that is as good as uniform."""


def load(config: MultiMnistConfig, data_dir: Path) -> Dataset:
    """Load the digits to overlay; the facts of the set have `test_overlap`, in [0, 1].

    Raises:
        DataMissingError: The digits' files are missing.
        DataCorruptError: The digits' files are damaged.
    """
    try:
        digits = load_dataset(SOURCES[config.source], data_dir)
    except DataMissingError as error:
        others = sorted(set(SOURCES) - {config.source})
        raise DataMissingError(
            f"multimnist overlays the digits of {config.source!r}: {error}. "
            f"`source` may also be {', '.join(map(repr, others))}"
        ) from error
    test_composition = Overlaid(config.max_shift, config.test_partners)
    return replace(
        digits,
        name=config.type,
        composition=Overlaid(config.max_shift),
        test_composition=test_composition,
        targets=config.targets,
        facts={"test_overlap": test_composition.fixed_overlap(len(digits.test_labels))},
    )


class Overlaid(RandomComposition):
    """A picture and a partner of another class from the same part, shifted apart and added.

    The partner is drawn uniformly among all pictures of the other classes. In a held-out round
    every picture comes once with a partner, so there are as many rounds as partners.
    """

    def __init__(self, max_shift: int = 4, partners: int = 1) -> None:
        """Set the shifts and the number of held-out pairs.

        Args:
            max_shift: Each of the two is shifted by up to so many pixels each way.
            partners: Held-out pairs for each picture.
        """
        super().__init__(FIXED_SEED, rounds=partners)
        self.max_shift = max_shift

    def image_shape(self, stored: tuple[int, int, int]) -> tuple[int, int, int]:
        """Larger by 4 pixels on every side."""
        channels, height, width = stored
        return channels, height + 2 * MARGIN, width + 2 * MARGIN

    @property
    def identity(self) -> str:
        """Kind, margin, shift, partners and seed."""
        return (
            f"overlaid(margin={MARGIN}, max_shift={self.max_shift}, partners={self.rounds}, "
            f"seed={FIXED_SEED})"
        )

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """int64 `[count, 5]`: a number that chooses the partner, the shifts of both pictures."""
        partners = torch.randint(PARTNER_DRAWS, (count, 1), generator=generator)
        shifts = draw_shifts(2 * count, self.max_shift, generator)
        return torch.cat([partners, shifts.view(count, 4)], dim=1)

    def compose(self, part: Part, pictures: Tensor, drawn: Tensor) -> Batch:
        """Pairs: images `[B, C, H, W]`, labels `[B, 2]`, parts `[B, 2, C, H, W]` in their order.

        Raises:
            ValueError: All pictures of the part are of one class.
        """
        if len(part.present) < 2:
            raise ValueError(
                f"all {len(part)} pictures of this part are of class {part.present[0]}, but "
                "overlaid digits are of two different classes: expected two classes at least"
            )
        pairs = torch.stack([pictures, choose_partners(part, pictures, drawn[:, 0])], dim=1)
        alone = shift_images(
            part.images[pairs.flatten()], drawn[:, 1:].reshape(-1, 2), self.max_shift, MARGIN
        )
        parts = alone.view(-1, 2, *alone.shape[1:])
        return Batch(add_clipped(parts[:, 0], parts[:, 1]), part.labels[pairs], parts)

    def fixed_overlap(self, pictures: int) -> float:
        """`mean_overlap` of all held-out pairs of a part with so many pictures."""
        rounds = (self.fixed_round(number, pictures) for number in range(self.rounds))
        return sum(mean_overlap(drawn[:, 1:].view(-1, 2, 2)) for drawn in rounds) / self.rounds


def choose_partners(part: Part, pictures: Tensor, draws: Tensor) -> Tensor:
    """For each picture another one, of another class.

    The pictures of the other classes are those before and after the block of the own class.

    Args:
        part: Holds pictures of two classes at least.
        pictures: int64 `[B]`.
        draws: int64 `[B]`, uniform in 0 .. `PARTNER_DRAWS` - 1.

    Returns:
        int64 `[B]`.
    """
    blocks = part.blocks
    labels = part.labels[pictures]
    own = blocks.size[labels]
    position = draws % (len(part) - own)
    position = torch.where(position < blocks.start[labels], position, position + own)
    return blocks.order[position]


def add_clipped(first: Tensor, second: Tensor) -> Tensor:
    """Sum of two uint8 tensors, 255 where it is larger; a plain sum of bytes would wrap around."""
    return first + torch.minimum(second, 255 - first)


def mean_overlap(shifts: Tensor) -> float:
    """Share of a digit's 20x20 box that the other one's covers, on average over pairs.

    Args:
        shifts: int64 `[P, 2, 2]`: for each pair, the two pictures' shifts down and to the right.

    Returns:
        A share in [0, 1]. Its expectation is 0.726 for shifts of up to 4 pixels.
    """
    distance = (shifts[:, 0] - shifts[:, 1]).abs()
    common = (1 - distance.double() / DIGIT_SIDE).clamp(min=0)
    return float(common.prod(dim=1).mean())
