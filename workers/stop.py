"""Whether the worker is asked to leave: by the stop flag, a signal, or a later attempt."""

import logging
import signal
import time
from types import FrameType
from typing import Literal

from workers.attempt import AttemptFolder

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.25

StopCause = Literal["cancel", "pause", "signal", "superseded"]


class StopSignal:
    """Cheap to ask at every step: it looks at the folder a few times a second."""

    def __init__(self, folder: AttemptFolder) -> None:
        self._folder = folder
        self._signalled = False
        self._cause: StopCause | None = None
        self._look_at = 0.0
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def cause(self) -> StopCause | None:
        """Why the worker is to leave; None to go on."""
        now = time.monotonic()
        if self._cause is None and (self._signalled or now >= self._look_at):
            self._look_at = now + LOOK_EVERY_S
            self._cause = self._look()
        return self._cause

    def _look(self) -> StopCause | None:
        try:
            if self._folder.superseded():
                return "superseded"
            if (kind := self._folder.stop_requested()) is not None:
                return kind
        except OSError:
            logger.warning("the attempt's folder can't be read just now", exc_info=True)
        return "signal" if self._signalled else None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Only a flag: raising from a handler can tear a checkpoint or an upload apart.
        self._signalled = True
