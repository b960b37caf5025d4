"""The REST API over a real socket: what it accepts, how it refuses, what it never does."""

import json
import math
import re
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from service.api.promotion import Promotion
from service.api.token_views import TokenRequest
from service.api.views import EventPage, JobPage, JobView, ReadyView
from service.errors import ClusterUnavailableError
from service.queue.job import State
from service.queue.store import NewEvent
from support.api import refused, submit
from workers.attempt import AttemptFolder, Progress, Result, write_atomic
from workers.search_specs import SearchSpec
from workers.specs import TrainSpec

JSON = {"Content-Type": "application/json"}


# --------------------------------------------------------------------------- submit and look


def test_a_job_is_accepted_and_found(http: httpx.Client, api: Any) -> None:
    wakes = api.loop.wakes
    answer = http.post("/v1/jobs", json={"name": "one", "labels": {"team": "a"}})
    assert answer.status_code == 202
    job = JobView.model_validate_json(answer.content)
    assert answer.headers["location"] == f"/v1/jobs/{job.id}" == job.links.self
    assert (job.state, job.phase, job.attempt, job.position is not None) == (
        "QUEUED", "waiting", 0, True,
    )  # fmt: skip
    assert job.spec["model"]["routing"]["iterations"] == 3
    assert TrainSpec.model_validate_json(json.dumps(job.spec)).name == "one"
    assert http.get(job.links.self).json()["id"] == job.id
    assert job.created_at.utcoffset() is not None
    assert api.loop.wakes == wakes + 1


def test_pages_filter_and_go_on(http: httpx.Client) -> None:
    ids = [submit(http, experiment="pages", labels={"n": str(n % 2)}) for n in range(5)]
    first = JobPage.model_validate_json(
        http.get("/v1/jobs", params={"experiment": "pages", "limit": 3}).content
    )
    second = JobPage.model_validate_json(
        http.get(
            "/v1/jobs", params={"experiment": "pages", "limit": 3, "cursor": first.next_cursor}
        ).content
    )
    assert [job.id for job in first.jobs + second.jobs] == sorted(ids, reverse=True)
    assert second.next_cursor is None
    query = [("experiment", "pages"), ("label", "n=1"), ("state", "QUEUED"), ("state", "FAILED")]
    assert len(http.get("/v1/jobs", params=query).json()["jobs"]) == 2


def test_cancel_is_idempotent_until_the_job_has_ended(http: httpx.Client, api: Any) -> None:
    job_id = submit(http)
    wakes = api.loop.wakes
    for _ in range(2):
        answer = http.post(f"/v1/jobs/{job_id}/cancel")
        assert answer.status_code == 202
        assert answer.json()["phase"] == "cancelling"
    assert api.loop.wakes == wakes + 2
    api.store.update(api.store.get(job_id), state=State.CANCELLED)
    assert http.post(f"/v1/jobs/{job_id}/cancel").json()["phase"] == "cancelled"
    other = submit(http)
    api.store.update(api.store.get(other), state=State.SUCCEEDED)
    problem = refused(http.post(f"/v1/jobs/{other}/cancel"), 409)
    assert (problem.code, problem.hint is not None) == ("job-ended", True)


def test_events_are_paged(http: httpx.Client, api: Any) -> None:
    job_id = submit(http)
    api.store.update(api.store.get(job_id), NewEvent("noted", "two", {"loss": math.nan}))
    url = f"/v1/jobs/{job_id}/events"
    page = EventPage.model_validate_json(http.get(url, params={"limit": 1}).content)
    assert [event.type for event in page.events] == ["submitted"]
    rest = EventPage.model_validate_json(http.get(url, params={"after": page.next_after}).content)
    assert [(event.type, event.data) for event in rest.events] == [("noted", {"loss": None})]
    assert http.get(url, params={"after": rest.next_after}).json()["events"] == []


# ------------------------------------------------------------------------------ the worker's side


def running(http: httpx.Client, api: Any, **fields: Any) -> tuple[Any, AttemptFolder]:
    job = api.store.start_attempt(api.store.get(submit(http, **fields)), NewEvent("s", "s"))
    job = api.store.update(job, attempt={"submitted_at": api.store.now()})
    return job, AttemptFolder(api.settings.storage_root, job.id, 1)


