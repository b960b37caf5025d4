"""Sets of the Hugging Face hub, which the `datasets` library downloads into its usual cache."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from capsmodel.datasets import DataCorruptError, DataMissingError
from capsmodel.datasets.download import offline
from capsmodel.datasets.sources import Source, Split, extra_packages, listed
from capsmodel.datasets.sources.arrow import BATCH_ROWS, ArrowSplit, Batch, names_of_class_label

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
PROBE_SECONDS = 10
"""How long the hub may take to answer at all. Its client would ask again for minutes."""

logger = logging.getLogger(__name__)


class Hub(Source):
    """A set of the hub, or the copy of it in the hub's cache on this machine."""

    def __init__(self, path: str, configuration: str | None, revision: str | None) -> None:
        """Download the set where its newest copy is not in the cache yet.

        Without a connection the cache's copy is taken.

        Args:
            path: Id of the set.
            configuration: Which of its configurations.
            revision: Commit, tag or branch; the main branch by default.

        Raises:
            DataMissingError: The hub was not reached and the cache has no copy, or the hub has no
                such set.
            DataCorruptError: Its files cannot be read.
        """
        self._path = path
        self._splits = _load(path, configuration, revision)

    def find(self, name: str) -> Split | None:
        """The split of that name."""
        if name not in self._splits:
            return None
        return HubSplit(f"{self._path} ({name})", self._splits[name])

    @property
    def contents(self) -> str:
        """The names of the splits."""
        return f"{self._path} has the splits {listed(list(self._splits))}"


class HubSplit(ArrowSplit):
    """A split of a set in the hub's cache; its rows stay on disk."""

    def __init__(self, where: str, split: Any) -> None:
        """Take a `datasets.Dataset`; `where` names it in errors."""
        self._where = where
        self._split = split
        self.columns = tuple(split.column_names)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._split)

    def numbered_names(self, label_column: str) -> list[str] | None:
        """Names that a ClassLabel states."""
        return names_of_class_label(self._split.features.get(label_column))

    def batches(self, columns: list[str]) -> Iterator[Batch]:
        """The rows as Arrow tables, in which images are not decoded."""
        tables = self._split.select_columns(columns).with_format("arrow")
        row = 0
        for table in tables.iter(batch_size=BATCH_ROWS):
            yield Batch(self._where, row, table, Path())
            row += table.num_rows


def _load(path: str, configuration: str | None, revision: str | None) -> Any:
    """All splits: a `datasets.DatasetDict`."""
    with extra_packages():
        import datasets
        from datasets.exceptions import DatasetGenerationError
        from huggingface_hub.utils import disable_progress_bars
        from pyarrow import ArrowException
    datasets.disable_progress_bars()
    disable_progress_bars()
    reachable = _is_reachable()
    try:
        with _offline(not reachable):
            splits = datasets.load_dataset(path, configuration, revision=revision)
    except (DatasetGenerationError, ArrowException) as error:
        cause = error.__cause__ or error
        raise DataCorruptError(f"{path}: its files cannot be read: {_one_line(cause)}") from error
    except Exception as error:  # the client has many classes of errors, other ones in each version
        raise DataMissingError(_why_missing(path, reachable, error)) from error
    if not reachable:
        _check_commit(path, revision, splits)
    return splits


def _is_reachable() -> bool:
    """Whether the hub answers at all; asked once, by its client and so through the same proxies."""
    if offline():
        return False
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except Exception as error:  # of the client's own library, and where HF_HUB_OFFLINE is set
        logger.warning("the hub %s cannot be reached: %s", constants.ENDPOINT, _one_line(error))
        return False
    return True


@contextmanager
def _offline(offline: bool) -> Iterator[None]:
    """With `offline` the libraries ask the cache alone, as if HF_HUB_OFFLINE had been set."""
    from datasets import config
    from huggingface_hub import constants

    switches = (config, constants)
    before = [module.HF_HUB_OFFLINE for module in switches]
    for module, known in zip(switches, before, strict=True):
        module.HF_HUB_OFFLINE = known or offline
    try:
        yield
    finally:
        for module, known in zip(switches, before, strict=True):
            module.HF_HUB_OFFLINE = known


def _check_commit(path: str, revision: str | None, splits: Any) -> None:
    """Refuse a cached copy of another commit than is asked for: the cache gives its newest one."""
    files = [Path(file["filename"]) for split in splits.values() for file in split.cache_files]
    folders = sorted({str(file.parent) for file in files})
    logger.warning("%s is taken from the hub's cache: %s", path, listed(folders))
    wanted = revision if revision and COMMIT.fullmatch(revision) else ""
    if not all(wanted in folder for folder in folders):
        raise DataMissingError(
            f"{path}: the hub cannot be reached, and its cache on this machine has another "
            f"revision than {wanted}: {listed(folders)}"
        )


def _why_missing(path: str, reachable: bool, error: Exception) -> str:
    if reachable:
        problem = f"the hub does not give it: {_one_line(error)}"
    else:
        problem = (
            "the hub cannot be reached, and its cache on this machine has no copy "
            f"({_one_line(error)})"
        )
    return (
        f"{path}: {problem}. Instead of a hub id, `path` may name a folder on this machine that "
        "has the set's Parquet files, or images in one folder a class"
    )


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
