"""Compositions: how the pictures that a data set stores become the images that a model sees.

In training a composition draws at random, from a generator on the CPU, so that a seed means the
same images on every device; the pictures are moved and added on the device that holds them. On
held-out pictures it gives the same images every time.
"""

from abc import ABC, abstractmethod
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from capsmodel.batch import Batch

KEPT_ROUNDS = 4
"""Rounds of held-out draws kept for the next batch, which mostly goes on in the same round."""


class ClassBlocks(NamedTuple):
    """A part's pictures sorted by class: each class is one block. All int64, on the part's device.

    The order is stable, hence the same on every device.
    """

    order: Tensor
    """`[N]`: numbers of the pictures, class by class."""
    start: Tensor
    """`[J]`: where the block of each class begins in `order`."""
    size: Tensor
    """`[J]`: pictures of each class."""


class Part:
    """Pictures of a data set and their labels, on one device.

    Attributes:
        images: uint8 `[N, C, H, W]`.
        labels: int64 `[N]`.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        """Pictures stored."""
        return len(self.labels)

    @cached_property
    def present(self) -> list[int]:
        """The classes that have pictures here, ascending."""
        classes: list[int] = torch.unique(self.labels).tolist()
        return classes

    @cached_property
    def blocks(self) -> ClassBlocks:
        """The pictures by class."""
        labels = self.labels.cpu()
        size = labels.bincount()
        tables = ClassBlocks(labels.argsort(stable=True), size.cumsum(dim=0) - size, size)
        return ClassBlocks(*(table.to(self.labels.device) for table in tables))


class Composition(ABC):
    """Base of the compositions."""

    @abstractmethod
    def image_shape(self, stored: tuple[int, int, int]) -> tuple[int, int, int]:
        """Shape of the images made from stored pictures of shape `[C, H, W]`."""

    @abstractmethod
    def training_batch(self, part: Part, indices: Tensor, generator: torch.Generator) -> Batch:
        """Images made from the pictures at `indices` (int64 `[B]`, on the part's device), bytes."""

    @abstractmethod
    def fixed_batch(self, part: Part, indices: Tensor) -> Batch:
        """Held-out images number `indices` (int64 `[B]`, on the part's device), bytes."""

    def fixed_count(self, part: Part) -> int:
        """Number of held-out images that a part gives."""
        return len(part)

    @property
    def identity(self) -> str:
        """What beside the stored pictures decides the held-out images; enters the data's digest."""
        return ""


class Shifted(Composition):
    """The picture itself; in training shifted at random, as in the authors' recipe."""

    def __init__(self, max_shift: int = 0) -> None:
        self.max_shift = max_shift

    def image_shape(self, stored: tuple[int, int, int]) -> tuple[int, int, int]:
        """As stored."""
        return stored

    def training_batch(self, part: Part, indices: Tensor, generator: torch.Generator) -> Batch:
        """Shifted by up to `max_shift` pixels each way, independently, filled with zeros."""
        images = part.images[indices]
        if self.max_shift:
            shifts = draw_shifts(len(indices), self.max_shift, generator)
            images = shift_images(images, to_device(shifts, images.device), self.max_shift)
        return Batch(images, part.labels[indices])

    def fixed_batch(self, part: Part, indices: Tensor) -> Batch:
        """As stored."""
        return Batch(part.images[indices], part.labels[indices])


class RandomComposition(Composition):
    """Base of the compositions in which random numbers decide how a picture is shown.

    In training they are drawn anew for every batch. Held-out images come in rounds, one image of
    every picture in each: of N pictures, image number k shows picture k % N in round k // N. The
    numbers of round r are drawn for all pictures together, from a generator with the seed
    `fixed_seed` + r, so that image k is the same in every process, on every device and in every
    batch, and nothing but the rounds in use takes memory.
    """

    def __init__(self, fixed_seed: int, rounds: int = 1) -> None:
        self.fixed_seed = fixed_seed
        self.rounds = rounds
        self._kept: dict[tuple[int, int], Tensor] = {}

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """The random numbers of `count` training images, one row each, on the CPU."""

    def draw_fixed(self, count: int, generator: torch.Generator) -> Tensor:
        """The random numbers of `count` held-out images; by default as in training."""
        return self.draw(count, generator)

    @abstractmethod
    def compose(self, part: Part, pictures: Tensor, drawn: Tensor) -> Batch:
        """Images of the pictures at `pictures` (int64 `[B]`), as the rows of `drawn` decide."""

    def training_batch(self, part: Part, indices: Tensor, generator: torch.Generator) -> Batch:
        """Images of the pictures at `indices`, each by draws of its own."""
        drawn = self.draw(len(indices), generator)
        return self.compose(part, indices, to_device(drawn, indices.device))

    def fixed_batch(self, part: Part, indices: Tensor) -> Batch:
        """Held-out images number `indices`.

        Raises:
            IndexError: The part gives fewer held-out images.
        """
        drawn = self._fixed_draws(indices.cpu(), len(part))
        return self.compose(part, indices % len(part), to_device(drawn, indices.device))

    def fixed_count(self, part: Part) -> int:
        """So many images of every picture as there are rounds."""
        return self.rounds * len(part)

    def fixed_round(self, number: int, pictures: int) -> Tensor:
        """The random numbers of one round of held-out images, a row for every picture."""
        key = (number, pictures)
        if key not in self._kept:
            if len(self._kept) >= KEPT_ROUNDS:
                del self._kept[next(iter(self._kept))]
            generator = torch.Generator().manual_seed(self.fixed_seed + number)
            self._kept[key] = self.draw_fixed(pictures, generator)
        return self._kept[key]

    def _fixed_draws(self, numbers: Tensor, pictures: int) -> Tensor:
        """The random numbers of the held-out images `numbers`, a row each."""
        count = self.rounds * pictures
        if numbers.min() < 0 or numbers.max() >= count:
            raise IndexError(
                f"held-out images {int(numbers.min())} to {int(numbers.max())} are asked for, "
                f"expected 0 to {count - 1}"
            )
        rounds = numbers // pictures
        by_round = torch.cat(
            [
                self.fixed_round(number, pictures)[numbers[rounds == number] % pictures]
                for number in torch.unique(rounds).tolist()
            ]
        )
        drawn = torch.empty_like(by_round)
        drawn[rounds.argsort(stable=True)] = by_round
        return drawn


def draw_shifts(count: int, max_shift: int, generator: torch.Generator) -> Tensor:
    """int64 `[count, 2]`, pixels down and to the right, uniform in -max_shift .. max_shift."""
    return torch.randint(2 * max_shift + 1, (count, 2), generator=generator) - max_shift


def to_device(drawn: Tensor, device: torch.device) -> Tensor:
    """Random draws on the device, without waiting for it."""
    if device.type == "cuda":
        return drawn.pin_memory().to(device, non_blocking=True)
    return drawn.to(device)


def shift_images(images: Tensor, shifts: Tensor, max_shift: int, margin: int = 0) -> Tensor:
    """Move images down and to the right, each by a shift of its own; zeros come in.

    What is moved over the edge is lost.

    Args:
        images: `[B, C, H, W]`.
        shifts: int64 `[B, 2]`, pixels down and pixels to the right in -max_shift .. max_shift.
        max_shift: Bound of the shifts.
        margin: Pixels of zeros put around every image first.

    Returns:
        `[B, C, H + 2 margin, W + 2 margin]`.
    """
    batch, channels, height, width = images.shape
    padded = torch.nn.functional.pad(images, [margin + max_shift] * 4)
    device = images.device
    height, width = height + 2 * margin, width + 2 * margin
    rows = max_shift + torch.arange(height, device=device) - shifts[:, :1]  # [B, H']
    columns = max_shift + torch.arange(width, device=device) - shifts[:, 1:]  # [B, W']
    return padded[
        torch.arange(batch, device=device)[:, None, None, None],
        torch.arange(channels, device=device)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
