"""Does in one go what several threads ask for at the same time.

The first that comes does it for itself. Those that come meanwhile wait, and then one of them does
it for all: under load a commit, and the disk's time for it, is shared by many.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


class _Asked(Generic[Item, Outcome]):
    """What one thread waits for."""

    def __init__(self, item: Item) -> None:
        self.item = item
        self.done = False
        self.outcome: Outcome | BaseException
        self.woken = threading.Event()


class Together(Generic[Item, Outcome]):
    """Groups the calls of `one` by threads.

    Args:
        several: Does it for several items, and gives the outcome of each, or the error that its
            thread is to raise. What it raises itself, all of them raise.
        most: So many items at once.
    """

    def __init__(
        self, several: Callable[[Sequence[Item]], Sequence[Outcome | BaseException]], most: int
    ) -> None:
        self._several = several
        self._most = most
        self._asked: list[_Asked[Item, Outcome]] = []
        self._busy = False
        self._lock = threading.Lock()

    def one(self, item: Item) -> Outcome:
        """The outcome of one item, alone or with those of other threads."""
        asked: _Asked[Item, Outcome] = _Asked(item)
        with self._lock:
            self._asked.append(asked)
            waits = self._busy
            self._busy = True
        if waits:
            asked.woken.wait()
        if not asked.done:  # the first of those that wait: it does it for all
            self._do_next()
        if isinstance(asked.outcome, BaseException):
            raise asked.outcome
        return asked.outcome

    def _do_next(self) -> None:
        with self._lock:
            batch, self._asked = self._asked[: self._most], self._asked[self._most :]
        outcomes: Sequence[Outcome | BaseException]
        try:
            outcomes = self._several([each.item for each in batch])
        except BaseException as error:
            outcomes = [error] * len(batch)
        for each, outcome in zip(batch, outcomes, strict=True):
            each.outcome = outcome
            each.done = True
        with self._lock:
            next_one = self._asked[0] if self._asked else None
            self._busy = next_one is not None
        if next_one is not None:
            next_one.woken.set()
        for each in batch:
            each.woken.set()
