"""`FakeRay` asked as the reconciler asks a cluster, without a network in between."""

from collections.abc import Iterator
from contextlib import contextmanager

from service.cluster import ENTRYPOINT, ClusterSeen, Node, RayJob, RayStatus
from service.demand import ACCELERATOR, Bundle
from service.errors import ClusterUnavailableError
from service.testing.ray import FakeNode, FakeRay, RayAwayError, Submission
from workers.crash import crashing


class FakeCluster:
    """Answers as `service.cluster.RayCluster` does."""

    def __init__(self, ray: FakeRay) -> None:
        self.ray = ray

    def close(self) -> None:
        """Nothing is held."""

    def ping(self) -> None:
        """Raises ClusterUnavailableError unless the head answers."""
        with _told():
            self.ray.ping()

    def look(self) -> ClusterSeen:
        """Session, jobs and nodes at once. Raises ClusterUnavailableError."""
        with crashing("ray.look"), _told():
            self.ray.ping()
            return ClusterSeen(
                self.ray.session,
                {id: _job(submission) for id, submission in self.ray.submissions.items()},
                [_node(node) for node in self.ray.nodes if node.alive],
                frozenset(node.id for node in self.ray.nodes if not node.alive),
            )

    def nodes(self) -> list[Node]:
        """Nodes that are alive. Raises ClusterUnavailableError."""
        return list(self.look().nodes)

    def submit(
        self, submission_id: str, job: str, attempt: int, need: Bundle, queue_id: str
    ) -> None:
        """Start an attempt; one that the head has already is adopted.

        Raises ClusterUnavailableError when it is not certain that the head has it.
        """
        metadata = {"caps_job": job, "caps_attempt": str(attempt), "caps_queue": queue_id}
        entrypoint = ENTRYPOINT.format(job=job, attempt=attempt)
        with crashing("ray.submit"), _told():
            if submission_id not in self.ray.submissions:
                self.ray.submit(submission_id, entrypoint, metadata, need)
            self.ray.ping()

    def job(self, submission_id: str) -> RayJob:
        """The head's word on a submission; never raises."""
        try:
            return self.look().job(submission_id)
        except ClusterUnavailableError as error:
            return RayJob(RayStatus.UNREACHABLE, str(error))

    def stop(self, submission_id: str) -> None:
        """SIGTERM, then SIGKILL. Raises ClusterUnavailableError."""
        with crashing("ray.stop"), _told():
            self.ray.stop(submission_id)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except RayAwayError as error:
        raise ClusterUnavailableError(f"Ray does not answer: {error}") from error


def _job(submission: Submission) -> RayJob:
    return RayJob(
        submission.status,
        submission.message,
        submission.node.id if submission.node else None,
        submission.metadata.get("caps_queue"),
    )


def _node(node: FakeNode) -> Node:
    kinds = [name.removeprefix(ACCELERATOR) for name in node.custom if ACCELERATOR in name]
    return Node(node.id, node.cpus, node.gpus, node.driver_slots, frozenset(kinds))
