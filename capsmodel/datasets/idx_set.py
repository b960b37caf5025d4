"""Sets published like MNIST: four IDX files with checksums, which are downloaded where missing."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from capsmodel.datasets import DataCorruptError, Dataset
from capsmodel.datasets.download import RemoteFile, fetch
from capsmodel.datasets.idx import decompress, parse_idx

SIDE = 28
CLASSES = 10


@dataclass(frozen=True)
class IdxSet:
    """Images of 28x28 pixels in ten classes, a part to learn from and a part to test.

    Its files lie in `<data_dir>/<folder>`, each plain or gzip-compressed.
    """

    title: str
    folder: str
    """Also the set's name in a configuration."""
    md5: Mapping[str, str]
    """Published digests by the names of the plain files: training images and labels, then test
    images and labels."""
    md5_of: Literal["content", "gzip"]
    """What the digests are of: the decompressed bytes, or the .gz files, which leaves those put
    there plain without one."""
    mirrors: tuple[str, ...]
    """Addresses of folders that have the .gz files."""
    per_class: tuple[int, int] | None = None
    """Images of each class in the training and in the test part, if they are equally many: a check
    of files without a digest."""
    hint: str = ""
    """What else a user without the files can do."""

    def load(self, data_dir: Path) -> Dataset:
        """Download what is missing, verify all and load it.

        Raises:
            DataMissingError: Files are missing and could not be downloaded.
            DataCorruptError: A file's content is not the published one.
        """
        folder = data_dir / self.folder
        self._fetch_missing(folder)
        train_images, train_labels, test_images, test_labels = (
            self._parse(folder, name) for name in self.md5
        )
        if self.per_class:
            _check_part(train_images, train_labels, self.per_class[0], f"{folder}: the train files")
            _check_part(test_images, test_labels, self.per_class[1], f"{folder}: the t10k files")
        return Dataset(
            name=self.folder,
            train_images=train_images.unsqueeze(1),
            train_labels=train_labels.to(torch.int64),
            test_images=test_images.unsqueeze(1),
            test_labels=test_labels.to(torch.int64),
            classes=CLASSES,
        )

    def _fetch_missing(self, folder: Path) -> None:
        """A folder that has everything is only read, so it may be read-only."""
        missing = [name for name in self.md5 if _find(folder, name) is None]
        if missing:
            files = [
                RemoteFile(f"{name}.gz", partial(self._verified, name, compressed=True))
                for name in missing
            ]
            fetch(self.title, folder, files, self.mirrors, self.hint)

    def _parse(self, folder: Path, name: str) -> Tensor:
        """The file's values, verified: uint8 `[N, 28, 28]` of images, `[N]` of labels."""
        path = _find(folder, name) or folder / f"{name}.gz"
        compressed = path.suffix == ".gz"
        try:
            content = self._verified(name, path.read_bytes(), str(path), compressed=compressed)
            return parse_idx(content, 3 if "images" in name else 1, str(path))
        except DataCorruptError as error:
            raise DataCorruptError(f"{error}; remove it to have it downloaded again") from error

    def _verified(self, name: str, stored: bytes, source: str, *, compressed: bool) -> bytes:
        """Decompressed content of the file `name`, whose stored bytes come from `source`."""
        if self.md5_of == "gzip" and compressed:
            _check_md5(stored, self.md5[name], source, "the md5")
        content = decompress(stored, source) if compressed else stored
        if self.md5_of == "content":
            _check_md5(content, self.md5[name], source, "the md5 of its decompressed bytes")
        return content


def _find(folder: Path, name: str) -> Path | None:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    return None


def _check_md5(content: bytes, expected: str, source: str, what: str) -> None:
    actual = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if actual != expected:
        raise DataCorruptError(f"{source} is damaged: {what} is {actual}, expected {expected}")


def _check_part(images: Tensor, labels: Tensor, per_class: int, what: str) -> None:
    """Refuse a part that is not `per_class` images of each class."""
    expected = [per_class * CLASSES, SIDE, SIDE]
    if list(images.shape) != expected:
        raise DataCorruptError(f"{what} hold images {list(images.shape)}, expected {expected}")
    counts = torch.bincount(labels, minlength=CLASSES).tolist()
    if counts != [per_class] * CLASSES:
        raise DataCorruptError(
            f"{what} hold {counts} labels of the classes from 0 on, expected {per_class} of each "
            f"of {CLASSES}"
        )
