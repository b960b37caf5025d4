"""The whole stack, as `capsctl up` starts it, for tests and benchmarks."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from mlflow import MlflowClient

from service.client import CapsClient
from service.stack import state as stack_state
from service.stack.processes import find, tagged, workers

TINY: dict[str, Any] = {
    "name": "tiny",
    "experiment": "tests",
    "dataset": {"type": "mnist-5k"},
    "model": {"conv_channels": 8, "primary_types": 2, "decoder": {"hidden": [16]}},
    "optimizer": {"learning_rate": 3e-3},
    "epochs": 2,
    "batch_size": 100,
}
"""A job of a few seconds on real digits."""

ENDLESS = TINY | {"name": "endless", "epochs": 10_000}


def until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Wait for a condition, or fail."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)


class Stack:
    """`capsctl up` as a child, and what the tests ask of it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.data = home / "data"
        self.environment = {
            **{k: v for k, v in os.environ.items() if k != "CAPS_URL"},
            "CAPS_HOME": str(home),
            "CAPS_DATA_DIR": str(self.data),
            "CAPS_OFFLINE": "1",
        }
        self.log = home / "test-up.log"

    def provide(self, name: str, folder: Path) -> None:
        """Let the stack's jobs find a data set that this machine has."""
        self.data.mkdir(exist_ok=True)
        (self.data / name).symlink_to(folder)

    def up(self, *options: str) -> None:
        """Start, and wait until it says that all is ready."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "service.cli", "up", *(options or ("--cpus", "2"))],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until(self._ready, 120, f"ready; {self.log.read_text()}")

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        state = self.state
        return (
            state.ready
            and state.supervisor is not None
            and (state.supervisor.pid == self.process.pid)
        )

    @property
    def state(self) -> stack_state.StackState:
        """What `up` has written down."""
        state = stack_state.load(self.home)
        return state or stack_state.StackState(stack_id="", ports={})

    def service(self, name: str) -> psutil.Process:
        """A service's main process."""
        known = self.state.services[name]
        process = find(known.pid, known.created)
        assert process is not None, f"{name} is gone"
        return process

    def client(self) -> CapsClient:
        """A client of this stack's API."""
        return CapsClient(self.state.api_url)

    def mlflow(self) -> MlflowClient:
        """A client of this stack's MLflow."""
        return MlflowClient(self.state.mlflow_url)

    def workers(self, job: str) -> list[psutil.Process]:
        """Living processes that train a job."""
        found = []
        for process in workers(self.home):
            with contextlib.suppress(psutil.Error):
                if job in process.cmdline():
                    found.append(process)
        return found

    def job_processes(self) -> list[psutil.Process]:
        """Living first processes of all jobs' attempts: workers, and drivers of several."""
        return workers(self.home)

    def train_workers(self) -> list[psutil.Process]:
        """Living workers of Ray Train, in the order in which they started."""
        found = []
        for process in tagged(self.home, "ray"):
            with contextlib.suppress(psutil.Error):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    found.append(process)
        return sorted(found, key=lambda process: process.create_time())

    def trials(self, search: str, actors: bool = False) -> list[psutil.Process]:
        """Living processes of a search's trials, and of its driver unless only `actors` count."""
        driver = [] if actors else self.workers(search)
        return driver + [p for p in tagged(self.home, "ray") if self._writes_trial(p, search)]

    def _writes_trial(self, process: psutil.Process, search: str) -> bool:
        folder = f"/jobs/{search}/trials/"
        with contextlib.suppress(psutil.Error):
            return any(folder in each.path for each in process.open_files())
        return False

    def capsctl(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the command line against this stack."""
        return subprocess.run(
            [sys.executable, "-m", "service.cli", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=180,
            **options,
        )

    def down(self) -> None:
        """Stop it, and see that nothing is left."""
        self.capsctl("down")
        left = [f"{p.pid} {p.name()}" for p in tagged(self.home)]
        assert not left, f"left behind: {left}"
        assert self.process.wait(timeout=10) is not None
