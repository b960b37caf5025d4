"""Fixtures of all tests: a store on a fresh database, and an API that listens on a real port."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from xdist.scheduler import LoadScopeScheduling

from service.app import create_app
from service.queue.store import Store
from service.settings import Settings
from support import postgres

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
MOST_PROCESSES = 4
"""Each holds a torch, and may start a database or an MLflow server."""
if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported, which reads it then
    processes = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, CORES // processes)))

REPOSITORY = Path(__file__).parents[1]
TESTS = REPOSITORY / "tests"
WHOLE_MACHINE = tuple(f"tests/{folder}/" for folder in ("e2e", "chaos", "compose"))
"""Folders whose tests start whole stacks: one after the other."""
LIBRARY = "tests/unit/capsmodel/"
SHARING = tuple(f"{LIBRARY}test_{name}.py" for name in ("examples", "hub"))
"""The library's tests that share something costly."""


def pytest_xdist_auto_num_workers() -> int:
    """Processes that share the tests, unless `-n` says another number."""
    return min(CORES, MOST_PROCESSES)


class Sharing(LoadScopeScheduling):  # type: ignore[misc]
    """Which tests go to one process together: those of a file, which share servers.

    Those of the library share nothing, and go where there is time. (xdist's own groups go by names
    that pytest 9.2 no longer lets it change.)
    """

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(WHOLE_MACHINE):
            return "whole machine"
        if nodeid.startswith(LIBRARY) and not nodeid.startswith(SHARING):
            return nodeid.partition("[")[0]
        return nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Sharing:
    """How the processes share the tests."""
    return Sharing(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever is long is slow as well, so that `-m "not slow"` leaves it out."""
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.slow)


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def postgresql() -> Iterator[postgres.Postgres]:
    """A PostgreSQL server of our own, never killed; skips where the machine has none."""
    _needs_postgresql()
    with postgres.running(fsync=False) as server:
        yield server


@pytest.fixture
def mortal_postgresql() -> Iterator[postgres.Postgres]:
    """A server of the test's own that may be killed: what it commits is on the disk."""
    _needs_postgresql()
    with postgres.running(fsync=True) as server:
        yield server


def _needs_postgresql() -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    if postgres.programs() is None:
        pytest.skip(
            "PostgreSQL is not installed: neither Debian's package nor `pip install -e .[dev]`"
        )


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A migrated store in a database of its own."""
    url = f"sqlite:///{tmp_path / 'queue.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql").new_database()
    found = Store(url)
    found.migrate()
    yield found
    found.close()


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
