"""Whether the worker is asked to leave: by a stop flag, a signal, or a later attempt."""

import logging
import math
import signal
import time
from types import FrameType
from typing import Literal

from workers.attempt import AttemptFolder

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.25

StopCause = Literal["cancel", "pause", "signal", "superseded", "deadline"]


class StopFlag:
    """Cheap to ask at every step: it looks at the folders a few times a second."""

    def __init__(self, *folders: AttemptFolder, seconds: float | None = None) -> None:
        """Watch.

        Args:
            folders: An attempt's folder; a trial watches its search's and its own.
            seconds: After so many seconds from now the cause is `deadline`; None is never.
        """
        self._folders = folders
        self._over_at = math.inf if seconds is None else time.monotonic() + seconds
        self._signalled = False
        self._cause: StopCause | None = None
        self._look_at = 0.0

    def cause(self) -> StopCause | None:
        """Why the worker is to leave; None to go on."""
        now = time.monotonic()
        if self._cause is None and (self._signalled or now >= self._look_at):
            self._look_at = now + LOOK_EVERY_S
            self._cause = self._look()
        return self._cause

    def _look(self) -> StopCause | None:
        try:
            if any(folder.superseded() for folder in self._folders):
                return "superseded"
            kinds = [folder.stop_requested() for folder in self._folders]
            if found := [kind for kind in kinds if kind is not None]:
                return found[0]
            if any(folder.leave_requested() for folder in self._folders):
                return "signal"
        except OSError:
            logger.warning("the attempt's folder can't be read just now", exc_info=True)
        if time.monotonic() > self._over_at:
            return "deadline"
        return "signal" if self._signalled else None


class StopSignal(StopFlag):
    """The same for a process of its own, which is also asked by SIGTERM and SIGINT."""

    def __init__(self, folder: AttemptFolder) -> None:
        super().__init__(folder)
        self.listen()

    def listen(self) -> None:
        """Take the signals; again after a library has taken them for itself."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Only a flag: raising from a handler can tear a checkpoint or an upload apart.
        self._signalled = True