def test_progress_and_result_come_from_the_attempts_folder(http: httpx.Client, api: Any) -> None:
    job, folder = running(http, api)
    assert http.get(f"/v1/jobs/{job.id}").json()["phase"] == "starting"
    folder.write_progress(
        Progress(phase="training", epoch=1, epochs=4, step=5, steps=20, train_loss=math.nan)
    )
    view = JobView.model_validate_json(http.get(f"/v1/jobs/{job.id}").content)
    assert view.phase == "training"
    assert view.progress is not None
    assert (view.progress.fraction, view.progress.train_loss) == (0.25, None)
    assert view.progress.heartbeat_age_s is not None
    result = Result(outcome="failed", reason="diverged", metrics={"test/loss": math.inf, "a": 1})
    api.store.update(
        job,
        state=State.FAILED,
        reason="diverged",
        result=result.model_dump(mode="python"),
        experiment_id="1",
        run_id="r7",
    )
    view = JobView.model_validate_json(http.get(f"/v1/jobs/{job.id}").content)
    assert view.hint is not None
    assert view.result is not None
    assert view.result.metrics == {"test/loss": None, "a": 1}
    assert view.mlflow is not None
    assert view.mlflow.url == "http://127.0.0.1:5000/#/experiments/1/runs/r7"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"epoch": "x"}', b"1" * 99])
def test_a_corrupt_folder_does_not_break_the_api(
    http: httpx.Client, api: Any, content: bytes
) -> None:
    job, folder = running(http, api)
    write_atomic(folder.path / "progress.json", content)
    api.store.update(job, result={"nonsense": 1})
    answer = http.get(f"/v1/jobs/{job.id}")
    assert answer.status_code == 200
    assert (answer.json()["progress"], answer.json()["result"]) == (None, None)
    assert http.get("/v1/jobs").status_code == 200


def test_logs_by_offset_never_cut_a_character(http: httpx.Client, api: Any) -> None:
    job, folder = running(http, api)
    text = "Verlust 0,5 – Straße 🙂\n" * 5
    write_atomic(folder.log, text.encode() + "🙂".encode()[:2])
    url, read, offset = f"/v1/jobs/{job.id}/logs", "", 0
    for limit in (4, 5, 6, 7, 8, 300, 300):
        answer = http.get(url, params={"offset": offset, "limit": limit})
        read += answer.content.decode()
        offset = int(answer.headers["caps-log-offset"])
        assert answer.headers["caps-log-end"] == "false"
    assert read == text
    api.store.update(job, state=State.FAILED)
    answer = http.get(url, params={"offset": offset})
    assert answer.content == "🙂".encode()[:2]
    assert answer.headers["caps-log-end"] == "true"
    assert http.get(url, params={"offset": 10**12}).content == b""


def test_logs_tell_the_end_of_an_attempt(http: httpx.Client, api: Any) -> None:
    job_id = submit(http)
    answer = http.get(f"/v1/jobs/{job_id}/logs")
    assert (answer.content, answer.headers["caps-log-end"]) == (b"", "false")
    job, folder = running(http, api)
    write_atomic(folder.log, b"first")
    job = api.store.update(job, state=State.QUEUED)
    url = f"/v1/jobs/{job.id}/logs"
    assert http.get(url).headers["caps-log-end"] == "true"
    api.store.start_attempt(job, NewEvent("s", "s"))
    assert http.get(url).headers["caps-log-end"] == "false"
    assert http.get(url, params={"attempt": 1}).headers["caps-log-end"] == "true"
    assert refused(http.get(url, params={"attempt": 3}), 404).code == "attempt-not-found"


