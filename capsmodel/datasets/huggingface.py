"""Any set of labelled images that is on the Hugging Face hub or lies in a folder.

A folder holds Parquet files or image files; what is no folder is a set of the hub. The hub's copies
lie in its usual cache (HF_HOME), which many processes may use at once.
"""

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from capsmodel.config import HuggingFaceConfig
from capsmodel.datasets import DataCorruptError, DataMissingError, Dataset
from capsmodel.datasets.picture import decode
from capsmodel.datasets.sources import Row, Source, Split, extra_packages, listed
from capsmodel.datasets.sources.hub import HUB_ID, Hub
from capsmodel.datasets.sources.image_folder import ImageFolder
from capsmodel.datasets.sources.parquet import ParquetFolder
from capsmodel.datasets.split import hold_out

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels")
TEST_SPLITS = ("test", "validation")
OTHER_SPLITS = ("train", "val", "valid", "dev", "eval", "extra")
"""What splits are called besides; files of theirs are of no other split."""
TEST_FRACTION = 0.2
SPLIT_SEED = 5000


def load(config: HuggingFaceConfig, data_dir: Path) -> Dataset:
    """Load the set that `config` describes.

    Labels are whole numbers from 0 on, or texts (as the folders of an image folder are), which
    count as the training split's texts do once sorted. The training split has images of every
    class. Where no split is there to test on, a fifth of every
    class is held out; no seed of a training changes it.

    Args:
        config: Says where the set is and what it is like.
        data_dir: Where a relative folder is looked for, before the working folder.

    Raises:
        DataMissingError: There is no such set or split, or a package to read it with is missing.
        DataCorruptError: The set is there, but not as `config` describes it, or damaged.
    """
    with extra_packages():
        import PIL  # noqa: F401
    source = _open(config, data_dir)
    train = _named_split(source, config.train_split, "train_split")
    test = _test_split(source, config)
    reader = _Reader(train, config)
    images, labels = reader.read(train)
    reader.check_every_class(labels)
    if test is not None:
        test_images, test_labels = reader.read(test)
    else:
        kept, held_out = hold_out(labels, TEST_FRACTION, SPLIT_SEED)
        if not len(held_out):
            raise DataMissingError(
                f"{source.contents}: too few images of each class to hold out a fifth of them; "
                "name the split to test on in test_split"
            )
        test_images, test_labels = images[held_out], labels[held_out]
        images, labels = images[kept], labels[kept]
    return Dataset(
        name=config.type,
        train_images=images,
        train_labels=labels,
        test_images=test_images,
        test_labels=test_labels,
        classes=config.classes,
    )


def _open(config: HuggingFaceConfig, data_dir: Path) -> Source:
    """The folder that `path` means, else the hub's set."""
    candidates = list(dict.fromkeys((data_dir / config.path, Path(config.path))))
    for folder in candidates:
        if folder.is_dir():
            return _open_folder(folder.absolute(), config)
    if HUB_ID.fullmatch(config.path):
        return Hub(config.path, config.configuration, config.revision)
    raise DataMissingError(
        f"path is {config.path!r}: there is no folder "
        f"{' or '.join(str(folder.absolute()) for folder in candidates)}, and it is no id of a set "
        "on the hub, which is like 'uoft-cs/cifar10'"
    )


