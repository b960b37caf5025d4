"""What a training tells MLflow of itself: written down or handed on at once, sent by others."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from workers.courier import Call, Courier, Errand, Task
from workers.shipper import Shipper
from workers.spool import Spool

__all__ = ["Call", "Tracker", "note_tracking", "tracking_of"]

logger = logging.getLogger(__name__)

_NOTE = "MLflow: "


class Tracker:
    """One run's connection to MLflow, as the training thread sees it.

    Attributes:
        calls: Calls of `log` and `submit` up to now.
        spent_s: Seconds that these took together.
        longest_s: Seconds that the longest took.
    """

    def __init__(self, uri: str, run_id: str, spool: Spool, *, apart: bool = True) -> None:
        """Prepare.

        Args:
            uri: The tracking server.
            run_id: The run.
            spool: Where metrics are written down.
            apart: Send from a process of its own, which needs calls that can be pickled; False
                sends from a thread of this process, which then should not train.
        """
        self._spool = spool
        errand = Errand(uri, run_id, spool.path, tuple(spool.earlier))
        self._courier = Shipper(errand) if apart else Courier(errand)
        self._timing = threading.Lock()
        self._began = time.monotonic()
        self.calls = 0
        self.spent_s = 0.0
        self.longest_s = 0.0

    def start(self) -> None:
        """Begin to send, once there is something to send."""
        self._began = time.monotonic()
        self._courier.start()

    def log(self, values: dict[str, float], step: int) -> None:
        """Record metric values of a step; returns at once."""
        with self._timed():
            self._spool.append(values, step)

    def submit(self, what: str, call: Call) -> None:
        """Have `call(client, run_id)` made in turn; `what` names it in messages."""
        with self._timed():
            self._courier.submit(Task(what, call))

    def finish(self, patience_s: float, hurry: Callable[[], object] = lambda: None) -> str:
        """Send all that is left; `complete`, or what could not be sent in time.

        Args:
            patience_s: Seconds to wait for a server that does not answer.
            hurry: Asked a few times a second; once it is true, nothing is waited for any more.
        """
        logger.info(
            "tracking took %.3f s of %.1f s in %d calls, the longest %.1f ms",
            self.spent_s,
            time.monotonic() - self._began,
            self.calls,
            1000 * self.longest_s,
        )
        return self._courier.finish(patience_s, hurry)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - begun
            with self._timing:
                self.calls += 1
                self.spent_s += took
                self.longest_s = max(self.longest_s, took)


def note_tracking(error: BaseException, said: str) -> None:
    """Let an exception carry what MLflow has got before it; the traceback tells it too.

    Args:
        error: What ends the attempt.
        said: `complete`, or what could not be written.
    """
    error.add_note(_NOTE + said)


def tracking_of(error: BaseException, unsaid: str = "complete") -> str:
    """What an exception carries; `unsaid` if it carries nothing."""
    notes = getattr(error, "__notes__", [])
    said = [note.removeprefix(_NOTE) for note in notes if note.startswith(_NOTE)]
    return said[-1] if said else unsaid
