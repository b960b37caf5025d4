"""A Ray cluster in memory: nodes, jobs and their processes, and all that was seen to go wrong.

`FakeCluster` asks it as the control plane asks `service.cluster.RayCluster`; `ray_server` serves it
over HTTP, so that the real client can be tried against it.
"""

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from service.cluster import RayStatus
from service.demand import DRIVER_SLOT, Bundle

TERM_TO_KILL_S = 3.0
"""RAY_JOB_STOP_WAIT_TIME_S, as our submissions set it."""
KILLED = -9


class RayAwayError(ConnectionError):
    """The head does not answer; what it was asked may have been done all the same."""


class Process(Protocol):
    """An attempt's first process."""

    @property
    def exit_code(self) -> int | None:
        """None while it lives."""

    def terminate(self) -> None:
        """SIGTERM: it may go, some time."""

    def kill(self) -> None:
        """SIGKILL: it is gone."""


@dataclass
class IdleProcess:
    """Lives until somebody ends it."""

    exit_code: int | None = None

    def end(self, exit_code: int = 0) -> None:
        """Leave, unless it is gone."""
        if self.exit_code is None:
            self.exit_code = exit_code

    def terminate(self) -> None:
        """Go at once."""
        self.end(-15)

    def kill(self) -> None:
        """Go at once."""
        self.end(KILLED)


@dataclass
class FakeNode:
    """A machine of the cluster."""

    id: str
    cpus: float = 8.0
    gpus: float = 0.0
    driver_slots: float = 8.0
    custom: dict[str, float] = field(default_factory=dict)
    alive: bool = True

    @property
    def resources(self) -> dict[str, float]:
        """By Ray's names."""
        found = {"CPU": self.cpus, "GPU": self.gpus, DRIVER_SLOT: self.driver_slots, **self.custom}
        return {name: amount for name, amount in found.items() if amount}


@dataclass
class Submission:
    """A job of Ray's, which is an attempt of ours."""

    id: str
    metadata: dict[str, str]
    entrypoint: str
    need: Bundle
    at: float
    node: FakeNode | None = None
    process: Process | None = None
    stopped_at: float | None = None
    failed_falsely: bool = False
    """The head's word is FAILED while the process lives, as during a failover."""
    lost_node: bool = False

    @property
    def lives(self) -> bool:
        """Whether its process runs, wherever that is."""
        return self.process is not None and self.process.exit_code is None

    @property
    def status(self) -> RayStatus:
        """The head's word."""
        if self.failed_falsely or self.lost_node:
            return RayStatus.FAILED
        if self.process is None:
            return RayStatus.PENDING if self.stopped_at is None else RayStatus.STOPPED
        if self.process.exit_code is None:
            return RayStatus.RUNNING
        if self.stopped_at is not None:
            return RayStatus.STOPPED
        return RayStatus.SUCCEEDED if self.process.exit_code == 0 else RayStatus.FAILED

    @property
    def message(self) -> str:
        """What the head says to it."""
        match self.status:
            case RayStatus.FAILED if self.lost_node:
                return "Job supervisor actor died: the node it ran on has died"
            case RayStatus.FAILED if self.failed_falsely:
                return "Unexpected error occurred: the head failed over"
            case RayStatus.FAILED:
                assert self.process is not None
                code = self.process.exit_code
                return f"Job entrypoint command failed with exit code {code}, last available logs"
            case RayStatus.STOPPED:
                return "Job was intentionally stopped."
            case RayStatus.SUCCEEDED:
                return "Job finished successfully."
            case RayStatus.PENDING:
                return "Job has not started yet."
            case _:
                return "Job is currently running."

    def document(self) -> dict[str, Any]:
        """As the Jobs API describes it."""
        return {
            "type": "SUBMISSION",
            "job_id": None,
            "submission_id": self.id,
            "status": self.status.value,
            "message": self.message,
            "entrypoint": self.entrypoint,
            "metadata": self.metadata,
            "start_time": int(self.at * 1000),
            "driver_node_id": self.node.id if self.node else None,
        }


@dataclass
class _Orphan:
    submission: Submission
    dies_at: float


