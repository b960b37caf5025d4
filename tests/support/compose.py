"""A deployment in containers, as docker-compose.yml has it, for tests."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from mlflow import MlflowClient

from service.client import CapsClient
from service.stack.processes import free_port
from support.stack import until

REPOSITORY = Path(__file__).parents[2]
VERSION = os.environ.get("CAPS_VERSION", "0.1.0")
OURS = ("api", "mlflow", "postgres", "ray-head", "ray-worker")
"""Services that run for as long as the deployment is up."""


def engine() -> str:
    """`docker` or `podman`; skips where neither is here, nor a command that brings it."""
    if shutil.which("docker") and _succeeds("docker", "info"):
        return "docker"
    if shutil.which("podman-compose") or os.environ.get("CAPS_BASE_IMAGES"):
        return "podman"
    pytest.skip("neither a Docker engine nor podman is here")


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


def build() -> None:
    """Build the images, or find them built."""
    subprocess.run([REPOSITORY / "deploy" / "build.sh"], check=True, timeout=1500)


def published() -> set[tuple[str, int]]:
    """Addresses and ports of this host on which an engine listens for its containers."""
    engines = ("conmon", "docker-proxy", "rootlessport", "pasta", "slirp4netns")
    found = set()
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.pid:
            with contextlib.suppress(psutil.NoSuchProcess):
                if psutil.Process(connection.pid).name() in engines:
                    found.add((connection.laddr.ip, connection.laddr.port))
    return found


class Deployment:
    """One project of compose: its containers, its published ports, its volumes."""

    def __init__(self, project: str, **environment: str) -> None:
        self.project = project
        self.engine = engine()
        self.api_port, self.mlflow_port = free_port(), free_port()
        self.api_url = f"http://127.0.0.1:{self.api_port}"
        self.mlflow_url = f"http://127.0.0.1:{self.mlflow_port}"
        self.environment = {
            **os.environ,
            "CAPS_API_PORT": str(self.api_port),
            "CAPS_MLFLOW_PORT": str(self.mlflow_port),
            "CAPS_MLFLOW_PUBLIC_URL": self.mlflow_url,
            **environment,
        }
        self.token = ""

    def up(self, workers: int) -> None:
        """Bring it up from nothing, wait until all answers, and get a token that may submit."""
        self.down()
        self.compose("up", "--detach", "--no-build", "--scale", f"ray-worker={workers}")
        until(self.ready, 240, "the deployment is ready")
        self.token = self.capsctl("token", "create", "--owner", "tests", "--scope", "submit")
        until(lambda: len(self.nodes()) == workers + 1, 120, f"{workers} workers have joined")

    def down(self) -> None:
        """Take it down, with its volumes."""
        # podman-compose knows of one container a service only.
        labelled = f"label=com.docker.compose.project={self.project}"
        left = self.run("ps", "--all", "--quiet", "--filter", labelled).split()
        if left:
            self.run("rm", "--force", *left)
        self.compose("down", "--volumes")

    def ready(self) -> bool:
        """Whether the API says that all its parts answer."""
        try:
            return httpx.get(f"{self.api_url}/readyz", timeout=20).status_code == 200
        except httpx.HTTPError:
            return False

    def client(self) -> CapsClient:
        """A client with the token that may submit, patient with an API that is away."""
        return CapsClient(self.api_url, token=self.token, patience=120, submit_patience=120)

    def mlflow(self) -> MlflowClient:
        """A client of the tracking server's published port."""
        return MlflowClient(self.mlflow_url)

    def capsctl(self, *arguments: str) -> str:
        """What the command prints on standard output, in the API's container."""
        return self.inside(self.container("api"), "capsctl", *arguments).strip()

    def nodes(self) -> list[dict[str, Any]]:
        """Ray's nodes that are alive, as the head tells."""
        asked = (
            "import json, urllib.request as u;"
            "t = open('/secrets/ray/token').read().strip();"
            "r = u.Request('http://ray-head:8265/api/v0/nodes?detail=1',"
            " headers={'Authorization': 'Bearer ' + t});"
            "print(u.urlopen(r, timeout=5).read().decode())"
        )
        try:
            answer = self.inside(self.container("api"), "python", "-c", asked)
        except subprocess.CalledProcessError:
            return []
        rows: list[dict[str, Any]] = json.loads(answer)["data"]["result"]["result"]
        return [row for row in rows if row["state"] == "ALIVE"]

    # --------------------------------------------------------------------------- containers

    def containers(self, service: str) -> list[str]:
        """Names of a service's containers, running or not."""
        names = self.run("ps", "--all", "--format", "{{.Names}}").split()
        prefixes = tuple(f"{self.project}{mark}{service}{mark}" for mark in "-_")
        return sorted(
            n
            for n in names
            if n.startswith(prefixes) and n.rpartition(n[len(self.project)])[2].isdecimal()
        )

    def container(self, service: str) -> str:
        """The name of a service's only container."""
        (name,) = self.containers(service)
        return name

    def inspect(self, container: str) -> dict[str, Any]:
        """All that the engine knows of a container."""
        (found,) = json.loads(self.run("inspect", container))
        assert isinstance(found, dict)
        return found

    def main_process(self, container: str) -> int:
        """The host's id of a container's first process; 0 where it does not run."""
        state = self.inspect(container)["State"]
        return int(state["Pid"]) if state["Running"] else 0

    def kill(self, container: str) -> int:
        """SIGKILL to the first process, past the engine, as a crash would be; its id."""
        pid = self.main_process(container)
        assert pid > 0, f"{container} does not run"
        os.kill(pid, signal.SIGKILL)
        return pid

    def is_back(self, container: str, killed: int) -> bool:
        """Whether the restart policy has started it again."""
        return self.main_process(container) not in (0, killed)

    def inside(self, container: str, *command: str) -> str:
        """The standard output of a command in a container. Raises CalledProcessError."""
        return self.run("exec", container, *command)

    def volume(self, name: str) -> Path:
        """Where a volume lies on this host."""
        known = self.run(
            "volume", "inspect", "--format", "{{.Mountpoint}}", f"{self.project}_{name}"
        )
        return Path(known.strip())

    def run(self, *arguments: str) -> str:
        """The standard output of a command of the engine's."""
        done = subprocess.run(
            [self.engine, *arguments], check=True, capture_output=True, text=True, timeout=120
        )
        return done.stdout

    def compose(self, *arguments: str) -> None:
        """A command of compose's. Of `up` it is asserted that it succeeds."""
        command = ["docker", "compose"] if self.engine == "docker" else ["podman-compose"]
        done = subprocess.run(
            [*command, "--project-name", self.project, *arguments],
            cwd=REPOSITORY,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if arguments[0] == "up":
            assert done.returncode == 0, done.stdout + done.stderr


def metric_steps(client: MlflowClient, run_id: str, names: Iterable[str]) -> dict[str, list[int]]:
    """Steps of the points of a run's metrics, in the order in which they were sent."""
    return {
        name: [point.step for point in client.get_metric_history(run_id, name)] for name in names
    }
