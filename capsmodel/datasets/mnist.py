"""MNIST (LeCun, Cortes, Burges): four IDX files in `<data_dir>/mnist`, plain or gzip-compressed."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from capsmodel.config import MnistConfig
from capsmodel.datasets import DataCorruptError, DataMissingError, Dataset
from capsmodel.datasets.idx import parse_idx, read_bytes

MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
"""Published md5 of each file once decompressed: gzip containers made afresh differ."""


def load(config: MnistConfig, data_dir: Path) -> Dataset:
    """Load and verify the whole of MNIST.

    Raises:
        DataMissingError: A file is missing.
        DataCorruptError: A file's content is not the published one.
    """
    folder = data_dir / "mnist"
    paths = {name: _find(folder, name) for name in MD5}
    return Dataset(
        name=config.type,
        train_images=_images(paths["train-images-idx3-ubyte"]),
        train_labels=_labels(paths["train-labels-idx1-ubyte"]),
        test_images=_images(paths["t10k-images-idx3-ubyte"]),
        test_labels=_labels(paths["t10k-labels-idx1-ubyte"]),
        classes=config.classes,
    )


def _images(path: Path) -> Tensor:
    return parse_idx(_verified(path), 3, str(path)).unsqueeze(1)


def _labels(path: Path) -> Tensor:
    return parse_idx(_verified(path), 1, str(path)).to(torch.int64)


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise DataMissingError(
        f"MNIST: {name} (or {name}.gz) is not in {folder.absolute()}. That folder must hold "
        f"{', '.join(MD5)}, each plain or as .gz; set CAPS_DATA_DIR to the folder that contains "
        "mnist/, or use the data set 'mnist-5k', which needs no files"
    )


def _verified(path: Path) -> bytes:
    content = read_bytes(path)
    expected = MD5[path.name.removesuffix(".gz")]
    actual = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if actual != expected:
        raise DataCorruptError(
            f"{path} is damaged: the md5 of its decompressed bytes is {actual}, expected {expected}"
        )
    return content
