"""A real MLflow server that can hang, die and come back; and what its database holds."""

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import httpx
import psutil

from support.stack import until


class MlflowServer:
    """A server of its own on one port, with SQLite, as the embedded stack runs it.

    Attributes:
        uri: Its address.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.uri = f"http://127.0.0.1:{port}"
        self._folder = folder
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", "--workers=1"]
        command += [f"--port={self._port}", f"--backend-store-uri=sqlite:///{self._database}"]
        command += [f"--artifacts-destination={self._folder / 'artifacts'}"]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        until(self._answers, 180, "MLflow answers")

    def kill(self) -> None:
        """As the kernel would."""
        for process in self._family():
            process.kill()
        if self._process:
            self._process.wait()

    def freeze(self) -> None:
        """Connections are taken and nothing is ever answered."""
        for process in self._family():
            process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on."""
        for process in self._family():
            process.send_signal(signal.SIGCONT)

    def points(self, run_id: str) -> list[tuple[str, float, int, int]]:
        """All rows of a run's metrics: name, value, time in milliseconds, step."""
        return metric_rows(self._database, run_id)

    @property
    def _database(self) -> Path:
        return self._folder / "mlflow.db"

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.uri}/health", timeout=2, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    def _family(self) -> list[psutil.Process]:
        if self._process is None or not psutil.pid_exists(self._process.pid):
            return []
        leader = psutil.Process(self._process.pid)
        return [leader, *leader.children(recursive=True)]


def metric_rows(database: Path, run_id: str) -> list[tuple[str, float, int, int]]:
    """All rows that MLflow's database has of a run's metrics, past its API."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        rows = connection.execute(
            "SELECT key, value, timestamp, step FROM metrics WHERE run_uuid = ?", (run_id,)
        )
        return [tuple(row) for row in rows]
