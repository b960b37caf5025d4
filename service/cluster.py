"""The only file that speaks to Ray: the head's REST API (jobs, nodes) over httpx.

Ray's word is a cache and never the truth: the queue is. What Ray says is used for placement and
for "this attempt's process is gone", nothing else.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import httpx

from capsmodel.allocator import ALLOCATOR_ENVIRONMENT
from service.demand import ACCELERATOR, DRIVER_SLOT, Bundle
from service.errors import ClusterUnavailableError
from workers.crash import crashing

TIMEOUT_S = 5.0

ENTRYPOINT = 'exec "$CAPS_PYTHON" -P -m workers {job} {attempt}'
"""`exec`, so that the worker is the direct child of Ray's supervisor and dies with it; `-P`, so
that the working folder never shadows the installed package. CAPS_PYTHON stands in every node's
environment: a bare `python` would be the first on PATH, not the one with our packages."""

WORKER_ENVIRONMENT = {
    # Ray's grace between SIGTERM and SIGKILL; the stop flag came 10 s earlier.
    "RAY_JOB_STOP_WAIT_TIME_S": "3",
    # A call to a dead MLflow takes minutes without these; the courier repeats what fails by itself.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    **ALLOCATOR_ENVIRONMENT,
    "PYTHONUNBUFFERED": "1",
    # What the actors of a search or of several workers print is printed once each, as it is, and
    # a worker that died is noticed at once.
    "RAY_DEDUP_LOGS": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}


class RayStatus(StrEnum):
    """What Ray says of a job, and the two ways of not knowing."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    MISSING = "MISSING"
    """Ray answers, and has never heard of it (a restarted head forgets all jobs)."""
    UNREACHABLE = "UNREACHABLE"

    @property
    def alive(self) -> bool:
        """Whether a process of the attempt may be running, as far as Ray knows."""
        return self in (RayStatus.PENDING, RayStatus.RUNNING)

    @property
    def over(self) -> bool:
        """Whether Ray saw the attempt's process end."""
        return self in (RayStatus.STOPPED, RayStatus.SUCCEEDED, RayStatus.FAILED)


@dataclass(frozen=True)
class RayJob:
    """Ray's word on one submission."""

    status: RayStatus
    message: str = ""
    node_id: str | None = None
    queue_id: str | None = None
    """The queue whose attempt it is."""


@dataclass(frozen=True)
class Node:
    """A node that is alive, with all that it offers."""

    id: str
    cpus: float
    gpus: float
    driver_slots: float = 0.0
    accelerators: frozenset[str] = frozenset()
    """Kinds, by Ray's names, as `H100`."""


@dataclass(frozen=True)
class ClusterSeen:
    """The cluster at one moment."""

    session: str
    """Ray's name of it: a head that was started again begins another one and knows no job."""
    jobs: Mapping[str, RayJob]
    """By submission id."""
    nodes: Sequence[Node]
    """Those that are alive."""
    dead_nodes: frozenset[str] = frozenset()

    def job(self, submission_id: str) -> RayJob:
        """Ray's word on a submission."""
        return self.jobs.get(submission_id, RayJob(RayStatus.MISSING))


class Cluster(Protocol):
    """What the reconciler asks of a cluster; `service.testing` has one in memory."""

    def look(self) -> ClusterSeen:
        """All at once. Raises ClusterUnavailableError."""

    def submit(
        self, submission_id: str, job: str, attempt: int, need: Bundle, queue_id: str
    ) -> None:
        """Start an attempt. Raises ClusterUnavailableError when it is not certain."""

    def stop(self, submission_id: str) -> None:
        """End an attempt. Raises ClusterUnavailableError."""