# ---------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("body", "status", "pointer", "tells"),
    [
        (b'{"model": {"routing": {"iterations": 0}}}', 422, "/model/routing/iterations", "1 to 10"),
        (b'{"init_from": {"job": "no-such-job"}}', 422, "/init_from/job", "the id of a job"),
        (b'{"labels": {"mlflow.user": "x"}}', 422, "/labels/mlflow.user", "are taken"),
        (b'{"epochs": 1e9}', 422, "/epochs", "1 to 10000"),
        (b'{"epochs": 1000000000}', 422, "/epochs", "1 to 10000"),
        (b'{"epochs": "3"}', 422, "/epochs", "whole number"),
        (b'{"optimizer": {"learning_rate": NaN}}', 422, "/optimizer/learning_rate", "more than 0"),
        (b'{"optimizer": {"learning_rate": 1e999}}', 422, "/optimizer/learning_rate", "inf"),
        (b'{"optimizer": {"learning_rate": -Infinity}}', 422, "/optimizer/learning_rate", "-inf"),
        (b'{"epoch": 3}', 422, "/epoch", "did you mean 'epochs'"),
        (b'{"iterations": 3}', 422, "/iterations", "model.routing.iterations"),
        (b'{"zzz": 3}', 422, "/zzz", "known fields"),
        (b'{"model": {"routing": {"typ": "x"}}}', 422, "/model/routing/typ", "'type'"),
        (b'{"model": {"routing": {"type": "em"}}}', 422, "/model/routing/type", "dynamic, uniform"),
        (b'{"loss": {"lambda": NaN}}', 422, "/loss/lambda", "0 to 10"),
        (b'{"artifacts": [{"columns": 1}]}', 422, "/artifacts/0/columns", "2 to 40"),
        (b'{"model": {"image_shape": [1, 28, 9999]}}', 422, "/model/image_shape/2", "5 to 512"),
        (b'{"precision": "fp23"}', 422, "/precision", "did you mean 'fp32'"),
        (b'{"labels": {"a/b~c": 1}}', 422, "/labels/a~1b~0c", "pattern"),
        (b'{"early_stopping": {}}', 422, "/early_stopping/patience", "required"),
        (b'{"init_from": {}}', 422, "/init_from", "either `job` or `path`"),
        (b"null", 422, "", "an object"),
        (b'{"name": "\\ud800"}', 400, None, "Invalid JSON"),
        (b'{"name": "\xff"}', 400, None, "Invalid JSON"),
        (b'{"epochs": 1, "epochs": 2}', 400, None, "stands twice"),
        (b'{"model":' * 500 + b"1" + b"}" * 500, 400, None, "recursion"),
        (b"[" * 100_000, 400, None, "recursion"),
        (b'{"epochs": ' + b"1" * 5000 + b"}", 400, None, "out of range"),
        (b"", 400, None, "Invalid JSON"),
    ],
)
def test_a_bad_spec_is_refused_at_its_field(
    http: httpx.Client, body: bytes, status: int, pointer: str | None, tells: str
) -> None:
    problem = refused(http.post("/v1/jobs", content=body, headers=JSON), status)
    assert [error.pointer for error in problem.errors][:1] == ([] if pointer is None else [pointer])
    assert tells in problem.model_dump_json()
    assert problem.hint


def test_a_big_input_is_not_repeated(http: httpx.Client) -> None:
    big = "x" * 200_000
    for document in ({big: 1}, {"name": big}, {"model": {"type": big}}, {"keep": [big]}):
        answer = http.post("/v1/jobs", json=document)
        refused(answer, 422)
        assert len(answer.content) < 3000
    many = http.post("/v1/jobs", json={f"f{n}": n for n in range(5000)})
    assert len(refused(many, 422).errors) == 50


def test_a_body_of_300_kb_is_refused_also_without_its_length(http: httpx.Client) -> None:
    body = b'{"description": "' + b"x" * 300_000 + b'"}'
    assert refused(http.post("/v1/jobs", content=body, headers=JSON), 413).code == "body-too-large"
    chunks = (body[i : i + 50_000] for i in range(0, len(body), 50_000))
    assert refused(http.post("/v1/jobs", content=chunks, headers=JSON), 413)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "json"])
def test_what_a_web_page_may_post_across_sites_is_refused(http: httpx.Client, kind: str) -> None:
    answer = http.post("/v1/jobs", content=b"{}", headers={"Content-Type": kind})
    assert refused(answer, 415).code == "media-type"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[::1]:8000"])
def test_a_foreign_host_is_refused(http: httpx.Client, host: str) -> None:
    assert refused(http.get("/healthz", headers={"Host": host}), 400).code == "host-refused"
    assert http.get("/healthz", headers={"Host": "LOCALHOST:1"}).status_code == 200


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/jobs/nope", 404, "job-not-found"),
        ("/v1/jobs/nope/events", 404, "job-not-found"),
        ("/v1/jobs/a%00b/logs", 404, "job-not-found"),
        ("/v1/nothing", 404, "route-not-found"),
        ("/v1/jobs/x/cancel", 405, "method-not-allowed"),
        ("/v1/jobs?limit=0", 422, "parameter-invalid"),
        ("/v1/jobs?limit=201", 422, "parameter-invalid"),
        ("/v1/jobs?limit=1e999", 422, "parameter-invalid"),
        ("/v1/jobs?label=novalue", 422, "parameter-invalid"),
        ("/v1/jobs?experiment=%00", 422, "parameter-invalid"),
        ("/v1/jobs?state=DONE", 422, "parameter-invalid"),
        ("/v1/jobs?cursor=%ff", 400, "cursor-invalid"),
        ("/v1/jobs/x/events?after=99999999999999999999", 422, "parameter-invalid"),
        ("/v1/jobs/x/logs?offset=-1", 422, "parameter-invalid"),
    ],
)
def test_every_refusal_is_a_problem(http: httpx.Client, path: str, status: int, code: str) -> None:
    assert refused(http.get(path), status).code == code


