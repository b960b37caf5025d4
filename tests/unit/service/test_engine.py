"""The database's connection: bounded waits, and outages told from faults of ours."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from service.api import problems
from service.errors import DatabaseFullError, DatabaseUnavailableError
from service.queue import engine as engines
from service.queue.engine import make_engine, outage, patiently, writing
from service.queue.impatient import ImpatientConnection
from service.queue.store import JobFilter, Store
from support.postgres import Postgres
from workers.specs import PRESETS


def failure(engine: Engine, statement: str) -> SQLAlchemyError:
    """What the statement fails with."""
    with pytest.raises(SQLAlchemyError) as caught, engine.connect() as connection:
        connection.execute(text(statement))
    return caught.value


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{tmp_path / 'queue.db'}")
    store.migrate()
    yield store
    store.close()


def test_a_locked_sqlite_is_busy_and_not_at_fault(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(engines, "BUSY_TIMEOUT_S", 0.1)
    engine = make_engine(f"sqlite:///{tmp_path / 'queue.db'}")
    with writing(engine).begin(), pytest.raises(SQLAlchemyError) as caught:
        writing(engine).connect().begin()
    assert "locked" in str(caught.value)
    assert isinstance(outage(caught.value), DatabaseUnavailableError)
    engine.dispose()


def add_many(store: Store, count: int) -> None:
    for _ in range(count):
        store.add(PRESETS["demo"])


def test_on_a_full_disk_writes_are_refused_and_reads_go_on(sqlite: Store) -> None:
    job = sqlite.add(PRESETS["demo"])

    def keep_from_growing(connection, record, proxy) -> None:  # type: ignore[no-untyped-def]
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")

    event.listen(sqlite.engine, "checkout", keep_from_growing)
    with pytest.raises(SQLAlchemyError) as caught:
        add_many(sqlite, 100)
    told = outage(caught.value)
    assert isinstance(told, DatabaseFullError)
    assert told.status == 507
    assert sqlite.get(job.id) == job
    before = len(sqlite.list(JobFilter(), limit=200).jobs)
    event.remove(sqlite.engine, "checkout", keep_from_growing)
    sqlite.engine.dispose()  # the limit is one of the connection
    sqlite.add(PRESETS["demo"])
    assert len(sqlite.list(JobFilter(), limit=200).jobs) == before + 1


def test_a_fault_of_ours_is_no_outage(store: Store) -> None:
    assert outage(failure(store.engine, "SELECT nonsense FROM jobs")) is None
    assert outage(failure(store.engine, "SELECT 1 FROM no_such_table")) is None


def told_over_http(error: SQLAlchemyError) -> tuple[int, str, str | None]:
    """Status, code and Retry-After of the answer."""
    app = FastAPI()
    problems.install(app)

    @app.get("/")
    def fails() -> None:
        raise error

    answer = TestClient(app).get("/")
    return answer.status_code, answer.json()["code"], answer.headers.get("retry-after")


def test_an_outage_is_503_with_the_time_to_ask_again(tmp_path: Path) -> None:
    nobody = "postgresql+psycopg://caps@127.0.0.1:1/queue"
    refused = failure(make_engine(nobody), "SELECT 1")
    assert told_over_http(refused) == (503, "database-unavailable", "2")


def test_a_fault_of_ours_stays_one(sqlite: Store) -> None:
    with pytest.raises(SQLAlchemyError):  # `Edge` makes a 500 of it, and logs where it was
        told_over_http(failure(sqlite.engine, "SELECT nonsense"))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (psycopg.errors.CannotConnectNow, DatabaseUnavailableError),  # it starts up
        (psycopg.errors.AdminShutdown, DatabaseUnavailableError),
        (psycopg.errors.CrashShutdown, DatabaseUnavailableError),
        (psycopg.errors.TooManyConnections, DatabaseUnavailableError),
        (psycopg.errors.QueryCanceled, DatabaseUnavailableError),
        (psycopg.errors.ReadOnlySqlTransaction, DatabaseUnavailableError),  # it stands by
        (psycopg.InterfaceError, DatabaseUnavailableError),
        (psycopg.errors.DiskFull, DatabaseFullError),
        (psycopg.errors.UniqueViolation, type(None)),
        (psycopg.errors.UndefinedTable, type(None)),
        (psycopg.errors.NumericValueOutOfRange, type(None)),
    ],
)
def test_postgresqls_errors_are_told_apart(kind, expected) -> None:
    error = DBAPIError.instance("SELECT 1", {}, kind("so it is"), psycopg.Error)
    assert type(outage(error)) is expected


# --------------------------------------------------------------------------- PostgreSQL itself


@pytest.fixture
def engine(postgresql: Postgres) -> Iterator[Engine]:
    engine = make_engine(postgresql.new_database())
    yield engine
    engine.dispose()


def test_every_statement_is_bounded(engine: Engine) -> None:
    with engine.connect() as connection:
        for name, value in engines.SESSION.items():
            found = connection.execute(text(f"SHOW {name}")).scalar_one()
            assert found in (value, value.replace("60s", "1min")), name


def test_an_option_of_the_address_stands(postgresql: Postgres) -> None:
    address = f"{postgresql.new_database()}?options=-c%20statement_timeout%3D9s&connect_timeout=3"
    engine = make_engine(address)
    with engine.connect() as connection:
        assert connection.execute(text("SHOW statement_timeout")).scalar_one() == "9s"
    engine.dispose()


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
def test_an_address_needs_no_driver(postgresql: Postgres, scheme: str) -> None:
    address = postgresql.new_database().replace("postgresql+psycopg", scheme)
    engine = make_engine(address)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
    engine.dispose()


def test_where_no_connection_is_free_one_is_told_so_in_time(
    postgresql: Postgres, monkeypatch
) -> None:
    monkeypatch.setattr(engines, "POOL_SIZE", 1)
    monkeypatch.setattr(engines, "POOL_TIMEOUT_S", 0.1)
    engine = make_engine(postgresql.new_database())
    with engine.connect():
        told = outage(failure(engine, "SELECT 1"))
    assert isinstance(told, DatabaseUnavailableError)
    assert "no connection is free" in told.detail
    engine.dispose()


def test_a_connection_that_was_cut_is_replaced(engine: Engine) -> None:
    with engine.connect() as connection:
        own = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    other = create_engine(engine.url, isolation_level="AUTOCOMMIT")
    with other.connect() as connection:
        # The second argument has it wait until that one is gone.
        assert connection.execute(text(f"SELECT pg_terminate_backend({own}, 5000)")).scalar_one()
    other.dispose()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT pg_backend_pid()")).scalar_one() != own


def test_a_statement_cut_short_is_an_outage(engine: Engine) -> None:
    def cut() -> None:
        time.sleep(0.3)
        other = create_engine(engine.url, isolation_level="AUTOCOMMIT")
        with other.connect() as connection:
            mine = "query LIKE 'SELECT pg_sleep(4)%'"
            connection.execute(
                text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {mine}")
            )
        other.dispose()

    thread = threading.Thread(target=cut)
    thread.start()
    assert isinstance(outage(failure(engine, "SELECT pg_sleep(4)")), DatabaseUnavailableError)
    thread.join()


@contextmanager
def standing_still(server: Postgres) -> Iterator[None]:
    """None of its processes does anything meanwhile."""
    processes = server.processes()
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)


def test_a_silent_server_is_given_up(postgresql: Postgres, engine: Engine, monkeypatch) -> None:
    monkeypatch.setattr(ImpatientConnection, "answer_timeout_s", 0.5)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        connection.commit()
        with standing_still(postgresql):
            began = time.monotonic()
            with pytest.raises(SQLAlchemyError) as caught:
                connection.execute(text("SELECT 2"))
            assert 0.4 < time.monotonic() - began < 3
    assert isinstance(outage(caught.value), DatabaseUnavailableError)
    with engine.connect() as connection:  # not the late answer to the question of before
        assert connection.execute(text("SELECT 3")).scalar_one() == 3


def test_a_migration_has_all_the_time_it_needs(engine: Engine) -> None:
    with engine.begin() as connection, patiently(connection):
        assert connection.execute(text("SHOW statement_timeout")).scalar_one() == "0"
        assert connection.execute(text("SHOW lock_timeout")).scalar_one() == "0"
        assert connection.connection.driver_connection.answer_timeout_s is None
    with engine.connect() as connection:
        assert connection.execute(text("SHOW statement_timeout")).scalar_one() == "5s"
        assert connection.connection.driver_connection.answer_timeout_s == engines.ANSWER_TIMEOUT_S
