"""The Python client against a real server."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from service.api.problems import problem
from service.api.search_views import SearchView
from service.api.views import JobView
from service.client import ApiError, ApiUnreachableError, CapsClient, default_url
from service.errors import DatabaseUnavailableError
from service.queue.job import State
from service.queue.store import NewEvent
from support.searches import SEARCH, start, write_trials
from workers.attempt import AttemptFolder
from workers.search_specs import SearchSpec
from workers.specs import PRESETS

STARTED = NewEvent("started", "started")


@pytest.fixture
def client(api: Any) -> Iterator[CapsClient]:
    with CapsClient(api.url, patience=0) as found:
        yield found


def test_a_specification_goes_and_comes_back_whole(client: CapsClient) -> None:
    job = client.submit(PRESETS["demo"])
    assert job.spec == PRESETS["demo"].model_dump(mode="json", by_alias=True)
    assert client.job(job.id).id == job.id
    assert client.submit({"name": "mapping"}).name == "mapping"


def test_a_proxy_for_the_world_outside_does_not_stand_between(
    api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with CapsClient(api.url, patience=0) as client:
        assert client.submit({}).state is State.QUEUED


def test_jobs_are_read_over_all_pages(client: CapsClient) -> None:
    ids = [client.submit({"experiment": "paged", "labels": {"k": "v"}}).id for _ in range(5)]
    found = client.jobs(experiment="paged", labels={"k": "v"}, states=["QUEUED"], page_size=2)
    assert [job.id for job in found] == sorted(ids, reverse=True)


def test_events_are_read_over_all_pages(client: CapsClient, api: Any) -> None:
    job_id = client.submit({}).id
    for number in range(120):
        api.store.update(api.store.get(job_id), NewEvent("n", str(number)))
    assert [event.message for event in client.events(job_id)][1:] == [str(n) for n in range(120)]


def test_errors_carry_the_problem(client: CapsClient) -> None:
    with pytest.raises(ApiError) as refused:
        client.submit({"model": {"routing": {"iterations": 0}}})
    error = refused.value
    assert (error.status, error.code) == (422, "spec-invalid")
    assert error.errors[0].pointer == "/model/routing/iterations"
    assert error.hint
    assert error.request_id
    for job_id in ("nope", "../x", "a?b#c", ""):
        with pytest.raises(ApiError):
            client.job(job_id)


def test_nobody_at_the_address_is_an_error_that_says_so() -> None:
    with CapsClient("http://127.0.0.1:9", patience=0) as client:
        with pytest.raises(ApiUnreachableError, match=r"127\.0\.0\.1:9") as refused:
            client.job("x")
        assert "capsctl up" in str(refused.value.hint)


def test_the_default_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAPS_URL", raising=False)
    monkeypatch.setenv("CAPS_HOME", str(tmp_path))
    assert default_url() == "http://127.0.0.1:8000"
    (tmp_path / "stack.json").write_text("{")
    assert default_url() == "http://127.0.0.1:8000"
    (tmp_path / "stack.json").write_text(json.dumps({"api_url": "http://127.0.0.1:8123"}))
    assert default_url() == "http://127.0.0.1:8123"
    monkeypatch.setenv("CAPS_URL", "http://caps:1")
    assert default_url() == "http://caps:1"


def test_wait_tells_changes_and_returns_at_the_end(client: CapsClient, api: Any) -> None:
    job_id = client.submit({}).id
    with pytest.raises(TimeoutError):
        client.wait(job_id, timeout=0.1, poll_s=0.05)

    def work() -> None:
        time.sleep(0.2)
        job = api.store.start_attempt(api.store.get(job_id), STARTED)
        time.sleep(0.2)
        api.store.update(job, state=State.FAILED)

    threading.Thread(target=work).start()
    seen: list[JobView] = []
    job = client.wait(job_id, timeout=10, on_change=seen.append, poll_s=0.05)
    assert job.state is State.FAILED
    assert [view.state for view in seen] == ["QUEUED", "RUNNING", "FAILED"]


def test_logs_are_followed_over_attempts_to_the_end(client: CapsClient, api: Any) -> None:
    job_id = client.submit({}).id

    def work() -> None:
        for attempt in (1, 2):
            job = api.store.start_attempt(api.store.get(job_id), STARTED)
            folder = AttemptFolder(api.settings.storage_root, job_id, attempt)
            folder.path.mkdir(parents=True)
            with folder.log.open("wb", buffering=0) as log:
                for part in (f"attempt {attempt} \xe4".encode()[:-1], b"\xa4 goes on\n"):
                    log.write(part)
                    time.sleep(0.15)
            state = State.QUEUED if attempt == 1 else State.SUCCEEDED
            api.store.update(job, state=state)
            time.sleep(0.15)

    worker = threading.Thread(target=work)
    worker.start()
    text = "".join(chunk.text for chunk in client.follow_logs(job_id, poll_s=0.02))
    worker.join()
    assert text == "attempt 1 ä goes on\nattempt 2 ä goes on\n"


def test_a_follower_bears_a_restart_of_the_api(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with CapsClient(api.url, patience=30) as client:
        job_id = client.submit({}).id
        api.store.update(api.store.get(job_id), state=State.SUCCEEDED)
        call, failures = client._call, iter(range(3))

        def flaky(*args: Any, **options: Any) -> Any:
            if next(failures, None) is not None:
                raise ApiUnreachableError(client.url, "connection refused")
            return call(*args, **options)

        monkeypatch.setattr(client, "_call", flaky)
        assert client.wait(job_id).state is State.SUCCEEDED


# ------------------------------------------------------------------------- verbs, and outages


def test_the_verbs_of_a_job(client: CapsClient, api: Any) -> None:
    job_id = client.submit({}).id
    assert client.pause(job_id).phase == "pausing"
    assert client.resume(job_id).phase == "waiting"
    with pytest.raises(ApiError, match="job-active"):
        client.delete(job_id)
    job = api.store.start_attempt(api.store.get(job_id), STARTED)
    api.store.update(job, state=State.FAILED)
    assert client.retry(job_id).state is State.QUEUED
    assert [attempt.number for attempt in client.attempts(job_id)] == [1]
    assert client.cancel(job_id).phase == "cancelling"
    api.store.update(api.store.get(job_id), state=State.CANCELLED)
    client.delete(job_id)
    with pytest.raises(ApiError, match="job-not-found"):
        client.job(job_id)


def test_a_key_makes_a_submission_one(client: CapsClient) -> None:
    first = client.submit({"name": "keyed"}, key="client-1")
    assert client.submit({"name": "keyed"}, key="client-1").id == first.id
    assert client.submit({"name": "keyed"}).id != client.submit({"name": "keyed"}).id
    with pytest.raises(ApiError, match="idempotency-key-reused"):
        client.submit_search(SEARCH, key="client-1")


class Outage:
    """A transport whose first answers are faults; what is asked goes through all the same."""

    def __init__(self, client: CapsClient, *faults: Any) -> None:
        self.faults = list(faults)
        self.keys: list[str] = []
        self._request = client._http.request

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Answer with the next fault, after the API has heard the request if the fault says so."""
        self.keys.append(options.get("headers", {}).get("Idempotency-Key", ""))
        if not self.faults:
            return self._request(method, path, **options)
        fault = self.faults.pop(0)
        if isinstance(fault, httpx.Response):
            return fault
        if isinstance(fault, httpx.ReadTimeout):
            self._request(method, path, **options)
        raise fault


