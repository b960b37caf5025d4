"""Data sets: `Dataset` is what every loader returns, `load_dataset` loads by configuration.

A loader is a function `(config, data_dir: Path) -> Dataset` named in the table of
`capsmodel.config`.
"""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from capsmodel.config import DATASETS, DatasetConfig
from capsmodel.datasets.composition import Composition, Part, Shifted


class DataMissingError(FileNotFoundError):
    """The files of a data set are not where they were looked for."""


class DataCorruptError(ValueError):
    """The files of a data set are there, but are not what they should be."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, a part to learn from and a part to test; whole in memory, as bytes.

    The stored pictures are the images that a model sees, unless a composition makes these of them.

    Raises:
        ValueError: The tensors do not fit together.
    """

    name: str
    train_images: Tensor
    """uint8 `[N, C, H, W]`."""
    train_labels: Tensor
    """int64 `[N]` in 0 .. classes-1."""
    test_images: Tensor
    """uint8 `[M, C, H, W]`."""
    test_labels: Tensor
    """int64 `[M]`."""
    classes: int
    composition: Composition | None = None
    """How training and validation images are made of the stored ones; None shifts them in training
    by up to `max_shift` of the set's settings."""
    test_composition: Composition = field(default_factory=Shifted)
    """How test images are made of the stored ones; by default they are those."""
    targets: int = 1
    """Classes present in an image."""
    facts: dict[str, float] = field(default_factory=dict)
    """What else is worth knowing about the data, by name: shown with a job's results."""
    sha256: str = field(init=False)
    """Digest of images, labels, compositions and the number of classes: identifies the data."""

    def __post_init__(self) -> None:
        _check_part("train", self.train_images, self.train_labels, self.classes)
        _check_part("test", self.test_images, self.test_labels, self.classes)
        test_shape = _shape(self.test_images, self.test_composition)
        if self.image_shape != test_shape:
            raise ValueError(
                f"train images are {list(self.image_shape)}, test images {list(test_shape)}"
            )
        parts = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        made = (
            self.composition.identity if self.composition else "",
            self.test_composition.identity,
        )
        meaning = f"{self.classes} classes, {self.targets} targets: {' / '.join(made)}"
        object.__setattr__(self, "sha256", _digest(parts, meaning))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images that a model sees."""
        return _shape(self.train_images, self.composition or Shifted())

    @property
    def test_part(self) -> Part:
        """The stored test pictures."""
        return Part(self.test_images, self.test_labels)


def load_dataset(config: DatasetConfig, data_dir: Path | None = None) -> Dataset:
    """Load the data set that `config` names.

    Args:
        config: Names the set.
        data_dir: Folder of the data sets, each in a folder of its own; by default that of the
            environment variable CAPS_DATA_DIR, else `./data`.

    Raises:
        DataMissingError: Its files were not found.
        DataCorruptError: Its files are damaged.
    """
    folder = data_dir or Path(os.environ.get("CAPS_DATA_DIR") or "data")
    dataset: Dataset = DATASETS.implementation(config.type)(config, folder)
    return dataset


def _check_part(part: str, images: Tensor, labels: Tensor, classes: int) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise ValueError(
            f"{part} images are {images.dtype} {list(images.shape)}, expected uint8 [N, C, H, W]"
        )
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1] or not len(labels):
        raise ValueError(
            f"{part} labels are {labels.dtype} {list(labels.shape)}, expected int64 "
            f"[{len(images)}], at least one"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(f"{part} labels go from {low} to {high}, expected 0 to {classes - 1}")


def _shape(stored: Tensor, composition: Composition) -> tuple[int, int, int]:
    _, channels, height, width = stored.shape
    return composition.image_shape((channels, height, width))


def _digest(tensors: tuple[Tensor, ...], identity: str) -> str:
    digest = hashlib.sha256(identity.encode())
    for tensor in tensors:
        digest.update(str(list(tensor.shape)).encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()
