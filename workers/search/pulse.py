"""The heartbeat of a search: once a second its progress, now and then its trials to MLflow."""

import logging
import threading
import time
from typing import TYPE_CHECKING, Literal, Self

from workers import uploads
from workers.attempt import AttemptFolder, Progress
from workers.child_runs import ChildRuns
from workers.search.book import SearchBook
from workers.stop import StopSignal
from workers.tracking import Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

BEAT_S = 1.0
SHIP_EVERY_S = 2.0


class Pulse:
    """A thread beside Tune's loop.

    Attributes:
        phase: What the search does now.
    """

    def __init__(
        self, folder: AttemptFolder, book: SearchBook, tracker: Tracker, children: ChildRuns
    ) -> None:
        self.phase: Literal["searching", "finishing"] = "searching"
        self._folder = folder
        self._book = book
        self._tracker = tracker
        self._children = children
        self._shipping = threading.Event()
        self._ended = threading.Event()
        self._ship_at = 0.0
        self._told = -1
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join(timeout=10)

    def finish(self, status: str, patience_s: float, stop: StopSignal) -> str:
        """Send all that is left, end the run with `status` unless that is empty.

        Returns:
            `complete`, or what could not be written to MLflow.
        """
        self._tell()
        self._tracker.submit("the trials", self._children.ship)
        if status:
            self._tracker.submit("end of the run", uploads.end(status))
        hurry = stop.cause if status == "FINISHED" else lambda: None
        tracking = self._tracker.finish(patience_s, hurry)
        if tracking == "complete" and (given_up := self._children.given_up):
            number, problem = next(iter(given_up.items()))
            return f"incomplete: {len(given_up)} trials; trial {number}: {problem}"[:500]
        return tracking

    def _run(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                self._tell()
                self._ship()
            except Exception:
                logger.exception("a heartbeat failed")

    def _tell(self) -> None:
        counts = self._book.counts()
        best = next(iter(self._book.standings()), None)
        progress = Progress(
            phase=self.phase, trials=counts, best_score=None if best is None else best.mean
        )
        values = {"trials/ended": float(counts.ended), "trials/failed": float(counts.failed)}
        if best is not None and best.mean is not None:
            values["search/best_score"] = best.mean
        if counts.ended > self._told:
            self._tracker.log(values, step=counts.ended)
            self._told = counts.ended
        try:
            self._folder.write_progress(progress)
        except OSError:
            logger.warning("the progress can't be written just now", exc_info=True)

    def _ship(self) -> None:
        """Have the trials sent, unless MLflow is still busy with the last time."""
        if self._shipping.is_set() or time.monotonic() < self._ship_at:
            return
        self._shipping.set()
        self._tracker.submit("the trials", self._send)

    def _send(self, client: "MlflowClient", run_id: str) -> None:
        self._children.ship(client, run_id)  # repeated by the tracker while MLflow is away
        self._ship_at = time.monotonic() + SHIP_EVERY_S
        self._shipping.clear()
