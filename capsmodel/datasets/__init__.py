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


class DataMissingError(FileNotFoundError):
    """The files of a data set are not where they were looked for."""


class DataCorruptError(ValueError):
    """The files of a data set are there, but are not what they should be."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, a part to learn from and a part to test; whole in memory, as bytes.

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
    sha256: str = field(init=False)
    """Digest of all images and labels: identifies the data."""

    def __post_init__(self) -> None:
        _check_part("train", self.train_images, self.train_labels, self.classes)
        _check_part("test", self.test_images, self.test_labels, self.classes)
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise ValueError(
                f"train images are {list(self.train_images.shape[1:])}, "
                f"test images {list(self.test_images.shape[1:])}"
            )
        parts = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        object.__setattr__(self, "sha256", _digest(parts))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        _, channels, height, width = self.train_images.shape
        return channels, height, width


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


def _digest(tensors: tuple[Tensor, ...]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str(list(tensor.shape)).encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()
