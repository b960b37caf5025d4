"""Metric points on disk, in order, before they are sent: a line a step.

Written by the training thread, which therefore never waits for a server; read by whoever sends
them: the attempt's own shipper, a later attempt's, or the control plane after the last one. How far
a file is sent stands beside it. A training that is resumed leaves out the points that are there
already, and MLflow ignores a point that it has. So every point is there once.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

PER_BATCH = 1000
"""Metric points that MLflow takes in one call."""


class Point(NamedTuple):
    """One value of one metric."""

    name: str
    value: float
    timestamp_ms: int
    step: int


Send = Callable[[list[Point]], bool]
"""Sends points; False if it gave up for now, so that they are to be sent another time."""


class Spool:
    """The attempt's own file, and those of earlier attempts.

    Attributes:
        path: The attempt's own.
        earlier: Those of earlier attempts, the newest first.
    """

    def __init__(self, path: Path, earlier: list[Path]) -> None:
        self.path = path
        self.earlier = earlier
        self._known = {(p.name, p.step) for file in [*earlier, path] for p in _read(file)}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", buffering=1)
        if not _ends_whole(path):  # a kill tore the last line off
            self._file.write("\n")

    @property
    def last_step(self) -> int:
        """The highest step of a point that was there when this was opened; -1 if there was none."""
        return max((step for _, step in self._known), default=-1)

    def append(self, values: dict[str, float], step: int) -> None:
        """Add the values that no earlier attempt has for this step."""
        new = {name: value for name, value in values.items() if (name, step) not in self._known}
        if new:
            line = {"t": int(time.time() * 1000), "step": step, "values": new}
            self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Close the file; all that was appended is in it."""
        self._file.close()


class Outgoing:
    """What a spool holds that a run in MLflow may lack; how far it is sent is noted on disk."""

    def __init__(self, spool: Path, run_id: str) -> None:
        """Go on where the last sender to this run left off.

        Args:
            spool: The file; it may come to be later.
            run_id: The run. What was sent to another one counts for nothing.
        """
        self._spool = spool
        self._run_id = run_id
        self._note = spool.with_suffix(".sent")
        self._offset = self._noted()

    def ship(self, send: Send, until: float = math.inf) -> bool:
        """Send the rest, batch by batch.

        Args:
            send: Sends a batch.
            until: When to leave off, by the monotonic clock.

        Returns:
            Whether all of it is sent.
        """
        while True:
            points, behind = points_from(self._spool, self._offset, PER_BATCH)
            if behind == self._offset:
                return True
            if time.monotonic() >= until or (points and not send(points)):
                return False
            self._offset = behind
            self._write_note()

    def _noted(self) -> int:
        try:
            note = json.loads(self._note.read_bytes())
            offset = int(note["offset"]) if note["run"] == self._run_id else 0
            return offset if 0 <= offset <= self._spool.stat().st_size else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0  # all is sent again, which costs time and nothing else

    def _write_note(self) -> None:
        temporary = self._note.with_name(f".{self._note.name}.{os.getpid()}")
        try:
            temporary.write_text(json.dumps({"run": self._run_id, "offset": self._offset}))
            temporary.replace(self._note)
        except OSError:  # a full disk: the same points are sent again one day
            temporary.unlink(missing_ok=True)


def spools_of(metrics: Path) -> list[Path]:
    """An attempt's spools, by that of the training: its metrics, and those of its machine."""
    return [metrics, system_spool(metrics)]


def system_spool(metrics: Path) -> Path:
    """Where the load of the machine is written down, beside an attempt's metrics."""
    return metrics.with_name(f"system-{metrics.name}")


def ship_all(spools: Iterable[Outgoing], send: Send, until: float = math.inf) -> bool:
    """Send what several spools hold, in their order; whether all of it is sent."""
    return all(spool.ship(send, until) for spool in spools)


def points_from(path: Path, offset: int, most: float = math.inf) -> tuple[list[Point], int]:
    """A spool's points from a byte offset on, and the offset behind them; none without a file.

    Args:
        path: The spool.
        offset: Where a line begins.
        most: Points to stop at; a line is read whole, so one that holds more gives more.
    """
    points: list[Point] = []
    try:
        with path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):  # it is being written
                    break
                found = _points(line)
                if points and len(points) + len(found) > most:
                    break
                points += found
                offset += len(line)
    except FileNotFoundError:
        pass
    return points, offset


def _ends_whole(path: Path) -> bool:
    content = path.read_bytes()
    return not content or content.endswith(b"\n")


def _read(path: Path) -> Iterator[Point]:
    if not path.exists():
        return
    for line in path.read_bytes().splitlines():
        yield from _points(line)


def _points(line: bytes) -> list[Point]:
    try:
        fields = json.loads(line)
        return [Point(n, v, fields["t"], fields["step"]) for n, v in fields["values"].items()]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []  # a line torn by a kill
