"""Rows of Arrow tables, in which Parquet files and the hub's copies are read."""

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from capsmodel.datasets import DataCorruptError
from capsmodel.datasets.sources import Row, Split

BATCH_ROWS = 256
"""Rows that are held in memory at a time before they are decoded."""


class Batch(NamedTuple):
    """Some rows that follow one another in a file."""

    where: str
    """Names the file."""
    first_row: int
    table: Any
    """`pyarrow.Table` or `pyarrow.RecordBatch`."""
    folder: Path
    """Where image files lie to which a row refers by a relative path."""


class ArrowSplit(Split):
    """Base of the splits that come as Arrow tables.

    An image is stored as the hub does, a struct of `bytes` and `path`, or as bytes alone.
    """

    @abstractmethod
    def batches(self, columns: list[str]) -> Iterator[Batch]:
        """Those columns of all rows."""

    def distinct_names(self, label_column: str) -> list[str]:
        """The texts among the labels, sorted."""
        found: set[str] = set()
        for batch in self.batches([label_column]):
            labels = batch.table.column(label_column).to_pylist()
            found.update(label for label in labels if isinstance(label, str))
        return sorted(found)

    def rows(self, image_column: str, label_column: str) -> Iterator[Row]:
        """The rows as they follow in the files."""
        for batch in self.batches([image_column, label_column]):
            images = batch.table.column(image_column).to_pylist()
            labels = batch.table.column(label_column).to_pylist()
            for number, (image, label) in enumerate(
                zip(images, labels, strict=True), start=batch.first_row
            ):
                where = f"row {number} of {batch.where}"
                yield Row(where, _image_file(image, batch.folder, where, image_column), label)


def names_of_class_label(feature: Any) -> list[str] | None:
    """Names of the classes that a feature of the `datasets` library states, if it is of a label."""
    names = getattr(feature, "names", None)
    return None if names is None else list(names)


def _image_file(stored: object, folder: Path, where: str, column: str) -> bytes | Path:
    """The image file in a cell: its bytes, or where they are."""
    if isinstance(stored, bytes):
        return stored
    if isinstance(stored, dict):
        content, path = stored.get("bytes"), stored.get("path")
        if isinstance(content, bytes):
            return content
        if isinstance(path, str):
            return folder / path
    raise DataCorruptError(
        f"{where}: column {column!r} holds {_kind(stored)}, expected an image file: bytes, or a "
        "struct of bytes and path"
    )


def _kind(stored: object) -> str:
    if isinstance(stored, dict):
        return f"a struct of {', '.join(map(str, stored)) or 'nothing'} without bytes and path"
    return "nothing" if stored is None else f"a value of type {type(stored).__name__}"
