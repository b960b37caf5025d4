"""A connection to PostgreSQL that gives up on a server that has gone silent.

A server's own limits on a statement do not help where the server itself stands still, on a disk
that hangs or in a machine that is paused. The rest of libpq's limits watch the network alone.
"""

from collections.abc import Generator
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from service.queue.engine import ANSWER_TIMEOUT_S

Answer = TypeVar("Answer")


class ImpatientConnection(psycopg.Connection[Any]):
    """Closes itself where the server takes longer than `answer_timeout_s` for an answer."""

    answer_timeout_s: float | None = ANSWER_TIMEOUT_S

    def wait(
        self,
        gen: Generator[Any, Any, Answer],
        interval: float = 0.1,
        timeout: float | None = None,
    ) -> Answer:
        """As psycopg's. Raises OperationalError where the server is silent for too long."""
        try:
            return super().wait(gen, interval=interval, timeout=timeout or self.answer_timeout_s)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                self.close()  # what it still has to say belongs to a question of before
            raise
