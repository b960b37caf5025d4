"""Idempotency-Key over a real socket, and jobs that no node could ever hold."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.capacity import Capacity
from service.cluster import Node
from service.queue.job import State
from service.settings import Settings
from support.api import refused
from support.searches import SEARCH, start, write_trials
from workers.attempt import AttemptFolder

REPLAYED = "idempotent-replayed"


def sent(http: Any, key: str, path: str = "/v1/jobs", **fields: Any) -> Any:
    return http.post(path, json=fields, headers={"Idempotency-Key": key})


# --------------------------------------------------------------------------------- keys


def test_a_repeated_submission_has_the_answer_of_the_first(http: httpx.Client, api: Any) -> None:
    first = sent(http, "k-1", name="one", labels={"a": "b"})
    wakes = api.loop.wakes
    again = sent(http, "k-1", labels={"a": "b"}, name="one")
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.headers["location"] == first.headers["location"]
    assert again.json()["id"] == first.json()["id"]
    assert (REPLAYED in first.headers, again.headers[REPLAYED]) == (False, "true")
    assert api.loop.wakes == wakes
    assert sent(http, "k-2", name="one").json()["id"] != first.json()["id"]


def test_fields_left_out_and_given_as_their_defaults_are_the_same(http: httpx.Client) -> None:
    assert (
        sent(http, "k-defaults").json()["id"] == sent(http, "k-defaults", priority=0).json()["id"]
    )


def test_another_specification_with_the_same_key_is_refused(http: httpx.Client) -> None:
    job = sent(http, "k-3", name="one").json()["id"]
    problem = refused(sent(http, "k-3", name="two"), 422)
    assert problem.code == "idempotency-key-reused"
    assert job in problem.detail
    assert problem.hint
    problem = refused(sent(http, "k-3", "/v1/searches", **SEARCH), 422)
    assert problem.code == "idempotency-key-reused"


def test_a_key_of_a_deleted_job_runs_nothing_again(http: httpx.Client, api: Any) -> None:
    job_id = sent(http, "k-4").json()["id"]
    api.store.update(api.store.get(job_id), state=State.CANCELLED)
    assert http.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert refused(sent(http, "k-4"), 410).code == "job-deleted"


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb", "ä".encode(), "🙂".encode(), b"\xff"])
def test_a_key_that_can_not_be_used_is_refused(http: httpx.Client, key: str | bytes) -> None:
    answer = http.post("/v1/jobs", json={}, headers={"Idempotency-Key": key})
    problem = refused(answer, 422)
    assert problem.code == "parameter-invalid"
    assert problem.errors[0].pointer == "/header/Idempotency-Key"
    assert "255 printable ASCII" in str(problem.errors[0].accepted)


@pytest.mark.parametrize("key", ["x" * 255, "!", "a b", "nightly/2026-11-22?n=1&x='\""])
def test_any_printable_key_will_do(http: httpx.Client, key: str) -> None:
    assert sent(http, key).json()["id"] == sent(http, key).json()["id"]


def test_of_many_at_once_with_one_key_one_is_accepted(http: httpx.Client) -> None:
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: sent(http, "k-many", experiment="many"), range(36)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum(REPLAYED in answer.headers for answer in answers) == 35
    assert len(http.get("/v1/jobs", params={"experiment": "many"}).json()["jobs"]) == 1


def test_a_search_and_a_promotion_take_a_key(http: httpx.Client, api: Any) -> None:
    first = sent(http, "k-search", "/v1/searches", **SEARCH)
    again = sent(http, "k-search", "/v1/searches", **SEARCH)
    search = first.json()["id"]
    assert (again.json()["id"], again.headers[REPLAYED]) == (search, "true")
    start(api.store, search)
    write_trials(AttemptFolder(api.settings.storage_root, search, 1))
    path = f"/v1/searches/{search}/promote"
    job = sent(http, "k-promote", path, set={"epochs": 9})
    again = sent(http, "k-promote", path, set={"epochs": 9})
    assert (job.status_code, again.json()["id"]) == (202, job.json()["id"])
    problem = refused(sent(http, "k-promote", path, set={"epochs": 8}), 422)
    assert problem.code == "idempotency-key-reused"


# ----------------------------------------------------------------------- what never fits


@pytest.fixture
def small(tmp_path: Path) -> Iterator[tuple[TestClient, list[Node]]]:
    """An API over a cluster of one small node, and its nodes."""
    nodes = [Node("a", cpus=2, gpus=0, driver_slots=8)]
    settings = Settings(home=tmp_path, storage=None, database_url=None, mlflow_uri="http://x")

    class Loop:
        def start(self) -> None: ...
        def stop(self) -> None: ...
        def wake(self) -> None: ...

    now = iter(range(0, 10**6, 10))
    capacity = Capacity(lambda: list(nodes), clock=lambda: float(next(now)))
    app = create_app(settings, probes={}, background=Loop(), capacity=capacity)
    with TestClient(app, base_url="http://localhost") as client:
        yield client, nodes


def test_what_never_fits_is_refused_with_what_there_is(
    small: tuple[TestClient, list[Node]],
) -> None:
    http, _ = small
    body = {"resources": {"cpus_per_worker": 64, "gpus_per_worker": 1}}
    problem = refused(http.post("/v1/jobs", json=body), 422)
    assert problem.code == "spec-invalid"
    assert [(error.pointer, error.value) for error in problem.errors] == [
        ("/resources/cpus_per_worker", 64),
        ("/resources/gpus_per_worker", 1),
    ]
    assert problem.errors[0].accepted == "at most 2: the largest node has no more"
    assert "CAPS_ELASTIC" in str(problem.hint)
    assert http.get("/v1/jobs").json()["jobs"] == []
    body = SEARCH | {"base": SEARCH["base"] | {"resources": {"cpus_per_worker": 3}}}
    problem = refused(http.post("/v1/searches", json=body), 422)
    assert problem.errors[0].pointer == "/base/resources/cpus_per_worker"


def test_what_was_accepted_stays_so_when_the_cluster_shrinks(
    small: tuple[TestClient, list[Node]],
) -> None:
    http, nodes = small
    first = sent(http, "k", name="fits")
    assert first.status_code == 202
    nodes[:] = [Node("a", cpus=1, gpus=0)]
    assert sent(http, "k", name="fits").json()["id"] == first.json()["id"]
    assert sent(http, "another", name="fits").status_code == 422
