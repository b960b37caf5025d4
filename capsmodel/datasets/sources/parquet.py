"""Parquet files in a folder, as a hub's repository holds them and as anyone can write them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from capsmodel.datasets import DataCorruptError
from capsmodel.datasets.sources import Source, Split, extra_packages, listed
from capsmodel.datasets.sources.arrow import BATCH_ROWS, ArrowSplit, Batch, names_of_class_label


class ParquetFolder(Source):
    """A folder of Parquet files, each of one split.

    The file's name begins with the split's (`data/train-00000-of-00002.parquet`), or the file lies
    in a folder of the split's name (`train/0000.parquet`).
    """

    def __init__(self, folder: Path, files: list[Path]) -> None:
        """Take the files, which lie anywhere below `folder`, in the order in which to read them."""
        self._folder = folder
        self._files = files

    def find(self, name: str) -> Split | None:
        """The files of the split, together."""
        files = [file for file in self._files if self._is_of(file, name)]
        return ParquetSplit(files) if files else None

    @property
    def contents(self) -> str:
        """The names of the files."""
        names = [str(file.relative_to(self._folder)) for file in self._files]
        return f"{self._folder} has the Parquet files {listed(names)}"

    def _is_of(self, file: Path, name: str) -> bool:
        folders = file.relative_to(self._folder).parts[:-1]
        return file.name.startswith(name) or name in folders


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
