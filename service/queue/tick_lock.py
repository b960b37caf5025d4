"""The right to tick: one transaction that one process holds at a time, however many replicas run.

PostgreSQL has advisory locks for it. On SQLite a transaction that may write keeps all other writers
out, and a tick waits for Ray; so it is one of a second, empty database beside the queue's. Either
ends with its process: there is no lease to run out.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

from sqlalchemy import Engine, text

_KEY = 0x6361707374  # "capst", the key of PostgreSQL's advisory lock


@contextmanager
def tick_lock(engine: Engine) -> Iterator[bool]:
    """Held until the end of the block; false where another process holds it."""
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            # A replica that stands still in its tick gives the right up after so long.
            connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = '20s'"))
            lock = text("SELECT pg_try_advisory_xact_lock(:key)")
            yield bool(connection.execute(lock, {"key": _KEY}).scalar_one())
        return
    assert engine.url.database, "the queue's database is a file"
    file = f"{engine.url.database}-tick"
    with closing(sqlite3.connect(file, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname != "SQLITE_BUSY":
                raise
            yield False
        else:
            yield True
