"""How long steps take: by the clock on a CPU, by the GPU's own on a GPU."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

R = TypeVar("R")


@dataclass(frozen=True)
class Pace:
    """How many steps there are to a turn and before the first one."""

    steps: int
    """Of one turn. On a CPU a turn is one step; a GPU, whose steps take milliseconds, is given
    enough for its queue to fill."""
    uncounted: int
    """How many of these are run but not counted."""
    warm_up: int
    """Before the first turn: kernels are chosen and compiled, buffers allocated."""


PACES = {
    "cpu": Pace(steps=1, uncounted=0, warm_up=2),
    "cuda": Pace(steps=20, uncounted=5, warm_up=50),
}
"""By the type of a device."""


class Stopwatch:
    """Notes spans between `begin` and `end`. Neither waits for a GPU, `seconds` does."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[Any, Any]] = []
        self._begun: Any = None

    def begin(self) -> None:
        """A span begins; another begin before its end takes this one's place."""
        self._begun = self._now()

    def end(self) -> None:
        """The span ends."""
        self._marks.append((self._begun, self._now()))

    def time(self, function: Callable[[], R]) -> R:
        """Call a function; its time is a span."""
        self.begin()
        result = function()
        self.end()
        return result

    def seconds(self) -> list[float]:
        """The spans so far, which are then forgotten."""
        if self._on_gpu:
            torch.cuda.synchronize()
        spans = [self._span(begun, ended) for begun, ended in self._marks]
        self._marks.clear()
        return spans

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _span(self, begun: Any, ended: Any) -> float:
        return float(begun.elapsed_time(ended) / 1000 if self._on_gpu else ended - begun)


def time_turn(function: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call takes: the median of a turn's."""
    pace = PACES[device.type]
    watch = Stopwatch(device)
    for _ in range(pace.steps):
        watch.time(function)
    return statistics.median(watch.seconds()[pace.uncounted :])


def warm_up(function: Callable[[], object], device: torch.device) -> None:
    """Call a function until it runs as it will; nothing of it runs on into another's turn."""
    for _ in range(PACES[device.type].warm_up):
        function()
    if device.type == "cuda":
        torch.cuda.synchronize()
