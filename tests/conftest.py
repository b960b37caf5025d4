"""Fixtures of all tests: a store on a fresh database, and an API that listens on a real port."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from sqlalchemy import create_engine, text

from service.app import create_app
from service.queue.store import Store
from service.settings import Settings


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


REPOSITORY = Path(__file__).parents[1]
POSTGRESQL = Path("/usr/lib/postgresql/15/bin")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """Address of a PostgreSQL server of our own; skips where the machine has none."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    if not (POSTGRESQL / "initdb").exists():
        pytest.skip("PostgreSQL 15 is not installed")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        # initdb refuses root.
        user = {"user": "postgres", "cwd": "/"} if os.geteuid() == 0 else {}
        if user:
            shutil.chown(folder, "postgres")
        options: dict[str, Any] = {"stdout": subprocess.DEVNULL, **user}
        initdb = [POSTGRESQL / "initdb", "-D", f"{folder}/data", "-A", "trust", "-U", "caps", "-N"]
        subprocess.run(initdb, check=True, **options)
        postgres = [POSTGRESQL / "postgres", "-D", f"{folder}/data", "-p", str(port), "-k", folder]
        settings = ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        server = subprocess.Popen([*postgres, *settings], stderr=subprocess.DEVNULL, **options)
        try:
            _until(lambda: _answers(port), seconds=30)
            yield f"postgresql+psycopg://caps@127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(timeout=30)


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A migrated store in a database of its own."""
    url = f"sqlite:///{tmp_path / 'queue.db'}"
    if request.param == "postgresql":
        url = _new_database(request.getfixturevalue("postgresql"))
    found = Store(url)
    found.migrate()
    yield found
    found.close()


def _new_database(server: str) -> str:
    name = f"test_{secrets.token_hex(6)}"
    engine = create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return f"{server}/{name}"


def _answers(port: int) -> bool:
    ready = [POSTGRESQL / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
    return subprocess.run(ready, check=False).returncode == 0


@dataclass
class FakeProbe:
    """Answers, or fails with `error`."""

    error: Exception | None = None

    def ping(self) -> None:
        """Raise what the test asked for."""
        if self.error:
            raise self.error


@dataclass
class FakeLoop:
    """Counts what the application asks of the reconciler's loop."""

    running: bool = False
    wakes: int = 0

    def start(self) -> None:
        """Begin."""
        self.running = True

    def stop(self) -> None:
        """End."""
        self.running = False

    def wake(self) -> None:
        """Count."""
        self.wakes += 1


@dataclass
class LiveApi:
    """A served API, and the parts behind it."""

    url: str
    store: Store
    settings: Settings
    loop: FakeLoop = field(default_factory=FakeLoop)
    probes: dict[str, FakeProbe] = field(default_factory=dict)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveApi]:
    """The API under uvicorn on a free port of loopback, with a real store and no reconciler."""
    home = tmp_path_factory.mktemp("home")
    port = free_port()
    settings = Settings(
        home=home,
        storage=None,
        database_url=None,
        mlflow_uri="http://127.0.0.1:5000",
        mlflow_public_url=None,
        stack_id="test-stack",
    )
    store = Store(settings.database)
    live = LiveApi(f"http://127.0.0.1:{port}", store, settings)
    live.probes = {"database": FakeProbe(), "ray": FakeProbe(), "mlflow": FakeProbe()}
    app = create_app(settings, store=store, probes=live.probes, background=live.loop)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    _until(lambda: server.started)
    yield live
    server.should_exit = True
    thread.join(timeout=10)
    assert not live.loop.running
    store.close()


def _until(condition: object, seconds: float = 10) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def mnist_folder() -> Path:
    """The folder that holds mnist/; tests that need the whole MNIST skip without it."""
    candidates = [REPOSITORY.parent / "shared" / "data"]
    if "CAPS_DATA_DIR" in os.environ:
        candidates.insert(0, Path(os.environ["CAPS_DATA_DIR"]))
    for folder in candidates:
        if (folder / "mnist").is_dir():
            return folder
    pytest.skip("the whole MNIST is in neither CAPS_DATA_DIR nor ../shared/data")
