"""Where labelled images come from that were not made for this library: hub, Parquet, folders."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from capsmodel.datasets import DataMissingError


class Row(NamedTuple):
    """One labelled image as it is stored."""

    where: str
    """Names the row in errors: its file and its number there."""
    image: bytes | Path
    """An image file, PNG or JPEG or another format."""
    label: object


class Split(ABC):
    """The rows of one part of a set, such as its training part."""

    columns: tuple[str, ...]
    """Names of the columns of every row."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of rows."""

    @abstractmethod
    def numbered_names(self, label_column: str) -> list[str] | None:
        """Names of the classes that a numeric label counts, where the set states them."""

    @abstractmethod
    def distinct_names(self, label_column: str) -> list[str]:
        """The texts among the labels, sorted; none where labels are numbers."""

    @abstractmethod
    def rows(self, image_column: str, label_column: str) -> Iterator[Row]:
        """The rows, always in the same order.

        Raises:
            DataCorruptError: A file is damaged, or the image column holds no image files.
        """


class Source(ABC):
    """A set of images with its splits."""

    @abstractmethod
    def find(self, name: str) -> Split | None:
        """The split of that name, if there is one.

        Raises:
            DataCorruptError: Its files are damaged or do not fit together.
        """

    @property
    @abstractmethod
    def contents(self) -> str:
        """What there is, for an error that says that a split is not there."""


@contextmanager
def extra_packages() -> Iterator[None]:
    """Around imports of the packages that only these sources need.

    Raises:
        DataMissingError: One of them is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise DataMissingError(
            f"the data set 'huggingface' needs a package that is not installed ({error}): "
            "pip install 'capsnet-training-service[data]'"
        ) from error


def listed(names: list[str], most: int = 10) -> str:
    """Names for an error's message, not too many of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