def _open_folder(folder: Path, config: HuggingFaceConfig) -> Source:
    """Parquet files wherever they lie below the folder, else image files."""
    if config.configuration:
        if config.configuration in (".", "..") or re.search(r"[/\\]", config.configuration):
            raise DataMissingError(
                f"configuration is {config.configuration!r}: in a folder on this machine it is the "
                f"name of one of the folders right in {folder}, not a path"
            )
        folder = folder / config.configuration
        if not folder.is_dir():
            raise DataMissingError(
                f"configuration is {config.configuration!r}, but there is no folder {folder}"
            )
    files = sorted(
        file
        for file in folder.rglob("*.parquet")
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    if files:
        names = {config.train_split, *TEST_SPLITS, *OTHER_SPLITS}
        if config.test_split is not None:
            names.add(config.test_split)
        return ParquetFolder(folder, files, names)
    images = ImageFolder(folder, config.train_split)
    if images:
        return images
    raise DataMissingError(
        f"{folder} holds neither Parquet files (such as {config.train_split}.parquet) nor images "
        f"in one folder a class ({config.train_split}/<class>/*.png, or <class>/*.png)"
    )


def _named_split(source: Source, name: str, field: str) -> Split:
    split = source.find(name)
    if split is None:
        raise DataMissingError(f"{field} is {name!r}, but {source.contents}")
    if not len(split):
        raise DataMissingError(
            f"{field} is {name!r}, but that split has no rows: {source.contents}"
        )
    return split


def _test_split(source: Source, config: HuggingFaceConfig) -> Split | None:
    """The split to test on; None where a part of the training split is to be held out."""
    if config.test_split is not None:
        return _named_split(source, config.test_split, "test_split")
    for name in TEST_SPLITS:
        if name != config.train_split and source.find(name) is not None:
            return _named_split(source, name, "test_split")
    return None


class _Reader:
    """Reads splits into tensors; the training split says what the labels mean."""

    def __init__(self, train: Split, config: HuggingFaceConfig) -> None:
        self._config = config
        self._image_column = _column(train, config.image_column, IMAGE_COLUMNS, "image_column")
        self._label_column = _column(train, config.label_column, LABEL_COLUMNS, "label_column")
        self._names = train.numbered_names(self._label_column)
        texts = [] if self._names else train.distinct_names(self._label_column)
        self._numbers = {text: number for number, text in enumerate(texts)}
        known = self._names or texts
        if known and len(known) != config.classes:
            raise DataCorruptError(
                f"classes is {config.classes}, but column {self._label_column!r} has {len(known)} "
                f"classes: {listed(known)}"
            )

    def read(self, split: Split) -> tuple[Tensor, Tensor]:
        """Decoded images, uint8 `[N, C, H, W]`, and labels, int64 `[N]`, of a split."""
        self._check_columns(split)
        shape = self._config.image_shape
        images = np.empty((len(split), *shape), np.uint8)
        labels = np.empty(len(split), np.int64)
        for index, row in enumerate(split.rows(self._image_column, self._label_column)):
            images[index] = decode(row.image, shape, resize=self._config.resize, where=row.where)
            labels[index] = self._class_number(row)
        return torch.from_numpy(images), torch.from_numpy(labels)

    def check_every_class(self, labels: Tensor) -> None:
        """Refuse labels of a training split among which a class is missing."""
        counts = torch.bincount(labels, minlength=self._config.classes)
        missing = (counts == 0).nonzero().flatten().tolist()
        if missing:
            known = self._names or list(self._numbers)
            names = [f"{number} ({known[number]})" if known else str(number) for number in missing]
            raise DataCorruptError(
                f"classes is {self._config.classes}, but the split to learn from has no image of "
                f"{len(missing)} of them: {listed(names)}"
            )

    def _check_columns(self, split: Split) -> None:
        """Refuse a split whose columns are others than the training split's."""
        _column(split, self._image_column, (), "image_column")
        _column(split, self._label_column, (), "label_column")
        names = split.numbered_names(self._label_column)
        if names and self._names and names != self._names:
            raise DataCorruptError(
                f"the classes of column {self._label_column!r} are {listed(names)} in the split to "
                f"test on, but {listed(self._names)} in the split to learn from"
            )

    def _class_number(self, row: Row) -> int:
        """The label as a number in 0 .. classes-1."""
        label = self._numbers.get(row.label) if isinstance(row.label, str) else row.label
        is_boolean = isinstance(label, bool)
        if isinstance(label, int) and not is_boolean and 0 <= label < self._config.classes:
            return label
        expected = f"a whole number from 0 to {self._config.classes - 1}"
        if self._numbers:
            expected = f"one of {listed(list(self._numbers))}"
        raise DataCorruptError(f"{row.where}: the label is {row.label!r}, expected {expected}")


def _column(split: Split, explicit: str | None, usual: tuple[str, ...], field: str) -> str:
    """The column that the user names, or the first usual one that there is."""
    for name in (explicit,) if explicit else usual:
        if name in split.columns:
            return name
    wanted = repr(explicit) if explicit else " or ".join(map(repr, usual))
    raise DataCorruptError(
        f"there is no column {wanted} among {listed(list(split.columns))}: name one in {field}"
    )