class FakeRay:
    """The cluster. Every method is safe to call from several threads."""

    def __init__(
        self,
        nodes: list[FakeNode] | None = None,
        *,
        passed: Callable[[], float] = time.monotonic,
        spawn: Callable[[Submission], Process] = lambda submission: IdleProcess(),
        reconnect_timeout_s: float = 15.0,
        orphan_lives_s: Callable[[float], float] = lambda timeout: timeout,
    ) -> None:
        """Begin a session.

        Args:
            nodes: The machines; one with 8 CPUs by default.
            passed: A clock that is never set, in seconds.
            spawn: Starts an attempt's process; an IdleProcess by default.
            reconnect_timeout_s: How long processes outlive their head, at most.
            orphan_lives_s: Draws how long one does, from that timeout.
        """
        self.nodes = nodes if nodes is not None else [FakeNode("node-1")]
        self.session = _session_name()
        self.submissions: dict[str, Submission] = {}
        self.accepted: list[str] = []
        """Ids of all submissions that were taken, in order; an id may be there again after the
        head was lost."""
        self.stops: list[str] = []
        """Ids that somebody asked to stop, in order."""
        self.reachable = True
        self.answers_to_lose = 0
        """So many of the next submissions are taken, and the answer is lost."""
        self.head_lives = True
        self.reconnect_timeout_s = reconnect_timeout_s
        self.orphans: list[_Orphan] = []
        self._passed = passed
        self._spawn = spawn
        self._orphan_lives_s = orphan_lives_s
        self._lock = threading.RLock()

    # --------------------------------------------------------------- what the head is asked

    def ping(self) -> None:
        """Raises RayAwayError unless the head answers."""
        self.advance()
        if not (self.reachable and self.head_lives):
            raise RayAwayError("the head does not answer")

    def submit(
        self, id: str, entrypoint: str, metadata: dict[str, str], need: Bundle
    ) -> Submission:
        """Take a job. Raises KeyError for an id that is known, RayAwayError."""
        with self._lock:
            self.ping()
            if id in self.submissions:
                raise KeyError(f"Job {id} already exists.")
            submission = Submission(id, metadata, entrypoint, need, at=self._passed())
            self.submissions[id] = submission
            self.accepted.append(id)
            self.advance()
            if self.answers_to_lose:
                self.answers_to_lose -= 1
                raise RayAwayError("the answer was lost")
            return submission

    def stop(self, id: str) -> bool:
        """SIGTERM, and SIGKILL 3 s later; False for an id that is not known."""
        with self._lock:
            self.ping()
            submission = self.submissions.get(id)
            if submission is None:
                return False
            self.stops.append(id)
            if submission.stopped_at is None and not submission.status.over:
                submission.stopped_at = self._passed()
                if submission.process is not None:
                    submission.process.terminate()
            return True

    # ------------------------------------------------------------------------ time passes

    def advance(self) -> None:
        """Do what is due: start what fits, kill what did not go, let orphans die."""
        with self._lock:
            now = self._passed()
            for submission in self.submissions.values():
                self._advance_one(submission, now)
            for orphan in self.orphans:
                if now >= orphan.dies_at and orphan.submission.process is not None:
                    orphan.submission.process.kill()
            self.orphans = [orphan for orphan in self.orphans if orphan.submission.lives]

    def _advance_one(self, submission: Submission, now: float) -> None:
        if submission.stopped_at is not None:
            if submission.lives and now - submission.stopped_at >= TERM_TO_KILL_S:
                assert submission.process is not None
                submission.process.kill()
        elif submission.process is None and not submission.lost_node and self.head_lives:
            node = self._room_for(submission.need)
            if node is not None:
                submission.node = node
                submission.process = self._spawn(submission)

    def _room_for(self, need: Bundle) -> FakeNode | None:
        for node in self.nodes:
            here = [s.need for s in self.submissions.values() if s.lives and s.node is node]
            free = (
                node.cpus - sum(other.cpus for other in here),
                node.gpus - sum(other.gpus for other in here),
                node.driver_slots - sum(other.driver_slots for other in here),
            )
            wanted = (need.cpus, need.gpus, need.driver_slots)
            if node.alive and all(has >= wants for has, wants in zip(free, wanted, strict=True)):
                return node
        return None

    # --------------------------------------------------------------------- what befalls it

    def kill_head(self) -> None:
        """The head dies: all that it knew is forgotten, and what it ran lives on for a while."""
        with self._lock:
            now = self._passed()
            for submission in self.submissions.values():
                if submission.lives:
                    lives_s = self._orphan_lives_s(self.reconnect_timeout_s)
                    self.orphans.append(_Orphan(submission, now + lives_s))
            self.submissions = {}
            self.head_lives = False

    def start_head(self) -> None:
        """A new head, with another session and new nodes in place of the old ones."""
        with self._lock:
            self.session = _session_name()
            for node in self.nodes:
                node.id = f"{node.id.partition('/')[0]}/{secrets.token_hex(3)}"
                node.alive = True
            self.head_lives = True
            self.advance()

    def kill_node(self, node: FakeNode) -> None:
        """A machine is gone, with every process on it."""
        with self._lock:
            node.alive = False
            known = [*self.submissions.values(), *(orphan.submission for orphan in self.orphans)]
            for submission in known:
                if submission.node is node and submission.lives:
                    assert submission.process is not None
                    submission.process.kill()
                    submission.lost_node = True
            self.advance()

    def replace_node(self, node: FakeNode) -> FakeNode:
        """A machine joins in place of a dead one."""
        with self._lock:
            fresh = FakeNode(
                f"{node.id.partition('/')[0]}/{secrets.token_hex(3)}",
                node.cpus,
                node.gpus,
                node.driver_slots,
                dict(node.custom),
            )
            self.nodes.append(fresh)
            self.advance()
            return fresh


def _session_name() -> str:
    return f"session_{secrets.token_hex(6)}"
