"""A process of its own for something that is timed: it lives through the whole run, and waits.

None meets another's memory, caches or global settings of torch; its peak of memory is its own, and
so is its environment, which the allocator and OpenMP read only when a process starts.
"""

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Generic, Self, TypeVar

Worker = TypeVar("Worker")

ALLOCATOR_PREFIXES = ("MALLOC_", "GLIBC_TUNABLES")
"""Variables that begin so are a child's own, whatever the caller's environment has."""
SETTLE_S = 0.02
"""Rest after a turn. OpenMP's threads spin for some milliseconds before they sleep, which must not
fall on the next one's turn."""


class ChildError(RuntimeError):
    """What failed in a child, or that it is gone."""


class Child(Generic[Worker]):
    """A worker in a process of its own, whose methods are called from here."""

    def __init__(
        self,
        name: str,
        allocator: Mapping[str, str],
        make: Callable[..., Worker],
        *arguments: object,
    ) -> None:
        """Start a process in which `make(*arguments)` is the worker; does not wait for it.

        Args:
            name: For errors.
            allocator: Variables of glibc's allocator that the process starts with; no others.
            make: Of the top level of a module, as it is told by name.
            arguments: Of `make`; they are pickled.
        """
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._line, far_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(far_end, make, arguments), daemon=True)
        with allocator_variables(allocator):
            self._process.start()
        far_end.close()

    def __str__(self) -> str:
        return self.name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the process, whatever it does."""
        self._line.close()
        self._process.terminate()
        self._process.join()

    def ask(self, method: Callable[..., Any], *arguments: object) -> Any:
        """Call a method of the worker, named by that of its class, and wait for what it returns.

        Raises:
            ChildError: It raised, or its process ended.
        """
        try:
            self._line.send((method.__name__, arguments))
            failure, result = self._line.recv()
        except (EOFError, OSError) as error:
            self._process.join(timeout=5)
            raise ChildError(
                f"the process of {self.name} is gone, with exit code {self._process.exitcode} "
                "(-9: mostly for want of memory)"
            ) from error
        if failure is not None:
            raise ChildError(f"{self.name}: {method.__name__} failed\n{failure}")
        time.sleep(SETTLE_S)
        return result


@contextmanager
def allocator_variables(wanted: Mapping[str, str]) -> Iterator[None]:
    """Context in which the allocator's variables of the environment are exactly these."""
    before = _allocator_variables()
    try:
        for name in before:
            del os.environ[name]
        os.environ.update(wanted)
        yield
    finally:
        for name in _allocator_variables():
            del os.environ[name]
        os.environ.update(before)


def _allocator_variables() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k.startswith(ALLOCATOR_PREFIXES)}


def _serve(line: Connection, make: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    """The child's half: make the worker and call its methods until nobody asks any more."""
    worker: Any = None
    while True:
        try:
            method, values = line.recv()
        except EOFError:
            return
        try:
            worker = worker or make(*arguments)
            answer = (None, getattr(worker, method)(*values))
        except Exception:
            answer = (traceback.format_exc(), None)
        line.send(answer)
