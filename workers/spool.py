"""Metric points on disk, in order, before they are sent: a line a step.

Written by the training thread, which therefore never waits for a server; read by the shipper. A
training that is resumed, in the same attempt or a later one, leaves out the points that are there
already; a later attempt sends the earlier ones' lines again (MLflow ignores an identical point). So
every point is there once.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Point(NamedTuple):
    """One value of one metric."""

    name: str
    value: float
    timestamp_ms: int
    step: int


class Spool:
    """The attempt's own file, and those of earlier attempts."""

    def __init__(self, path: Path, earlier: list[Path]) -> None:
        self._earlier = [*reversed(earlier)]
        self._known = {(p.name, p.step) for file in [*self._earlier, path] for p in _read(file)}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = path.open("a", buffering=1)
        if not _ends_whole(path):  # a kill tore the last line off
            self._file.write("\n")

    def append(self, values: dict[str, float], step: int) -> None:
        """Add the values that no earlier attempt has for this step."""
        new = {name: value for name, value in values.items() if (name, step) not in self._known}
        if new:
            line = {"t": int(time.time() * 1000), "step": step, "values": new}
            self._file.write(json.dumps(line) + "\n")

    def earlier_points(self) -> Iterator[Point]:
        """All points of earlier attempts, the oldest first."""
        for file in self._earlier:
            yield from _read(file)

    def points_from(self, offset: int) -> tuple[list[Point], int]:
        """The attempt's own points from a byte offset on, and the offset behind them."""
        return points_from(self._path, offset)

    def close(self) -> None:
        """Close the file; all that was appended is in it."""
        self._file.close()


def points_from(path: Path, offset: int) -> tuple[list[Point], int]:
    """A spool's points from a byte offset on, and the offset behind them; none without a file."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read()
    except FileNotFoundError:
        return [], offset
    whole = content[: content.rfind(b"\n") + 1]
    points = [p for line in whole.splitlines() for p in _points(line)]
    return points, offset + len(whole)


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
