"""A clock that moves when it is told to, and whose wall may be set like a real one's."""


class FakeClock:
    """Two readings: time that only passes, and the wall clock, which somebody may also set."""

    def __init__(self, start: float) -> None:
        """Begin at `start`, in seconds since 1970."""
        self._passed = 0.0
        self._wall_at_zero = start

    def passed(self) -> float:
        """Seconds since the beginning, as `time.monotonic` counts them: processes age by it."""
        return self._passed

    def wall(self) -> float:
        """Seconds since 1970, as the machine believes."""
        return self._wall_at_zero + self._passed

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        if seconds < 0:
            raise ValueError(f"time does not pass backwards: {seconds}")
        self._passed += seconds

    def set_by(self, seconds: float) -> None:
        """Set the wall clock forwards or backwards; no time passes."""
        self._wall_at_zero += seconds
