"""Expanded MNIST: where the digits are placed, in training and when they are held out."""

import hashlib

import pytest
import torch

from capsmodel.config import ExpandedMnistConfig
from capsmodel.datasets import load_dataset
from capsmodel.datasets.composition import Part
from capsmodel.datasets.expanded_mnist import Placed


def dots(pictures: int) -> Part:
    """Pictures of one pixel in the middle."""
    images = torch.zeros(pictures, 1, 28, 28, dtype=torch.uint8)
    images[:, 0, 14, 14] = 200
    return Part(images, torch.arange(pictures) % 10)


def places(images: torch.Tensor) -> torch.Tensor:
    """Where the pixel of each picture of `dots` came to, from the middle: `[B, 2]`."""
    _, _, rows, columns = images.nonzero(as_tuple=True)
    return torch.stack([rows, columns], dim=1) - 20


def training_batch(max_shift: int, part: Part, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    return Placed(max_shift).training_batch(part, torch.arange(len(part)), generator)


def test_the_whole_picture_lies_on_the_canvas() -> None:
    images = torch.randint(1, 256, (50, 1, 28, 28), dtype=torch.uint8)
    part = Part(images, torch.zeros(50, dtype=torch.int64))
    placed = training_batch(6, part).images
    assert (placed.shape, placed.dtype) == ((50, 1, 40, 40), torch.uint8)
    for image, picture in zip(placed[:, 0], images[:, 0], strict=True):
        rows, columns = image.nonzero(as_tuple=True)
        top, left = rows.min(), columns.min()
        assert torch.equal(image[top : top + 28, left : left + 28], picture)
        assert image.long().sum() == picture.long().sum()


@pytest.mark.parametrize("max_shift", [0, 2, 6])
def test_training_places_are_uniform_up_to_the_shift(max_shift) -> None:
    batch = training_batch(max_shift, dots(8000))
    side = 2 * max_shift + 1
    cells = (places(batch.images) + max_shift) @ torch.tensor([side, 1])
    counts = torch.bincount(cells, minlength=side**2)
    assert len(counts) == side**2
    expected = 8000 / side**2
    freedom = side**2 - 1
    assert ((counts - expected) ** 2 / expected).sum() <= freedom + 5 * (2 * freedom) ** 0.5


def test_held_out_places_go_up_to_6_whatever_the_training_does() -> None:
    part = dots(2000)
    first, second = (Placed(shift).fixed_batch(part, torch.arange(2000)) for shift in (0, 6))
    assert torch.equal(first.images, second.images)
    seen = places(first.images)
    assert (seen.min(), seen.max()) == (-6, 6)
    assert len(seen.unique(dim=0)) == 169
    assert first.labels.tolist() == part.labels.tolist()
    assert first.parts is None


def test_held_out_places_do_not_depend_on_the_batch() -> None:
    part, placed = dots(30), Placed()
    whole = placed.fixed_batch(part, torch.arange(30)).images
    for indices in torch.randperm(30).split(7):
        assert torch.equal(placed.fixed_batch(part, indices).images, whole[indices])
    assert placed.fixed_count(part) == 30


def test_held_out_places_are_the_same_in_every_process() -> None:
    images = Placed().fixed_batch(dots(30), torch.arange(30)).images
    digest = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    assert digest == "8be0670c44cbec5cf5bdcf98e5bd689b2af799fff09abf86d186fdf5a1e73bc6"


def test_the_generator_decides_the_training_places() -> None:
    part = dots(30)
    batches = [training_batch(6, part, seed).images for seed in (1, 1, 2)]
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])


def test_the_loaded_set_stays_small_in_memory(mnist_folder) -> None:
    data = load_dataset(ExpandedMnistConfig(max_shift=3), mnist_folder)
    assert data.train_images.shape == (60_000, 1, 28, 28)
    assert data.image_shape == (1, 40, 40)
    assert data.name == "expanded-mnist"
    assert isinstance(data.composition, Placed)
    assert data.composition.max_shift == 3
    test = data.test_composition.fixed_batch(data.test_part, torch.arange(100))
    assert torch.equal(test.labels, data.test_labels[:100])
    assert torch.equal(
        test.images.long().sum(dim=(1, 2, 3)), data.test_images[:100].long().sum(dim=(1, 2, 3))
    )
