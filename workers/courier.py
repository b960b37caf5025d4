"""All calls to MLflow for one run, made in order by one thread.

Metrics are read from the spools; everything else is a task in a queue. A dead server delays both;
what is still unsent when the patience at the end is over is named, and stays on disk.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.spool import PER_BATCH, Outgoing, Point, Spool, ship_all, spools_of, system_spool

if TYPE_CHECKING:
    from mlflow import MlflowClient

Call = Callable[["MlflowClient", str], None]
"""A call to MLflow for one run, by its id."""

logger = logging.getLogger(__name__)

SHIP_EVERY_S = 1.0
RETRY_AFTER_S = 2.0
SAMPLE_EVERY_S = 5.0
"""Seconds between two looks at the machine's load."""
LOOK_EVERY_S = 0.25
REFUSALS = frozenset({400, 404, 409})
"""Status of an answer that will be the same next time, as of a run that somebody deleted."""
IMPORT_AFTER_S = 20.0
"""Importing mlflow takes seconds of a CPU core, so it waits for the first metrics, but no longer
than this: a long first step must not leave the run without its tags."""


@dataclass(frozen=True)
class Task:
    """One call to MLflow beyond metrics; repeated until it works or the patience is over."""

    what: str
    call: Call


@dataclass(frozen=True)
class Errand:
    """What a courier goes for.

    Attributes:
        uri: The tracking server.
        run_id: The run.
        metrics: The attempt's spool.
        earlier: Those of earlier attempts, the newest first.
    """

    uri: str
    run_id: str
    metrics: Path
    earlier: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Finish:
    """Word to a courier in another process that nothing more will come."""

    patience_s: float


class Courier:
    """One run's connection to MLflow."""

    def __init__(self, errand: Errand) -> None:
        self._errand = errand
        files = [f for each in (*reversed(errand.earlier), errand.metrics) for f in spools_of(each)]
        self._spools = [Outgoing(file, errand.run_id) for file in files]
        self._tasks: queue.Queue[Task] = queue.Queue()
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._unsent = ""
        self._doing = ""
        self._problem = ""
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)

    def start(self) -> None:
        """Begin to send, once there is something to send."""
        self._thread.start()

    def submit(self, task: Task) -> None:
        """Have a call made in turn."""
        self._tasks.put(task)

    def finish(self, patience_s: float, hurry: Callable[[], object] = lambda: None) -> str:
        """Send all that is left; `complete`, or what could not be sent in time.

        Args:
            patience_s: Seconds to wait for a server that does not answer.
            hurry: Asked a few times a second; once it is true, nothing is waited for any more.
        """
        self._deadline = time.monotonic() + patience_s
        self._closing.set()
        while self._thread.is_alive() and time.monotonic() < self._deadline and not hurry():
            self._thread.join(timeout=LOOK_EVERY_S)
        if self._thread.is_alive() and time.monotonic() < self._deadline:
            return "incomplete: the job was stopped while its last words were sent"
        if self._thread.is_alive():
            return f"incomplete: {self._held_up()}"
        return self._unsent or "complete"

    def _held_up(self) -> str:
        """What it is at when the patience is over."""
        if not self._doing:
            return "the attempt ended before MLflow was asked for anything"
        return self._problem or f"{self._doing}: still being sent when the attempt had to end"

    def _run(self) -> None:
        try:
            self._ship()
        except Exception as error:
            logger.exception("tracking ended")
            self._unsent = f"incomplete: {error}"

    def _ship(self) -> None:
        self._wait_for_metrics()
        import mlflow

        mlflow.set_tracking_uri(self._errand.uri)
        client = mlflow.MlflowClient(self._errand.uri)
        threading.Thread(target=self._sample, name="sampler", daemon=True).start()
        while True:
            closing = self._closing.is_set()
            ship_all(self._spools, partial(self._send, client))
            while not self._tasks.empty():
                self._insist(self._tasks.get(), client)
            if closing:
                return
            self._closing.wait(SHIP_EVERY_S)

    def _wait_for_metrics(self) -> None:
        until = time.monotonic() + IMPORT_AFTER_S
        metrics = self._errand.metrics
        while time.monotonic() < until and not (metrics.exists() and metrics.stat().st_size):
            if self._closing.wait(LOOK_EVERY_S):
                return

    def _sample(self) -> None:
        """Write the machine's load down until the end; MLflow's own sampler ends at an outage."""
        metrics, earlier = self._errand.metrics, self._errand.earlier
        spool = Spool(system_spool(metrics), [system_spool(each) for each in earlier])
        step = spool.last_step
        monitors = load_monitors()
        while not self._closing.wait(SAMPLE_EVERY_S):
            step += 1
            try:
                spool.append(load_of(monitors), step)
            except Exception:
                logger.exception("the machine's load is not written down any more")
                return

    def _send(self, client: "MlflowClient", points: list[Point]) -> bool:
        return self._insist(
            Task("metrics", lambda client, run_id: send_points(client, run_id, points)), client
        )

    def _insist(self, task: Task, client: "MlflowClient") -> bool:
        """Repeat a call while MLflow is away; False when the patience at the end is over."""
        self._doing, waiting = task.what, False
        while True:
            try:
                task.call(client, self._errand.run_id)
                self._problem = ""
                return True
            except Exception as error:
                problem = f"{task.what}: {_first_line(error)}"
                refused = not may_pass(error)
                if refused or time.monotonic() + RETRY_AFTER_S > self._deadline:
                    self._unsent = f"incomplete: {problem}"
                    logger.exception("%s: given up", task.what)
                    return refused
                if not waiting:
                    logger.warning("waiting for MLflow: %s", problem)
                self._problem, waiting = problem, True
            time.sleep(RETRY_AFTER_S)


def load_monitors() -> list[Any]:
    """MLflow's own, so that names and units are those that its page knows."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = []
    for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
        try:
            monitors.append(kind())
        except (ImportError, RuntimeError):  # of GPUs, where there is none
            logger.debug("no %s", kind.__name__)
    return monitors


def load_of(monitors: Iterable[Any]) -> dict[str, float]:
    """The machine's load now, by the names that MLflow shows."""
    load: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        found = monitor.aggregate_metrics()
        monitor.clear_metrics()
        load |= {f"system/{name}": float(value) for name, value in found.items()}
    return load


def may_pass(error: Exception) -> bool:
    """Whether the server may be away or overloaded; a refused value stays refused."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        # A bare 400 comes from something in between: MLflow itself says what is wrong.
        return error.get_http_status_code() not in REFUSALS or error.error_code == "BAD_REQUEST"
    return isinstance(error, OSError)  # those of requests are among them


def send_points(client: "MlflowClient", run_id: str, points: Iterable[Point]) -> None:
    """Metric points in as few calls as MLflow allows."""
    from mlflow.entities import Metric

    remaining = iter(points)
    while batch := list(islice(remaining, PER_BATCH)):
        metrics = [Metric(p.name, p.value, p.timestamp_ms, p.step) for p in batch]
        client.log_batch(run_id, metrics=metrics)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
