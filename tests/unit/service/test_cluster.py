"""RayCluster against a real HTTP server that answers as the head of Ray 2.60 does."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from service import cluster as module
from service.cluster import Node, RayCluster, RayStatus
from service.demand import DRIVER, Bundle
from service.errors import ClusterUnavailableError

TOKEN = "a-token"


@dataclass
class Head:
    """A stand-in for the dashboard: its jobs, and how it misbehaves."""

    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    nodes: list[dict[str, Any]] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    hang: threading.Event = field(default_factory=threading.Event)
    hangs_on: str = "nothing"
    accepts_then_hangs: bool = False
    raw: tuple[int, bytes] | None = None
    url: str = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and document."""
        if self.raw:
            return self.raw
        if method == "POST" and path == "/api/jobs/":
            return self._submit(json.loads(body))
        if path.startswith("/api/v0/nodes"):
            assert "detail=1" in path
            return 200, {"result": True, "data": {"result": {"result": self.nodes}}}
        submission = path.removeprefix("/api/jobs/").removesuffix("/stop")
        if submission not in self.jobs:
            return 404, f"Job {submission} does not exist"
        if path.endswith("/stop"):
            self.stopped.append(submission)
            return 200, {"stopped": True}
        return 200, self.jobs[submission]

    def _submit(self, request: dict[str, Any]) -> tuple[int, Any]:
        submission = request["submission_id"]
        if submission in self.jobs:
            lines = ["Traceback (most recent call last):", "  ...", ""]
            return 500, "\n".join([*lines, f"ValueError: Job {submission} already exists."])
        self.jobs[submission] = {"status": "PENDING", "message": None, **request}
        if self.accepts_then_hangs:
            self.hang.wait(10)
        return 200, {"job_id": submission, "submission_id": submission}


@pytest.fixture
def head() -> Iterator[Head]:
    found = Head()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status: int
            if found.hangs_on in self.path:
                found.hang.wait(10)
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                status, document = 401, "Unauthorized"
            else:
                status, document = found.answer(self.command, self.path, body)
            content = document if isinstance(document, bytes) else json.dumps(document).encode()
            if isinstance(document, str):
                content = document.encode()
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except OSError:
                pass  # the client had no more patience

        do_GET = do_POST = _serve  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_port}"
    yield found
    found.hang.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def ray(head: Head, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayCluster]:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.3)
    found = RayCluster(head.url, TOKEN)
    yield found
    found.close()


def submit(ray: RayCluster) -> None:
    ray.submit("caps-j-1", "j", 1, Bundle(cpus=2, gpus=1), "q1")


def test_an_attempt_is_submitted_with_its_command_and_its_needs(
    head: Head, ray: RayCluster
) -> None:
    submit(ray)
    request = head.jobs["caps-j-1"]
    assert request["entrypoint"] == 'exec "$CAPS_PYTHON" -P -m workers j 1'
    assert (request["entrypoint_num_cpus"], request["entrypoint_num_gpus"]) == (2, 1)
    assert request["metadata"] == {"caps_job": "j", "caps_attempt": "1", "caps_queue": "q1"}
    assert request["runtime_env"].keys() == {"env_vars"}, "nothing is shipped"
    assert not any("TOKEN" in name for name in request["runtime_env"]["env_vars"])
    assert ray.job("caps-j-1").status is RayStatus.PENDING


def test_a_driver_asks_for_its_slot_alone(head: Head, ray: RayCluster) -> None:
    ray.submit("caps-s-1", "s", 1, DRIVER, "q1")
    request = head.jobs["caps-s-1"]
    assert (request["entrypoint_num_cpus"], request["entrypoint_num_gpus"]) == (0, 0)
    assert request["entrypoint_resources"] == {"driver_slot": 1}


def test_a_kind_of_accelerator_is_asked_for_as_ray_names_it(head: Head, ray: RayCluster) -> None:
    ray.submit("caps-j-1", "j", 1, Bundle(cpus=1, gpus=0.5, accelerator_type="H100"), "q1")
    request = head.jobs["caps-j-1"]
    assert request["entrypoint_num_gpus"] == 0.5
    assert request["entrypoint_resources"] == {"accelerator_type:H100": 0.001}


def test_an_attempt_that_ray_has_already_is_adopted(head: Head, ray: RayCluster) -> None:
    submit(ray)
    head.jobs["caps-j-1"]["status"] = "RUNNING"
    submit(ray)
    assert len(head.jobs) == 1


