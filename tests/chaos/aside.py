"""A thread beside the storm; what goes wrong in it is told when it is stopped."""

import threading
from abc import ABC, abstractmethod


class Aside(ABC):
    """Calls `look` again and again until it is stopped."""

    def __init__(self, name: str, every_s: float) -> None:
        self._every_s = every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name)
        self.error: BaseException | None = None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and raise what went wrong."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self.error is not None:
            raise self.error

    @abstractmethod
    def look(self) -> None:
        """Do what is to be done every time."""

    def _run(self) -> None:
        try:
            while not self._ended.wait(self._every_s):
                self.look()
        except BaseException as error:  # told by `stop`
            self.error = error