def test_an_unforeseen_error_tells_no_internals(
    http: httpx.Client, api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(job_id: str, *, owner: str | None) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(api.store, "get", broken)
    answer = http.get("/v1/jobs/x")
    assert refused(answer, 500).code == "internal"
    assert "secret" not in answer.text


_NAMES = st.sampled_from([*TrainSpec.model_fields, "type", "routing", "hidden", "job"]) | st.text(
    max_size=5
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=12,
)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    body=st.binary(max_size=60)
    | _JSON.map(lambda value: json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass"))
    | st.dictionaries(_NAMES, _JSON, max_size=3).map(lambda value: json.dumps(value).encode())
)
def test_no_body_makes_the_service_fail(http: httpx.Client, body: bytes) -> None:
    answer = http.post("/v1/jobs", content=body, headers=JSON)
    assert answer.status_code in (202, 400, 422)
    assert answer.headers["x-request-id"]


# ------------------------------------------------------------------------- health and document


def test_health_tells_version_and_stack(http: httpx.Client) -> None:
    health = http.get("/healthz").json()
    assert (health["status"], health["stack"]) == ("ok", "test-stack")
    assert re.fullmatch(r"\d+\.\d+.*", health["version"])


def test_ready_tells_what_does_not_answer(http: httpx.Client, api: Any) -> None:
    assert http.get("/readyz").status_code == 200
    api.probes["ray"].error = ClusterUnavailableError("Ray at :8265 does not answer")
    api.probes["mlflow"].error = OSError("password=hunter2")
    try:
        answer = http.get("/readyz")
    finally:
        api.probes["ray"].error = api.probes["mlflow"].error = None
    ready = ReadyView.model_validate_json(answer.content)
    assert (answer.status_code, ready.status) == (503, "not-ready")
    assert ready.checks["database"].ok
    assert ready.checks["ray"].detail == "Ray at :8265 does not answer"
    assert ready.checks["mlflow"].detail == "OSError"


_BODIES: dict[str, type[BaseModel]] = {
    "TrainSpec": TrainSpec,
    "SearchSpec": SearchSpec,
    "Promotion": Promotion,
    "TokenRequest": TokenRequest,
}


def test_every_route_has_examples_that_fit(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    routes = [
        (path, method, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    assert len(routes) == 32
    for path, method, operation in routes:
        where = f"{method} {path}"
        for parameter in operation.get("parameters", []):
            assert parameter.get(
                "example", parameter.get("examples", parameter["schema"].get("examples"))
            ), where
        if "requestBody" in operation:
            examples = operation["requestBody"]["content"]["application/json"]["examples"]
            for example in examples.values():
                body = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
                model = _BODIES[body.rpartition("/")[2]]
                model.model_validate_json(json.dumps(example["value"]))
        for status, answer in operation["responses"].items():
            for media in answer.get("content", {}).values():
                assert "example" in media or media.get("examples"), f"{where} {status}"
    assert "HTTPValidationError" not in json.dumps(document)
    _references_exist(document, document)


def _references_exist(node: Any, document: dict[str, Any]) -> None:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            assert node["$ref"].rpartition("/")[2] in document["components"]["schemas"]
        for value in node.values():
            _references_exist(value, document)
    elif isinstance(node, list):
        for value in node:
            _references_exist(value, document)


def test_the_examples_are_valid_answers() -> None:
    from service.api import examples

    for example in (examples.JOB, examples.ACCEPTED, examples.CANCELLING):
        assert JobView.model_validate(example).model_dump(mode="json").keys() == example.keys()
    JobPage.model_validate(examples.JOB_PAGE)
    EventPage.model_validate(examples.EVENT_PAGE)
    ReadyView.model_validate(examples.NOT_READY)


def test_the_schema_is_served(http: httpx.Client) -> None:
    schema = http.get("/v1/schema/train").json()
    assert schema["properties"]["epochs"]["maximum"] == 10_000


def test_an_unknown_parameter_is_refused_and_not_ignored(http: httpx.Client) -> None:
    answer = http.get("/v1/jobs", params={"status": "RUNNING"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/query/status"
    assert "state" in answer.json()["errors"][0]["accepted"]