def test_an_answer_that_never_came_is_looked_up(head: Head, ray: RayCluster) -> None:
    head.accepts_then_hangs = True
    submit(ray)
    assert list(head.jobs) == ["caps-j-1"]


def test_a_refused_submission_is_an_error(head: Head, ray: RayCluster) -> None:
    head.hangs_on = "/api/jobs/"
    with pytest.raises(ClusterUnavailableError, match="does not answer"):
        submit(ray)


def test_ray_says_where_a_job_is_and_why(head: Head, ray: RayCluster) -> None:
    head.jobs["caps-j-1"] = {"status": "FAILED", "message": "exit 137", "driver_node_id": "n1"}
    found = ray.job("caps-j-1")
    assert (found.status, found.message, found.node_id) == (RayStatus.FAILED, "exit 137", "n1")
    assert found.status.over
    assert not found.status.alive


def test_an_unknown_job_is_missing(ray: RayCluster) -> None:
    assert ray.job("caps-j-1").status is RayStatus.MISSING


def test_a_job_is_stopped_and_one_that_is_gone_is_no_error(head: Head, ray: RayCluster) -> None:
    submit(ray)
    ray.stop("caps-j-1")
    ray.stop("caps-j-2")
    assert head.stopped == ["caps-j-1"]


def test_a_head_that_answers_is_pinged(ray: RayCluster) -> None:
    ray.ping()


@pytest.mark.parametrize("token", [None, "another"])
def test_a_refused_token_is_named(head: Head, token: str | None) -> None:
    stranger = RayCluster(head.url, token)
    for call in (stranger.ping, stranger.nodes, lambda: submit(stranger)):
        with pytest.raises(ClusterUnavailableError, match="refuses our token"):
            call()
    assert stranger.job("caps-j-1").status is RayStatus.UNREACHABLE
    assert head.jobs == {}
    stranger.close()


def test_a_dead_port_is_unreachable() -> None:
    dead = RayCluster("http://127.0.0.1:1", TOKEN)
    found = dead.job("caps-j-1")
    assert found.status is RayStatus.UNREACHABLE
    assert "127.0.0.1:1" in found.message
    for call in (dead.ping, dead.nodes, lambda: submit(dead), lambda: dead.stop("caps-j-1")):
        with pytest.raises(ClusterUnavailableError):
            call()
    dead.close()


def test_a_head_that_hangs_costs_the_timeout(head: Head, ray: RayCluster) -> None:
    head.hangs_on = "/api"
    begun = time.monotonic()
    assert ray.job("caps-j-1").status is RayStatus.UNREACHABLE
    with pytest.raises(ClusterUnavailableError):
        ray.nodes()
    assert time.monotonic() - begun < 3


def test_only_nodes_that_are_alive_count(head: Head, ray: RayCluster) -> None:
    total = {"CPU": 4.0, "memory": 1e9, "node:10.0.0.1": 1.0}
    head.nodes = [
        {"node_id": "a", "state": "ALIVE", "resources_total": total},
        {"node_id": "b", "state": "ALIVE", "resources_total": {"CPU": 8.0, "GPU": 2.0}},
        {"node_id": "c", "state": "ALIVE", "resources_total": {"memory": 1e9}},
        {"node_id": "d", "state": "DEAD", "resources_total": total},
    ]
    assert ray.nodes() == [Node("a", 4, 0), Node("b", 8, 2), Node("c", 0, 0)]


def test_a_node_offers_driver_slots_and_kinds_of_accelerators(head: Head, ray: RayCluster) -> None:
    total = {"CPU": 4.0, "GPU": 1.0, "driver_slot": 8.0, "accelerator_type:H100": 1.0}
    head.nodes = [{"node_id": "a", "state": "ALIVE", "resources_total": total}]
    assert ray.nodes() == [Node("a", 4, 1, 8, frozenset({"H100"}))]


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param((500, b"Traceback:\n\nInternalError: oh"), id="an error"),
        pytest.param((200, b"<html>a login page</html>"), id="no JSON"),
        pytest.param((200, b'{"status": "BLOCKED", "data": null}'), id="of another release"),
        pytest.param((200, b"[]"), id="another shape"),
        pytest.param((302, b""), id="a redirect"),
    ],
)
def test_a_strange_answer_tells_nothing(
    head: Head, ray: RayCluster, raw: tuple[int, bytes]
) -> None:
    head.raw = raw
    found = ray.job("caps-j-1")
    assert found.status is RayStatus.UNREACHABLE
    assert f"answered {raw[0]}" in found.message
    with pytest.raises(ClusterUnavailableError, match=f"answered {raw[0]}"):
        ray.nodes()