class RayCluster:
    """A Ray head, by its dashboard's address and its token."""

    def __init__(self, address: str, token: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.address = address
        # The head is on our own network: a proxy for the world outside is none for it.
        self._http = httpx.Client(
            base_url=address, headers=headers, timeout=TIMEOUT_S, trust_env=False
        )

    def close(self) -> None:
        """Drop the connections."""
        self._http.close()

    def ping(self) -> None:
        """Raises ClusterUnavailableError unless the head answers, with our token."""
        self._call("GET", "/api/jobs/caps-ping", accept=(404,))

    def look(self) -> ClusterSeen:
        """Session, jobs and nodes at once. Raises ClusterUnavailableError."""
        with crashing("ray.look"):
            # The session comes last: jobs of a head that has died since are not taken for those
            # of the next one, whose list would still be empty.
            jobs = self._jobs()
            rows = self._node_rows()
            session = self._session()
        return ClusterSeen(
            session,
            jobs,
            [_node(row) for row in rows if row["state"] == "ALIVE"],
            frozenset(row["node_id"] for row in rows if row["state"] == "DEAD"),
        )

    def nodes(self) -> list[Node]:
        """Nodes that are alive. Raises ClusterUnavailableError."""
        return [_node(row) for row in self._node_rows() if row["state"] == "ALIVE"]

    def _session(self) -> str:
        answer = self._call("GET", "/api/version")
        with self._understood(answer):
            return str(answer.json()["session_name"])

    def _jobs(self) -> dict[str, RayJob]:
        answer = self._call("GET", "/api/jobs/")
        with self._understood(answer):
            rows = [row for row in answer.json() if row.get("submission_id")]
            return {row["submission_id"]: _job(row) for row in rows}

    def _node_rows(self) -> list[dict[str, Any]]:
        answer = self._call("GET", "/api/v0/nodes", params={"detail": 1})
        with self._understood(answer):
            rows: list[dict[str, Any]] = answer.json()["data"]["result"]["result"]
            for row in rows:
                _node(row)
            return rows

    def submit(
        self, submission_id: str, job: str, attempt: int, need: Bundle, queue_id: str
    ) -> None:
        """Start an attempt's first process on what it needs.

        An attempt that Ray has already is adopted. Of two services on one cluster each knows its
        own attempts by `queue_id`.
        Raises ClusterUnavailableError when it is not certain that Ray has it.
        """
        body = {
            "submission_id": submission_id,
            "entrypoint": ENTRYPOINT.format(job=job, attempt=attempt),
            "entrypoint_num_cpus": need.cpus,
            "entrypoint_num_gpus": need.gpus,
            "entrypoint_resources": need.custom,
            "runtime_env": {"env_vars": WORKER_ENVIRONMENT},
            "metadata": {"caps_job": job, "caps_attempt": str(attempt), "caps_queue": queue_id},
        }
        try:
            with crashing("ray.submit"):
                self._call("POST", "/api/jobs/", json=body)
        except ClusterUnavailableError:
            # Ray answers 500 to a duplicate, and a timeout says nothing: look it up.
            if self.job(submission_id).status in (RayStatus.MISSING, RayStatus.UNREACHABLE):
                raise

    def job(self, submission_id: str) -> RayJob:
        """Ray's word on a submission; never raises."""
        try:
            answer = self._call("GET", f"/api/jobs/{submission_id}", accept=(200, 404))
        except ClusterUnavailableError as error:
            return RayJob(RayStatus.UNREACHABLE, str(error))
        if answer.status_code == 404:
            return RayJob(RayStatus.MISSING)
        try:
            with self._understood(answer):
                return _job(answer.json())
        except ClusterUnavailableError as error:
            return RayJob(RayStatus.UNREACHABLE, str(error))

    def stop(self, submission_id: str) -> None:
        """SIGTERM to the attempt's processes, then SIGKILL. Raises ClusterUnavailableError."""
        with crashing("ray.stop"):
            self._call("POST", f"/api/jobs/{submission_id}/stop", accept=(200, 404))

    def _call(
        self, method: str, path: str, accept: tuple[int, ...] = (200,), **options: Any
    ) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise ClusterUnavailableError(
                f"Ray at {self.address} does not answer: {error or type(error).__name__}"
            ) from error
        if answer.status_code in (401, 403):
            raise ClusterUnavailableError(f"Ray at {self.address} refuses our token")
        if answer.status_code not in accept:
            raise self._strange(answer)
        return answer

    @contextmanager
    def _understood(self, answer: httpx.Response) -> Iterator[None]:
        """An answer in another form than Ray's tells nothing."""
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._strange(answer) from error

    def _strange(self, answer: httpx.Response) -> ClusterUnavailableError:
        """The error for an answer that Ray should not give."""
        last_line = answer.text.strip().splitlines()[-1:] or [""]
        return ClusterUnavailableError(
            f"Ray at {self.address} answered {answer.status_code}: {last_line[0][:300]}"
        )


def _job(row: dict[str, Any]) -> RayJob:
    metadata = row.get("metadata") or {}
    return RayJob(
        RayStatus(row["status"]),
        row.get("message") or "",
        row.get("driver_node_id"),
        metadata.get("caps_queue"),
    )


def _node(row: dict[str, Any]) -> Node:
    total = row["resources_total"]
    kinds = (name.removeprefix(ACCELERATOR) for name in total if name.startswith(ACCELERATOR))
    return Node(
        row["node_id"],
        total.get("CPU", 0.0),
        total.get("GPU", 0.0),
        total.get(DRIVER_SLOT, 0.0),
        frozenset(kinds),
    )