def away(**headers: str) -> httpx.Response:
    """The API's own answer while its database is away."""
    content = problem(DatabaseUnavailableError()).model_dump_json()
    return httpx.Response(503, content=content, headers=headers)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the client would have slept, by a clock that goes on by as much."""
    naps: list[float] = []
    turned = SimpleNamespace(sleep=naps.append, monotonic=lambda: sum(naps))
    monkeypatch.setattr("service.client.transport.time", turned)  # the server keeps the real one
    return naps


def test_a_submission_during_an_outage_is_accepted_once(api: Any, slept: list[float]) -> None:
    told: list[str] = []
    with CapsClient(api.url, on_retry=lambda error, left: told.append(error.code)) as client:
        lost = httpx.ReadTimeout("the answer was lost")
        outage = Outage(client, httpx.ConnectError("refused"), away(), lost, away())
        client._http.request = outage.request
        job = client.submit({"experiment": "outage"})
        client._http.request = outage._request
        assert [item.id for item in client.jobs(experiment="outage")] == [job.id]
    assert len(outage.keys) == 5
    assert len(set(outage.keys)) == 1
    assert outage.keys[0]
    assert told == [
        "api-unreachable", "database-unavailable", "api-unreachable", "database-unavailable",
    ]  # fmt: skip


def test_retry_after_is_honoured(api: Any, slept: list[float]) -> None:
    with CapsClient(api.url) as client:
        outage = Outage(client, away(**{"Retry-After": "7"}), away())
        client._http.request = outage.request
        client.submit({})
    assert 7 <= slept[0] < 9
    assert slept[1] < 1


@pytest.mark.parametrize(
    "fault",
    [httpx.ConnectError("refused"), away(), away(**{"Retry-After": "2"}), httpx.Response(502)],
)
def test_an_outage_that_lasts_is_told_after_half_a_minute(
    api: Any, slept: list[float], fault: Any
) -> None:
    with CapsClient(api.url) as client:
        outage = Outage(client, *[fault] * 1000)
        client._http.request = outage.request
        with pytest.raises(ApiError):
            client.submit({})
    assert 20 < sum(slept) < 32
    assert len(outage.keys) < 25


def test_what_will_not_pass_is_told_at_once(api: Any, slept: list[float]) -> None:
    with CapsClient(api.url) as client:
        with pytest.raises(ApiError, match="spec-invalid"):
            client.submit({"epochs": 0})
        outage = Outage(client, httpx.Response(200, content=b"<html>"))
        client._http.request = outage.request
        with pytest.raises(ApiUnreachableError, match="not our protocol"):
            client.submit({})
    with CapsClient("htp://127.0.0.1:9") as client, pytest.raises(ApiUnreachableError):
        client.submit({})
    hasty = CapsClient("http://127.0.0.1:9", submit_patience=0)
    with hasty, pytest.raises(ApiUnreachableError):
        hasty.submit({})
    assert slept == []


# ---------------------------------------------------------------------------------- searches


def test_a_search_is_submitted_previewed_and_listed(client: CapsClient) -> None:
    search = client.submit_search(SEARCH | {"experiment": "client"})
    assert client.search(search.id).id == search.id
    spec = SearchSpec.model_validate(SEARCH, strict=False)
    assert client.submit_search(spec).spec == spec.model_dump(mode="json")
    assert client.preview(spec).trials == client.preview(SEARCH).trials == 10
    ids = [client.submit_search(SEARCH | {"experiment": "client"}).id for _ in range(2)]
    found = client.searches(experiment="client", states=["QUEUED"], page_size=2)
    assert [item.id for item in found] == sorted([search.id, *ids], reverse=True)
    assert [job.kind for job in client.jobs(experiment="client", kinds=["train"])] == []


def test_the_verbs_of_a_search(client: CapsClient, api: Any) -> None:
    search = client.submit_search(SEARCH).id
    with pytest.raises(ApiError, match="no-score"):
        client.promote(search)
    start(api.store, search)
    write_trials(AttemptFolder(api.settings.storage_root, search, 1))
    read = [trial.number for trial in client.trials(search, order_by="number", page_size=3)]
    assert read == list(range(8))
    assert [trial.number for trial in client.trials(search, states=["FAILED"])] == [5, 4]
    assert [trial.number for trial in client.trials(search, configuration=0)] == [1, 0]
    assert [each.rank for each in client.configurations(search, limit=3)] == [1, 2, 3]
    assert client.trial_log(search, 7).content == b""
    job = client.promote(search, changes={"epochs": 9}, labels={"k": "v"}, name="better")
    assert (job.spec["epochs"], job.labels, job.name) == (9, {"k": "v", "search": search}, "better")
    api.store.update(api.store.get(search), state=State.FAILED)
    assert client.retry_failed(search).state is State.QUEUED
    assert client.cancel(search).phase == "cancelling"


def test_a_search_is_waited_for(client: CapsClient, api: Any) -> None:
    search = client.submit_search(SEARCH).id
    with pytest.raises(TimeoutError, match="search"):
        client.wait_search(search, timeout=0.1, poll_s=0.05)
    start(api.store, search)
    seen: list[State] = []

    def watch(view: SearchView) -> None:
        seen.append(view.state)
        if len(seen) == 1:
            api.store.update(api.store.get(search), state=State.SUCCEEDED)

    assert client.wait_search(search, on_change=watch, poll_s=0.01).state is State.SUCCEEDED
    assert seen == ["RUNNING", "SUCCEEDED"]
