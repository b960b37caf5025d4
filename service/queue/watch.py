"""The database's clock for display: asked now and then, and followed by our own in between."""

import time
from collections.abc import Callable

ASK_AGAIN_S = 5.0


class Watch:
    """Tells the time of `ask` within some milliseconds; for decisions ask the database itself."""

    def __init__(
        self, ask: Callable[[], float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._set: tuple[float, float] | None = None
        """By our clock and by that of the database."""

    def now(self) -> float:
        """Seconds since 1970."""
        here = self._clock()
        if self._set is None or here - self._set[0] > ASK_AGAIN_S:
            self._set = here, self._ask()
        set_at, then = self._set
        return then + max(0.0, self._clock() - set_at)
