"""A Ray head and a second node on this host, by hand, for tests that kill parts of them."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

from service.cluster import ENTRYPOINT, WORKER_ENVIRONMENT
from service.demand import DRIVER_SLOT
from service.settings import RECONNECT_TIMEOUT_S
from service.stack.processes import tagged
from service.version import package_version
from support.stack import TINY, until
from workers.attempt import Attempt, AttemptFolder
from workers.specs import TrainSpec

ADDRESSES = {"head": "127.0.0.2", "second": "127.0.0.3"}
"""On loopback, but not 127.0.0.1: that one Ray rewrites to the host's public address."""
ROOM = {"cpus": 4, "slots": 2}

ALONE = TINY | {"name": "alone", "epochs": 10_000, "artifacts": []}
PAIR = ALONE | {"name": "pair", "resources": {"workers": 2, "cpus_per_worker": 1}}


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def gone(process: psutil.Process) -> bool:
    """Whether a process is dead; a zombie is."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


def words(process: psutil.Process) -> str:
    """A process's command line; empty for one that is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


class Nodes:
    """Two nodes of one cluster; jobs run on the node that is given room."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.storage = home / "storage"
        self.token = home / "token"
        self.token.write_text("chaos-" * 8)
        self.gcs = f"{ADDRESSES['head']}:{free_port()}"
        self.dashboard = f"http://127.0.0.1:{free_port()}"
        self.starters: dict[str, subprocess.Popen[bytes]] = {}
        headers = {"Authorization": f"Bearer {self.token.read_text()}"}
        self._http = httpx.Client(
            base_url=self.dashboard, headers=headers, timeout=5, trust_env=False
        )

    def start(self, node: str, room: bool) -> None:
        """Start `head` or `second`; only with room does it take jobs."""
        place = [f"--port={self.gcs.partition(':')[2]}"]
        if node == "head":
            place += [
                "--head",
                f"--temp-dir={self.home / 'ray'}",
                "--dashboard-host=127.0.0.1",
                f"--dashboard-port={self.dashboard.rpartition(':')[2]}",
                f"--ray-client-server-port={free_port()}",
            ]
        else:
            place = [f"--address={self.gcs}"]
        slots = ROOM["slots"] if room else 0
        command = [
            str(Path(sys.executable).with_name("ray")),
            "start",
            *place,
            "--block",
            "--disable-usage-stats",
            f"--node-ip-address={ADDRESSES[node]}",
            f"--dashboard-agent-listen-port={free_port()}",
            f"--dashboard-agent-grpc-port={free_port()}",
            f"--runtime-env-agent-port={free_port()}",
            f"--metrics-export-port={free_port()}",
            "--min-worker-port=0",
            "--max-worker-port=0",
            f"--num-cpus={ROOM['cpus'] if room else 0}",
            "--num-gpus=0",
            f"--object-store-memory={100 * 1024**2}",
            f"--resources={json.dumps({DRIVER_SLOT: slots} if slots else {})}",
        ]
        with (self.home / f"{node}.log").open("ab") as log:
            self.starters[node] = subprocess.Popen(
                command,
                env=self._environment(node),
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _environment(self, node: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
        return kept | {
            "CAPS_HOME": str(self.home),
            "CAPS_SERVICE": node,
            "CAPS_PYTHON": sys.executable,
            "CAPS_STORAGE": str(self.storage),
            "CAPS_DATA_DIR": str(self.home / "data"),
            "CAPS_OFFLINE": "1",
            "NO_PROXY": ",".join(["127.0.0.1", "localhost", *ADDRESSES.values()]),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
            "RAY_gcs_rpc_server_reconnect_timeout_s": f"{RECONNECT_TIMEOUT_S:.0f}",
        }

    # ---------------------------------------------------------------------- what Ray says

    def session(self) -> str | None:
        """The session's name; None while the head does not answer."""
        with contextlib.suppress(httpx.HTTPError, KeyError, ValueError):
            return str(self._http.get("/api/version").json()["session_name"])
        return None

    def alive(self) -> int:
        """Nodes that the head holds for alive."""
        with contextlib.suppress(httpx.HTTPError, KeyError, ValueError, TypeError):
            answer = self._http.get("/api/v0/nodes").json()
            rows = answer["data"]["result"]["result"]
            return sum(row["state"] == "ALIVE" for row in rows)
        return 0

    def status(self, job: str) -> str:
        """Ray's word on a job."""
        try:
            answer = self._http.get(f"/api/jobs/caps-{job}-1")
            return "MISSING" if answer.status_code == 404 else str(answer.json()["status"])
        except (httpx.HTTPError, KeyError, ValueError) as error:
            return type(error).__name__

    def submit(self, job: str, spec: dict[str, Any]) -> None:
        """Run a training as the control plane does, without one."""
        folder = AttemptFolder(self.storage, job, 1)
        folder.write_attempt(
            Attempt(
                package_version=package_version(),
                job=job,
                attempt=1,
                spec=TrainSpec.model_validate(spec),
                tracking_uri="http://127.0.0.1:9",
                run_id="none",
            )
        )
        together = "resources" in spec
        body = {
            "submission_id": f"caps-{job}-1",
            "entrypoint": ENTRYPOINT.format(job=job, attempt=1),
            "entrypoint_num_cpus": 0 if together else 1,
            "entrypoint_resources": {DRIVER_SLOT: 1} if together else {},
            "runtime_env": {"env_vars": WORKER_ENVIRONMENT},
        }
        answer = self._http.post("/api/jobs/", json=body, timeout=60)
        assert answer.status_code == 200, answer.text

    # -------------------------------------------------------------------------- processes

    def processes(self, *parts: str) -> list[psutil.Process]:
        """Living processes of this cluster whose command line holds all of `parts`."""
        found = tagged(self.home)
        return [p for p in found if all(part in words(p) for part in parts)]

    def daemon(self, name: str, node: str | None = None) -> psutil.Process:
        """The one `gcs_server`, or a node's `raylet`."""
        found = [
            p
            for p in tagged(self.home, node)
            if words(p).partition(" ")[0].endswith(f"/{name}/{name}")
            or words(p).partition(" ")[0].endswith(f"/gcs/{name}")
        ]
        (process,) = found
        return process

    def of_jobs(self) -> dict[str, list[psutil.Process]]:
        """What runs for jobs, by role."""
        return {
            "supervisor of a job": self.processes("JobSupervisor"),
            "worker of one": self.processes("-m workers alone"),
            "driver of two": self.processes("-m workers pair"),
            "Train workers": self.processes("RayTrainWorker"),
            "Train controller": self.processes("TrainController"),
        }

    def trained(self, job: str) -> bool:
        """Whether a job has begun to train."""
        progress = AttemptFolder(self.storage, job, 1).read_progress()
        return progress is not None and progress.first_step_at is not None

    def close(self) -> None:
        """End all of it."""
        self._http.close()
        for process in tagged(self.home):
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(tagged(self.home), timeout=10)
        for starter in self.starters.values():
            starter.wait(timeout=10)


@contextlib.contextmanager
def trainings(home: Path, on: str) -> Iterator[Nodes]:
    """Two nodes, and on one of them a training with one worker and one with two."""
    nodes = Nodes(home)
    try:
        nodes.start("head", room=on == "head")
        until(lambda: nodes.alive() == 1, 90, "the head")
        nodes.start("second", room=on == "second")
        until(lambda: nodes.alive() == 2, 60, "the second node")
        nodes.submit("alone", ALONE)
        nodes.submit("pair", PAIR)
        until(lambda: nodes.trained("alone") and nodes.trained("pair"), 150, "both training")
        yield nodes
    finally:
        nodes.close()


def wait_gone(
    processes: dict[str, list[psutil.Process]], seconds: float
) -> dict[str, float | None]:
    """When the last process of each role was gone, in seconds from now; None: it is there."""
    begun = time.time()
    left = {role: found for role, found in processes.items() if found}
    gone_at: dict[str, float | None] = dict.fromkeys(left)
    while time.time() - begun < seconds and any(at is None for at in gone_at.values()):
        for role, found in left.items():
            if gone_at[role] is None and all(map(gone, found)):
                gone_at[role] = round(time.time() - begun, 2)
        time.sleep(0.05)
    return gone_at
