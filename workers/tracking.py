"""The worker's MLflow calls: all made by one thread, which training never waits for.

Metrics go through the spool; everything else is a task in a queue. A dead server delays both;
what is still unsent when the patience at the end is over is named in the result.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from workers.spool import Point, Spool

if TYPE_CHECKING:
    from mlflow import MlflowClient

Call = Callable[["MlflowClient", str], None]
"""A call to MLflow for one run, by its id."""

logger = logging.getLogger(__name__)

SHIP_EVERY_S = 1.0
RETRY_AFTER_S = 2.0
METRICS_PER_BATCH = 1000
SYSTEM_METRICS_EVERY_S = 5
IMPORT_AFTER_S = 20.0
"""Importing mlflow takes seconds of the interpreter's lock, so it waits for the first metrics, but
no longer than this: a long first step must not leave the run without its tags."""


@dataclass(frozen=True)
class Task:
    """One call to MLflow beyond metrics; repeated until it works or the patience is over."""

    what: str
    call: Call


class Tracker:
    """One run's connection to MLflow."""

    def __init__(self, uri: str, run_id: str, spool: Spool) -> None:
        self.uri = uri
        self.run_id = run_id
        self._spool = spool
        self._tasks: queue.Queue[Task] = queue.Queue()
        self._begun = threading.Event()
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._unsent = ""
        self._thread = threading.Thread(target=self._run, name="tracker", daemon=True)

    def start(self) -> None:
        """Begin to send, once there is something to send."""
        self._thread.start()

    def log(self, values: dict[str, float], step: int) -> None:
        """Record metric values of a step; returns at once."""
        self._spool.append(values, step)
        self._begun.set()

    def submit(self, what: str, call: Call) -> None:
        """Have `call(client, run_id)` made in turn; `what` names it in messages."""
        self._tasks.put(Task(what, call))

    def finish(self, patience_s: float, hurry: Callable[[], object] = lambda: None) -> str:
        """Send all that is left; `complete`, or what could not be sent in time.

        Args:
            patience_s: Seconds to wait for a server that does not answer.
            hurry: Asked a few times a second; once it is true, nothing is waited for any more.
        """
        self._deadline = time.monotonic() + patience_s
        self._closing.set()
        self._begun.set()
        while self._thread.is_alive() and time.monotonic() < self._deadline and not hurry():
            self._thread.join(timeout=0.25)
        if self._thread.is_alive() and time.monotonic() < self._deadline:
            return "incomplete: the job was stopped while its last words were sent"
        if self._thread.is_alive():
            return "incomplete: MLflow does not answer"
        return self._unsent or "complete"

    def _run(self) -> None:
        try:
            self._ship()
        except Exception as error:
            logger.exception("tracking ended")
            self._unsent = f"incomplete: {error}"

    def _ship(self) -> None:
        self._begun.wait(IMPORT_AFTER_S)
        import mlflow

        mlflow.set_tracking_uri(self.uri)
        client = mlflow.MlflowClient(self.uri)
        monitor = self._start_system_metrics()
        self._insist(Task("metrics of earlier attempts", self._send_earlier), client)
        offset = 0
        while True:
            closing = self._closing.is_set()
            offset = self._send_new(client, offset)
            while not self._tasks.empty():
                self._insist(self._tasks.get(), client)
            if closing:
                break
            self._closing.wait(SHIP_EVERY_S)
        if monitor:
            monitor.finish()

    def _start_system_metrics(self) -> Any:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        try:
            monitor = SystemMetricsMonitor(
                self.run_id, sampling_interval=SYSTEM_METRICS_EVERY_S, resume_logging=True
            )
            monitor.start()
        except Exception as error:
            logger.warning("no system metrics: %s", error)
            return None
        return monitor

    def _send_earlier(self, client: "MlflowClient", run_id: str) -> None:
        send_points(client, run_id, self._spool.earlier_points())

    def _send_new(self, client: "MlflowClient", offset: int) -> int:
        points, behind = self._spool.points_from(offset)
        if points:
            self._insist(Task("metrics", lambda c, run_id: send_points(c, run_id, points)), client)
        return behind

    def _insist(self, task: Task, client: "MlflowClient") -> None:
        """Repeat a call while MLflow is away, until the patience at the end is over."""
        waiting = False
        while True:
            try:
                task.call(client, self.run_id)
                return
            except Exception as error:
                problem = f"{task.what}: {_first_line(error)}"
                if not may_pass(error) or time.monotonic() + RETRY_AFTER_S > self._deadline:
                    self._unsent = f"incomplete: {problem}"
                    logger.exception("%s: given up", task.what)
                    return
                if not waiting:
                    logger.warning("waiting for MLflow: %s", problem)
                waiting = True
            time.sleep(RETRY_AFTER_S)


def may_pass(error: Exception) -> bool:
    """Whether the server may be away or overloaded; a refused value stays refused."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "BAD_REQUEST"}
    return isinstance(error, OSError)  # those of requests are among them


def send_points(client: "MlflowClient", run_id: str, points: Iterable[Point]) -> None:
    """Metric points in as few calls as MLflow allows."""
    from mlflow.entities import Metric

    remaining = iter(points)
    while batch := list(islice(remaining, METRICS_PER_BATCH)):
        metrics = [Metric(p.name, p.value, p.timestamp_ms, p.step) for p in batch]
        client.log_batch(run_id, metrics=metrics)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
