"""Brings the database up to date, and only then has the reconciler look; waits where it must."""

import logging
import threading
from collections.abc import Callable
from typing import Protocol

from sqlalchemy.exc import SQLAlchemyError

from service.queue.engine import outage
from service.queue.store import Store

logger = logging.getLogger(__name__)

TRY_AGAIN_S = 1.0


class Background(Protocol):
    """What runs beside the API: the reconciler's loop."""

    def start(self) -> None:
        """Begin."""

    def stop(self) -> None:
        """End."""

    def wake(self) -> None:
        """Look at once."""


class Startup:
    """Starts the background at once, or when a database that is away has come back.

    Calls to the API are answered with 503 meanwhile.

    Args:
        store: Brought up to date.
        background: Begins then.
        prepare: What else is to be done with the database between the two.
    """

    def __init__(
        self, store: Store, background: Background, prepare: Callable[[], None] | None = None
    ) -> None:
        self._store = store
        self._background = background
        self._prepare = prepare
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Try; go on trying beside the API where the database is away.

        Raises SQLAlchemyError where the database answers, and refuses.
        """
        if self._try():
            return
        self._thread = threading.Thread(target=self._insist, name="startup", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Try no more, and end the background."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=30)
        self._background.stop()

    def _try(self) -> bool:
        try:
            self._store.migrate()
            if self._prepare is not None:
                self._prepare()
        except SQLAlchemyError as error:
            if outage(error) is None:
                raise
            logger.warning("the database is away, the queue waits for it: %s", error)
            return False
        self._background.start()
        return True

    def _insist(self) -> None:
        while not self._ended.wait(TRY_AGAIN_S):
            try:
                if self._try():
                    return
            except SQLAlchemyError:
                logger.exception("the schema is not up to date; trying again")
