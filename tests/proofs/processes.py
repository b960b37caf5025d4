"""Control planes and workers as real processes, forked from one that has loaded all there is.

`python -m proofs.processes` is that one: it forks on demand and tells how a child ended. A child
does what it is told over a socket, one line of JSON an order, and may be killed by a crash point at
any moment.
"""

import json
import os
import socket
import ssl
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from service.cluster import RayCluster
from service.errors import CapsError
from service.queue.job import Desired, Kind
from service.queue.store import Store
from service.reconciler import ReconcilerLoop, observer
from service.runs import MlflowRuns
from service.settings import Settings
from service.testing.clock import FakeClock
from service.testing.mlflow import FakeMlflow
from service.testing.mlflow_server import serve_mlflow
from service.testing.ray import FakeRay
from service.testing.ray_server import serve_ray
from service.testing.worker import Fakes
from workers.search_specs import TRUSTED
from workers.specs import PRESETS

TESTS = Path(__file__).parents[1]


# ------------------------------------------------------------------------------ in the child


class Clock(FakeClock):
    """Shows what the last order said."""

    def __init__(self) -> None:
        super().__init__(0.0)

    def show(self, passed: float, wall: float) -> None:
        """Set both readings."""
        self._passed, self._wall_at_zero = passed, wall - passed


class ControlPlane:
    """A store, a reconciler, and the real clients of Ray and MLflow."""

    def __init__(self, world: dict[str, Any]) -> None:
        self.clock = Clock()
        self._store = Store(world["database"])
        settings = Settings(
            home=Path(world["storage"]),
            storage=Path(world["storage"]),
            database_url=world["database"],
            mlflow_uri=world["mlflow"],
            ray_address=world["ray"],
        )
        self._cluster, runs = RayCluster(world["ray"]), MlflowRuns(world["mlflow"])
        now = self.clock.wall
        vars(observer)["time"] = SimpleNamespace(time=now, monotonic=self.clock.passed)
        self._loop = ReconcilerLoop(self._store, self._cluster, runs, settings, now=now)

    def close(self) -> None:
        """Give the connections back."""
        self._store.close()
        self._cluster.close()

    def tick(self) -> bool:
        """Look once."""
        return self._loop.tick()

    def add(self, kind: str, spec: str, key: str) -> str:
        """A job comes."""
        parsed = Kind(kind).spec.model_validate_json(spec, context=TRUSTED)
        return self._store.add(parsed, idempotency_key=key).id

    def desire(self, job: str, desired: str) -> None:
        """A user changes his mind."""
        self._store.set_desired(job, Desired(desired))

    def retry(self, job: str) -> None:
        """A user has it tried again."""
        self._store.retry(job)

    def reopen(self, job: str) -> None:
        """A user has a search's failed trials tried again."""
        self._store.reopen(job)

    def delete(self, job: str) -> None:
        """A user deletes it."""
        self._store.request_delete(job)


class Worker:
    """A played worker; see `service.testing.worker`."""

    def __init__(self, world: dict[str, Any]) -> None:
        self.clock = Clock()
        fakes = Fakes(self.clock, Path(world["storage"]))
        self._worker = fakes.start(world["job"], world["attempt"], world["host"], **world["habits"])
        self._worker.pid = world["number"]

    def act(self) -> dict[str, Any]:
        """Do the next little thing."""
        self._worker.act()
        return {"done": self._worker.done, "exit_code": self._worker.exit_code}

    def terminate(self) -> None:
        """SIGTERM has come."""
        self._worker.terminate()


ROLES: dict[str, type[ControlPlane] | type[Worker]] = {
    "control plane": ControlPlane,
    "worker": Worker,
}


def serve(world: dict[str, Any], connection: socket.socket) -> None:
    """Do as told until the connection ends."""
    role = ROLES[world["role"]](world)
    with connection.makefile("rw") as lines:
        for line in lines:
            order = json.loads(line)
            role.clock.show(order["passed"], order["wall"])
            try:
                answer = {"answer": getattr(role, order["do"])(**order["with"])}
            except CapsError as error:
                answer = {"refused": f"{error.code}: {error}"}
            lines.write(json.dumps(answer) + "\n")
            lines.flush()


def _warm(world: dict[str, Any]) -> int:
    """Do once what is slow the first time, so that no child has to."""
    plane = ControlPlane(world)
    plane.clock.show(0.0, 0.0)
    plane.add(Kind.TRAIN, PRESETS["demo"].model_dump_json(), "warm")
    for _ in range(2):
        plane.tick()
    plane.close()
    return 0


def main() -> None:
    """Fork as ordered on stdin; tell how a child ended on stdout."""
    # All is plain HTTP on loopback, and reading the world's certificates is slow.
    ssl.SSLContext.load_verify_locations = lambda *arguments, **options: None  # type: ignore[method-assign,assignment]
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            answer = os.waitpid(order["wait"], 0)[1]
        elif "warm" in order:
            answer = _warm(order["warm"])
        else:
            answer = os.fork()
            if answer == 0:
                os.environ.update(order["environment"])
                connection = socket.socket(socket.AF_UNIX)
                connection.connect(order["socket"])
                status = 1
                with suppress(BrokenPipeError):
                    serve(order["world"], connection)
                    status = 0
                os._exit(status)
        print(answer, flush=True)


# ----------------------------------------------------------------------------- in the parent


class DiedError(Exception):
    """The child is gone, in the middle of what it was told."""


@dataclass
class Child:
    """A process of ours."""

    nursery: "Nursery"
    pid: int
    connection: socket.socket
    status: int | None = None
    """As `waitpid` tells; None while it lives."""

    def __post_init__(self) -> None:
        self._lines = self.connection.makefile("rw")

    def ask(self, do: str, passed: float, wall: float, **arguments: Any) -> Any:
        """Have it do something. Raises DiedError."""
        order = {"do": do, "with": arguments, "passed": passed, "wall": wall}
        try:
            self._lines.write(json.dumps(order) + "\n")
            self._lines.flush()
            line = self._lines.readline()
        except OSError:
            line = ""
        if not line:
            self.wait()
            raise DiedError(do)
        return json.loads(line).get("answer")

    def kill(self) -> None:
        """SIGKILL, if it lives."""
        if self.status is None:
            os.kill(self.pid, 9)
            self.wait()

    def wait(self) -> int:
        """How it ended."""
        if self.status is None:
            self.status = self.nursery.order({"wait": self.pid})
            with suppress(OSError):
                self._lines.close()
            self.connection.close()
        return self.status


class Nursery:
    """The process that forks."""

    def __init__(self, folder: Path) -> None:
        self._path = str(folder / "nursery")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self._path)
        self._listener.listen()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "proofs.processes"],
            cwd=TESTS,
            env=os.environ | {"PYTHONPATH": f"{TESTS}:{TESTS.parent}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def warm(self, database: str, storage: Path) -> None:
        """Have all loaded that a control plane needs; leaves a job in the database."""
        with serve_ray(FakeRay()) as ray, serve_mlflow(FakeMlflow()) as mlflow:
            world = {"database": database, "storage": str(storage), "ray": ray, "mlflow": mlflow}
            self.order({"warm": world})

    def fork(self, environment: dict[str, str] | None = None, **world: Any) -> Child:
        """A child for a world."""
        order = {"environment": environment or {}, "socket": self._path, "world": world}
        pid = self.order(order)
        connection, _ = self._listener.accept()
        return Child(self, pid, connection)

    def order(self, order: dict[str, Any]) -> int:
        """Say a line, read a number."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """No more children."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=10)
        self._listener.close()


if __name__ == "__main__":
    main()
