"""What ends a process of an attempt that nobody else could end.

A thread of its own looks at the attempt's folder: a SIGTERM that is ignored, or a training that
hangs, does not matter to it. It ends the process by SIGKILL when the control plane raises the
`kill` flag, when a later attempt has been there for a while (`StopFlag` lets the training leave in
good order before), and when the parent is gone. A storage that cannot be read ends nothing.

Code that holds Python's lock for good would hold this thread up as well; such a process is ended
from outside, by its id, or by the kernel when its parent dies.
"""

import logging
import os
import threading
import time

from workers.attempt import AttemptFolder
from workers.liveness import own_record
from workers.process import die_with_parent, end_at_once, give_way

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
LEAVE_WITHIN_S = 10.0
"""How long after a later attempt came a process may take to leave by itself."""

_lock = threading.Lock()
_watched: "Sentinel | None" = None


def attend(folder: AttemptFolder, role: str) -> None:
    """Have this process belong to an attempt: registered, watched, and gone with its parent.

    It also gives way to the machine's other processes, as far as CAPS_NICE says.

    May be called again: an actor serves one trial after another. Does not return where a later
    attempt exists.

    Args:
        folder: The attempt's; for a trial the search's, so that no other attempt's flag counts.
        role: See `ProcessRecord`.

    Raises:
        OSError: The folder can't be written. Whoever can't register must not work.
    """
    global _watched
    # In this order: whoever makes a later attempt, and reads then who is registered, finds this
    # process or is found by it.
    folder.register(own_record(role))
    give_way()
    if folder.superseded():
        logger.warning("a later attempt exists: this process ends")
        end_at_once()
    with _lock:
        if _watched is not None and _watched.folder.path == folder.path:
            return
        if _watched is not None:
            _watched.retire()
        _watched = Sentinel(folder)
        _watched.start()


class Sentinel:
    """Watches one attempt's folder for this process.

    Attributes:
        folder: The attempt's.
    """

    def __init__(self, folder: AttemptFolder) -> None:
        self.folder = folder
        self._parent = os.getppid()
        self._superseded_since: float | None = None
        self._retired = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sentinel", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def retire(self) -> None:
        """Look no more: this process belongs to another attempt now."""
        self._retired.set()

    def verdict(self, now: float) -> str:
        """Why the process is to end at once; empty where it may go on.

        Args:
            now: Seconds of a clock that is never set back.

        Raises:
            OSError: The folder can't be read just now.
        """
        if os.getppid() != self._parent:
            return "its parent is gone"
        if self.folder.kill_requested():
            return "the kill flag is raised"
        if not self.folder.superseded():
            self._superseded_since = None
        elif self._superseded_since is None:
            self._superseded_since = now
        elif now - self._superseded_since > LEAVE_WITHIN_S:
            return f"a later attempt has been there for {LEAVE_WITHIN_S:g} s"
        return ""

    def _run(self) -> None:
        # Bound to the thread that asks for it, and this one lives as long as the process.
        die_with_parent()
        while not self._retired.wait(LOOK_EVERY_S):
            try:
                why = self.verdict(time.monotonic())
            except Exception:
                continue  # told by StopFlag, which looks at the same folder
            if why:
                _say(f"sentinel: {why}: this process ends now\n")
                end_at_once()


def _say(words: str) -> None:
    """Write to the log, past all that may be locked; whoever reads it must not hold us up."""
    speaker = threading.Thread(target=os.write, args=(2, words.encode()), daemon=True)
    speaker.start()
    speaker.join(timeout=0.2)
