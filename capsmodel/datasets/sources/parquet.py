"""Parquet files in a folder, as a hub's repository holds them and as anyone can write them."""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from capsmodel.datasets import DataCorruptError
from capsmodel.datasets.sources import Source, Split, extra_packages, listed
from capsmodel.datasets.sources.arrow import BATCH_ROWS, ArrowSplit, Batch, names_of_class_label

SHARD = r"[-._][0-9]+([-._].*)?"
"""What may follow a split's name in a file's: `-00000-of-00002`, `_0001`, `.3`."""


class ParquetFolder(Source):
    """A folder of Parquet files, each of one split.

    The file's name is the split's, alone or with the number of a shard
    (`data/train-00000-of-00002.parquet`), or else the file lies in a folder of the split's name
    (`train/0000.parquet`). The file's own name decides before a folder's, the nearest folder's
    before another one's, and a long name before a shorter one.
    """

    def __init__(self, folder: Path, files: list[Path], names: Collection[str]) -> None:
        """Sort the files by their splits.

        Args:
            folder: The set's folder.
            files: Files anywhere below it, in the order in which to read them.
            names: What splits are called here: the ones to find, and others that are none of them.
        """
        self._folder = folder
        self._files = files
        longest_first = sorted(names, key=len, reverse=True)
        self._splits: dict[str, list[Path]] = {}
        for file in files:
            name = _split_of(file.relative_to(folder), longest_first)
            if name is not None:
                self._splits.setdefault(name, []).append(file)

    def find(self, name: str) -> Split | None:
        """The files of the split, together.

        Raises:
            DataCorruptError: A file is damaged, or the files are of several configurations.
        """
        files = self._splits.get(name)
        if not files:
            return None
        self._check_one_configuration(name, files)
        return ParquetSplit(files)

    @property
    def contents(self) -> str:
        """The names of the files."""
        names = [str(file.relative_to(self._folder)) for file in self._files]
        return f"{self._folder} has the Parquet files {listed(names)}"

    def _check_one_configuration(self, split: str, files: list[Path]) -> None:
        """Refuse files of a split that lie beside each other in folders that are no split's."""
        found = {_configuration(file.relative_to(self._folder), split) for file in files}
        if len(found) > 1:
            raise DataCorruptError(
                f"the split {split!r} is in several folders of {self._folder}: "
                f"{listed(sorted(map(str, found)))}. Name one of them in the setting "
                "`configuration`, or set `path` to the one to take"
            )


def _split_of(file: Path, names: list[str]) -> str | None:
    """The split of a file, named by its path in the set; the first name that fits is taken."""
    for name in names:
        if file.stem == name or re.fullmatch(re.escape(name) + SHARD, file.stem):
            return name
    for folder in reversed(file.parts[:-1]):
        if folder in names:
            return folder
    return None


def _configuration(file: Path, split: str) -> Path:
    """The folder in which the file's split lies; what is below the split's own folder is of it."""
    folders = file.parts[:-1]
    return Path(*folders[: folders.index(split)] if split in folders else folders)


class ParquetSplit(ArrowSplit):
    """The rows of some Parquet files; they are read in small batches."""

    def __init__(self, files: list[Path]) -> None:
        """Read what the files say of their rows.

        Raises:
            DataCorruptError: A file is damaged.
        """
        self._files = files
        self._length = 0
        schemas = []
        for path in files:
            with _opened(path) as file:
                schemas.append(file.schema_arrow)
                self._length += file.metadata.num_rows
        shared = set.intersection(*(set(schema.names) for schema in schemas))
        self.columns = tuple(name for name in schemas[0].names if name in shared)
        self._features = [_features(schema) for schema in schemas]

    def __len__(self) -> int:
        """Number of rows of all files."""
        return self._length

    def numbered_names(self, label_column: str) -> list[str] | None:
        """Names that a ClassLabel states.

        Raises:
            DataCorruptError: The files state different ones.
        """
        stated = [names_of_class_label(features.get(label_column)) for features in self._features]
        for path, names in zip(self._files, stated, strict=True):
            if names != stated[0]:
                raise DataCorruptError(
                    f"the classes of column {label_column!r} are {names} in {path}, but "
                    f"{stated[0]} in {self._files[0]}"
                )
        return stated[0]

    def batches(self, columns: list[str]) -> Iterator[Batch]:
        """The rows, file after file."""
        for path in self._files:
            row = 0
            with _opened(path) as file:
                for table in file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
                    yield Batch(str(path), row, table, path.parent)
                    row += table.num_rows


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`; what fails on reading it is told with its name."""
    with extra_packages():
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    try:
        with ParquetFile(path) as file:
            yield file
    except (ArrowException, OSError) as error:
        raise DataCorruptError(f"{path} is no whole Parquet file: {error}") from error


def _features(schema: Any) -> dict[str, Any]:
    """Features that the `datasets` library wrote into the file; none where another one wrote it."""
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    with extra_packages():
        from datasets import Features
    return dict(Features.from_arrow_schema(schema))
