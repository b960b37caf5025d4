"""Points at which a test may kill this process: before and after whatever others can see.

Every commit, every call to Ray or MLflow and every document in an attempt's folder stands in a
`with crashing(name)`. In service nothing happens there. A test sets

    CAPS_CRASH_POINT=before:commit.start-attempt     SIGKILL to this process, before the body
    CAPS_CRASH_POINT=after:ray.submit:3              after it, when that is reached the third time
    CAPS_CRASH_TRACE=FILE                            a line in FILE for each point that is reached;
                                                     processes that share it count together

or, in the same process, the hook `reached`, which may raise. The standard library alone: workers
and control plane both stand on this module.
"""

import os
import signal
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Literal

POINT_VARIABLE = "CAPS_CRASH_POINT"
TRACE_VARIABLE = "CAPS_CRASH_TRACE"

When = Literal["before", "after"]

POINTS: dict[str, str] = {
    "commit.add": "a job is accepted",
    "commit.set-desired": "a user asks to run, pause or cancel",
    "commit.retry": "a user reopens a training that ended",
    "commit.reopen": "a user reopens a search that ended",
    "commit.request-delete": "a user deletes a job",
    "commit.remove": "a deleted job's rows go",
    "commit.start-attempt": "an attempt begins, before Ray hears of it",
    "commit.update": "whatever else the reconciler decides",
    "ray.look": "Ray is asked for its session, jobs and nodes",
    "ray.submit": "Ray is asked to run an attempt",
    "ray.stop": "Ray is asked to stop an attempt",
    "mlflow.create-experiment": "a job's experiment is made",
    "mlflow.create-run": "a job's run is made",
    "mlflow.log-params": "a run gets its parameters",
    "mlflow.log-metrics": "a run gets points that a dead worker left",
    "mlflow.set-tag": "a run is told the job's state",
    "mlflow.set-terminated": "a run is closed",
    "folder.attempt": "attempt.json, the worker's orders",
    "folder.stop": "the stop flag",
    "folder.kill": "the kill flag",
    "folder.remove": "a deleted job's folder goes",
    "worker.register": "a process of the attempt says who it is",
    "worker.progress": "progress.json, the heartbeat",
    "worker.checkpoint": "a checkpoint",
    "worker.outcome": "one of several workers has ended",
    "worker.result": "result.json, the worker's last word",
}
"""Every point, and what is done there."""

reached: Callable[[str], None] | None = None
"""Called with `before:<name>` and `after:<name>`. What it raises before a commit leaves nothing of
the commit, and what it raises after one leaves all of it."""

_times: Counter[str] = Counter()


class crashing:  # noqa: N801 - reads as the statement that it is
    """`with crashing("ray.submit"): ...`; the point after is reached if the body raises nothing.

    Around a transaction it must be the outer one of the two, since only then the point after comes
    after the commit.
    """

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        """Raises ValueError unless the name is one of POINTS."""
        if name not in POINTS:
            raise ValueError(f"no crash point {name!r}: POINTS in {__name__} lists all")
        self._name = name

    def __enter__(self) -> None:
        reach("before", self._name)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            reach("after", self._name)


def reach(when: When, name: str) -> None:
    """Say that this point is reached; where a test wants it, this call does not return."""
    if reached is not None:
        reached(f"{when}:{name}")
    environment = os.environ
    if TRACE_VARIABLE in environment or POINT_VARIABLE in environment:
        _reach_as_asked(f"{when}:{name}")


def _reach_as_asked(point: str) -> None:
    if trace := os.environ.get(TRACE_VARIABLE):
        with open(trace, "a") as file:
            file.write(f"{point}\n")
    if (asked := os.environ.get(POINT_VARIABLE)) is None:
        return
    where, time = _parsed(asked)
    if where != point:
        return
    _times[point] += 1
    if (_lines_of(point, trace) if trace else _times[point]) == time:
        os.kill(os.getpid(), signal.SIGKILL)


def _lines_of(point: str, trace: str) -> int:
    """How often the processes that share this file have reached a point."""
    with open(trace) as file:
        return file.read().split().count(point)


def _parsed(asked: str) -> tuple[str, int]:
    """The point and the time, counted from 1; a typing error must not pass for a survival."""
    when, _, rest = asked.partition(":")
    name, _, time = rest.partition(":")
    if when not in ("before", "after") or name not in POINTS or not (time or "1").isdecimal():
        raise ValueError(
            f"{POINT_VARIABLE}={asked}: expected before:NAME or after:NAME, then :TIME if wanted, "
            f"with a NAME of POINTS in {__name__}"
        )
    return f"{when}:{name}", int(time or 1)
