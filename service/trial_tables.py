"""The trials of searches, as read for the API: each file's new lines alone, since it only grows."""

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from workers.attempt import AttemptFolder
from workers.trials import Line, Trial, trials_file

KEPT = 16
"""Tables in memory; one of 1,000 trials takes a few megabytes."""


@dataclass
class _Table:
    """What was read of one file."""

    inode: int
    offset: int = 0
    """Where the next whole line begins."""
    trials: dict[int, Trial] = field(default_factory=dict)

    def read_on(self, file: BinaryIO) -> None:
        """Take in the whole lines that were added."""
        file.seek(self.offset)
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self.offset += len(whole)
        for text in whole.splitlines():
            try:
                line = Line.model_validate_json(text)
            except ValidationError:
                continue
            if line.trial is not None:
                self.trials[line.trial.number] = line.trial


class TrialTables:
    """Reads the trials of searches; may be asked by several threads at once."""

    def __init__(self) -> None:
        self._tables: OrderedDict[Path, _Table] = OrderedDict()
        self._lock = threading.Lock()

    def trials(self, storage: Path, search: str, attempt: int) -> list[Trial]:
        """By number, as the attempt knows them; as the one before did while it tells nothing yet.

        A folder that can't be read is as an empty one.
        """
        if attempt == 0:
            return []
        try:
            folder = AttemptFolder(storage, search, attempt)
            for each in [folder, *folder.earlier()]:
                path = trials_file(each)
                if path.exists():
                    return self._read(path)
        except OSError:
            return []
        return []

    def _read(self, path: Path) -> list[Trial]:
        with self._lock, path.open("rb") as file:
            status = os.fstat(file.fileno())
            table = self._tables.get(path)
            if table is None or table.inode != status.st_ino or table.offset > status.st_size:
                table = self._tables[path] = _Table(status.st_ino)
            if table.offset < status.st_size:
                table.read_on(file)
            self._tables.move_to_end(path)
            while len(self._tables) > KEPT:
                self._tables.popitem(last=False)
            return sorted(table.trials.values(), key=lambda trial: trial.number)
