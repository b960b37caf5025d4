"""The connection to the queue's database: durable, bounded in every wait, never in a deadlock.

On SQLite every write begins with BEGIN IMMEDIATE: a transaction that begins as a reader and
becomes a writer later fails at once with "database is locked", whatever the busy timeout.

On PostgreSQL nothing waits for ever: not a connection, not a place in the pool, not a statement,
neither on a server that works on it nor on one that has gone silent.
"""

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from service.errors import DatabaseFullError, DatabaseUnavailableError

if TYPE_CHECKING:
    import psycopg

BUSY_TIMEOUT_S = 10
POOL_SIZE = 48
"""The API's 40 threads, the reconciler's few, and some to spare: two replicas stay below the 100
connections that PostgreSQL allows by default."""
POOL_TIMEOUT_S = 5

CONNECTING: Mapping[str, int] = {
    "connect_timeout": 5,  # seconds
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 6_000,  # milliseconds that what was sent may lie unacknowledged
}
"""libpq's parameters. A host that has vanished is taken note of within some ten seconds."""

SESSION: Mapping[str, str] = {
    "statement_timeout": "5s",
    "lock_timeout": "3s",
    # A replica that stands still in its tick holds the right to tick no longer than this.
    "idle_in_transaction_session_timeout": "60s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
"""PostgreSQL's settings of each of our connections."""

ANSWER_TIMEOUT_S = 7.0
"""Later than the server's own limits: only a server that has gone silent is given up by this."""

UNREACHABLE = frozenset({"SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_CANTOPEN", "SQLITE_IOERR"})
"""SQLite's own names of what may pass; an extended name begins with one of them."""
FULL = ("SQLITE_FULL", "53100")
"""The disk is full, by SQLite's name and by PostgreSQL's SQLSTATE."""
READ_ONLY = "25006"
"""SQLSTATE of a write on a server that stands by: another one has not taken over yet."""


def make_engine(url: str) -> Engine:
    """An engine for SQLite (its folder is made) or PostgreSQL, by psycopg."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite_engine(parsed)
    engine = create_engine(
        parsed.set(drivername="postgresql+psycopg"),
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_S,
        pool_pre_ping=True,
        pool_use_lifo=True,  # under little load the same few connections serve
        connect_args=_connect_arguments(parsed),
    )
    event.listen(engine, "do_connect", _connect_impatiently)
    return engine


def reading(engine: Engine) -> Engine:
    """The same engine, for single statements that only read: no BEGIN and no ROLLBACK around."""
    if engine.dialect.name == "sqlite":
        return engine
    return engine.execution_options(isolation_level="AUTOCOMMIT")


def writing(engine: Engine) -> Engine:
    """The same engine, whose transactions hold the right to write from their beginning."""
    return engine.execution_options(caps_begin="BEGIN IMMEDIATE")


@contextmanager
def patiently(connection: Connection) -> Iterator[None]:
    """Let this transaction take as long as it needs: a migration may rewrite a large table."""
    if connection.dialect.name != "postgresql":
        yield
        return
    connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
    connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
    driver: Any = connection.connection.driver_connection
    usual = driver.answer_timeout_s
    driver.answer_timeout_s = None
    try:
        yield
    finally:
        driver.answer_timeout_s = usual


def outage(error: SQLAlchemyError) -> DatabaseUnavailableError | DatabaseFullError | None:
    """What to tell of a database's error: away, or full; None where the fault is ours.

    A transaction whose COMMIT was not answered may have been committed all the same.
    """
    if isinstance(error, PoolTimeoutError):
        return DatabaseUnavailableError("the queue's database is busy: no connection is free")
    if not isinstance(error, DBAPIError):
        return None
    code = _code(error)
    if code in FULL:
        return DatabaseFullError()
    if error.connection_invalidated or code == READ_ONLY:
        return DatabaseUnavailableError()
    if isinstance(error.orig, sqlite3.Error):
        passing = any(code.startswith(name) for name in UNREACHABLE)
        return DatabaseUnavailableError() if passing else None
    names = {kind.__name__ for kind in type(error.orig).__mro__}
    away = not names.isdisjoint({"OperationalError", "InterfaceError"})
    return DatabaseUnavailableError() if away else None


def _code(error: DBAPIError) -> str:
    """SQLite's name of the error, or PostgreSQL's SQLSTATE."""
    for name in ("sqlite_errorname", "sqlstate"):
        if found := getattr(error.orig, name, None):
            return str(found)
    return ""


# -------------------------------------------------------------------------------- PostgreSQL


def _connect_arguments(url: URL) -> dict[str, Any]:
    """Ours, but for those that the URL itself has."""
    session = " ".join(f"-c {name}={value}" for name, value in SESSION.items())
    ours = {**CONNECTING, "options": session}
    return {name: value for name, value in ours.items() if name not in url.query}


def _connect_impatiently(
    dialect: Any, record: Any, arguments: Any, parameters: dict[str, Any]
) -> "psycopg.Connection":
    from service.queue.impatient import ImpatientConnection  # loads the driver

    return ImpatientConnection.connect(*arguments, **parameters)


# ------------------------------------------------------------------------------------ SQLite


def _sqlite_engine(url: URL) -> Engine:
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(
        url,
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_S,
        pool_use_lifo=True,  # each connection keeps pages of its own in memory
        connect_args={"timeout": BUSY_TIMEOUT_S},
    )
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: sqlite3.Connection, record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy's `begin` event says BEGIN, not the driver
    _write_ahead(connection)
    connection.execute("PRAGMA synchronous = FULL")  # an accepted job survives a power cut
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA cache_size = -512")  # KiB of each connection; the kernel keeps more


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Turn on WAL. SQLite does not wait for another process that does the same right now."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("caps_begin", "BEGIN"))
