"""Pause, resume, retry, delete and the attempts over a real socket, for jobs and for searches."""

from typing import Any

import httpx
import pytest

from service.api.search_views import SearchView
from service.api.views import AttemptPage, JobView
from service.queue.job import Desired, State
from service.queue.store import NewEvent
from support.api import refused, submit
from support.searches import SEARCH, start, write_trials
from workers.attempt import AttemptFolder, Reason, write_atomic

STARTED = NewEvent("started", "attempt 1")


def running(http: httpx.Client, api: Any) -> str:
    job = api.store.start_attempt(api.store.get(submit(http)), STARTED)
    return str(api.store.update(job, attempt={"submitted_at": api.store.now()}).id)


def end(api: Any, job_id: str, state: State, **changes: Any) -> None:
    changes = {"finished_at": api.store.now()} | changes
    api.store.update(api.store.get(job_id), state=state, **changes)


def test_links_lead_to_all_that_can_be_asked_of_a_job(http: httpx.Client) -> None:
    links = http.get(f"/v1/jobs/{submit(http)}").json()["links"]
    for verb in ("pause", "resume", "cancel"):
        assert http.post(links[verb]).status_code == 202, verb
        if verb != "cancel":
            assert http.post(links[verb]).status_code == 202, f"{verb} again"
    assert http.get(links["attempts"]).json() == {"attempts": []}
    assert http.delete(links["self"]).status_code == 409


def test_pause_and_resume_can_be_repeated(http: httpx.Client, api: Any) -> None:
    job_id, wakes = running(http, api), api.loop.wakes
    for _ in range(2):
        answer = http.post(f"/v1/jobs/{job_id}/pause")
        assert (answer.status_code, answer.json()["phase"]) == (202, "pausing")
    assert api.loop.wakes > wakes
    end(api, job_id, State.PAUSED, reason="paused", finished_at=None)
    assert http.post(f"/v1/jobs/{job_id}/pause").json()["phase"] == "paused"
    for _ in range(2):
        answer = http.post(f"/v1/jobs/{job_id}/resume")
        assert (answer.status_code, answer.json()["desired"]) == (202, "run")
        assert answer.json()["phase"] == "waiting"
    assert http.post(f"/v1/jobs/{job_id}/cancel").json()["phase"] == "cancelling"
    assert [event.type for event in api.store.events(job_id)][2:] == [
        "pause-requested",
        "resume-requested",
        "cancel-requested",
    ]


def test_to_resume_what_runs_changes_nothing(http: httpx.Client, api: Any) -> None:
    job_id = running(http, api)
    before = api.store.get(job_id).version
    answer = http.post(f"/v1/jobs/{job_id}/resume")
    assert (answer.status_code, answer.json()["state"]) == (202, "RUNNING")
    assert api.store.get(job_id).version == before


@pytest.mark.parametrize("verb", ["pause", "resume"])
@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
def test_what_has_ended_says_what_can_be_done_instead(
    http: httpx.Client, api: Any, verb: str, state: State
) -> None:
    job_id = running(http, api)
    end(api, job_id, state)
    problem = refused(http.post(f"/v1/jobs/{job_id}/{verb}"), 409)
    assert problem.code == "job-ended"
    instead = "init_from" if state is State.SUCCEEDED else f"capsctl retry {job_id}"
    assert instead in (problem.hint or "")


def test_a_cancel_that_is_under_way_is_not_taken_back(http: httpx.Client, api: Any) -> None:
    job_id = running(http, api)
    http.post(f"/v1/jobs/{job_id}/cancel")
    problem = refused(http.post(f"/v1/jobs/{job_id}/resume"), 409)
    assert "being cancelled" in (problem.hint or "")


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED])
def test_a_retry_queues_the_job_again(http: httpx.Client, api: Any, state: State) -> None:
    job_id = running(http, api)
    end(api, job_id, state, reason="diverged", evidence="loss is nan")
    wakes = api.loop.wakes
    answer = http.post(f"/v1/jobs/{job_id}/retry")
    job = JobView.model_validate_json(answer.content)
    assert (answer.status_code, job.state, job.reason) == (202, "QUEUED", None)
    assert (job.attempt, job.evidence, job.finished_at) == (1, "", None)
    assert api.loop.wakes == wakes + 1
    assert refused(http.post(f"/v1/jobs/{job_id}/retry"), 409).hint


def test_only_what_failed_or_was_cancelled_is_retried(http: httpx.Client, api: Any) -> None:
    job_id = running(http, api)
    assert refused(http.post(f"/v1/jobs/{job_id}/retry"), 409).code == "job-conflict"
    end(api, job_id, State.SUCCEEDED)
    assert "init_from" in str(refused(http.post(f"/v1/jobs/{job_id}/retry"), 409).hint)
    refused(http.post("/v1/jobs/nope/retry"), 404)


def test_a_deleted_job_is_found_by_nobody(http: httpx.Client, api: Any) -> None:
    job_id = running(http, api)
    write_atomic(AttemptFolder(api.settings.storage_root, job_id, 1).log, b"hello")
    problem = refused(http.delete(f"/v1/jobs/{job_id}"), 409)
    assert (problem.code, "cancel" in str(problem.hint)) == ("job-active", True)
    end(api, job_id, State.FAILED)
    assert http.get(f"/v1/jobs/{job_id}/logs").text == "hello"
    wakes = api.loop.wakes
    answer = http.delete(f"/v1/jobs/{job_id}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert api.loop.wakes == wakes + 1
    for path in ("", "/logs", "/events", "/attempts"):
        assert refused(http.get(f"/v1/jobs/{job_id}{path}"), 404).code == "job-not-found"
    for verb in ("pause", "resume", "retry", "cancel"):
        refused(http.post(f"/v1/jobs/{job_id}/{verb}"), 404)
    refused(http.delete(f"/v1/jobs/{job_id}"), 404)
    assert job_id not in http.get("/v1/jobs", params={"limit": 200}).text


def test_a_job_that_another_one_begins_from_stays(http: httpx.Client, api: Any) -> None:
    job_id = running(http, api)
    end(api, job_id, State.SUCCEEDED)
    heir = submit(http, init_from={"job": job_id})
    bystander = submit(http, labels={"job": job_id})
    problem = refused(http.delete(f"/v1/jobs/{job_id}"), 409)
    assert (problem.code, heir in problem.detail) == ("job-conflict", True)
    end(api, heir, State.CANCELLED)
    assert http.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert http.get(f"/v1/jobs/{bystander}").json()["state"] == "QUEUED"


def test_attempts_tell_what_ended_them(http: httpx.Client, api: Any) -> None:
    job_id = running(http, api)
    lost = {"ended_at": api.store.now() + 60, "reason": Reason.WORKER_LOST, "evidence": "gone"}
    job = api.store.update(api.store.get(job_id), attempt=lost, state=State.QUEUED)
    job = api.store.start_attempt(job, NewEvent("started", "attempt 2"))
    api.store.update(job, attempt={"resumed_step": 40, "node_id": "n1"})
    answer = http.get(f"/v1/jobs/{job_id}/attempts")
    first, second = AttemptPage.model_validate_json(answer.content).attempts
    assert (first.number, first.reason, first.evidence) == (1, "worker-lost", "gone")
    assert first.hint
    assert first.duration_s == pytest.approx(60, abs=5)
    assert (second.number, second.ended_at, second.resumed_step) == (2, None, 40)
    assert (second.node_id, second.reason) == ("n1", None)
    assert http.get(first.logs).headers["caps-log-attempt"] == "1"
    assert refused(http.get("/v1/jobs/nope/attempts"), 404).code == "job-not-found"


# ----------------------------------------------------------------------------- in the queue


def test_every_queued_job_says_why_it_waits(http: httpx.Client, api: Any) -> None:
    ids = [submit(http, experiment="waits", priority=100) for _ in range(3)]
    found = {job["id"]: job for job in http.get("/v1/jobs?experiment=waits").json()["jobs"]}
    assert [found[id]["position"] for id in ids] == [1, 2, 3]
    assert "next in the queue" in found[ids[0]]["waiting_reason"]
    assert found[ids[1]]["waiting_reason"] == "1 job is ahead in the queue"
    assert found[ids[2]]["waiting_reason"] == "2 jobs are ahead in the queue"
    api.store.update(api.store.get(ids[0]), waiting_reason="needs 2 CPUs on one node; 0 free")
    assert "0 free" in http.get(f"/v1/jobs/{ids[0]}").json()["waiting_reason"]
    http.post(f"/v1/jobs/{ids[1]}/cancel")
    assert http.get(f"/v1/jobs/{ids[1]}").json()["waiting_reason"] == "is about to be cancelled"
    for id in ids:  # later tests look at the queue's head too
        api.store.update(api.store.get(id), state=State.CANCELLED)


def test_a_job_that_backs_off_says_until_when(http: httpx.Client, api: Any) -> None:
    job_id = submit(http)
    later = api.store.now() + 3600
    api.store.update(api.store.get(job_id), not_before=later, waiting_reason="backs off")
    job = JobView.model_validate_json(http.get(f"/v1/jobs/{job_id}").content)
    assert job.not_before is not None
    until = job.not_before.strftime("%H:%M:%S UTC")
    assert job.waiting_reason == f"waits until {until} before its next attempt"
    assert job.phase == "waiting-to-retry"


# -------------------------------------------------------------------------------- searches


def test_a_search_is_paused_resumed_and_deleted(http: httpx.Client, api: Any) -> None:
    search = http.post("/v1/searches", json=SEARCH).json()["id"]
    start(api.store, search)
    links = SearchView.model_validate_json(http.get(f"/v1/searches/{search}").content).links
    for verb, phase in ((links.pause, "pausing"), (links.pause, "pausing")):
        assert http.post(verb).json()["phase"] == phase
    assert api.store.get(search).desired is Desired.PAUSE
    assert http.post(links.resume).json()["desired"] == "run"
    assert refused(http.delete(links.self), 409).code == "job-active"
    end(api, search, State.FAILED)
    assert refused(http.post(links.pause), 409).hint
    assert http.delete(links.self).status_code == 204
    assert refused(http.get(links.self), 404).code == "search-not-found"
    refused(http.delete(links.self), 404)


def test_a_job_is_no_search_for_its_verbs(http: httpx.Client) -> None:
    job_id = submit(http)
    for verb in ("pause", "resume", "cancel"):
        problem = refused(http.post(f"/v1/searches/{job_id}/{verb}"), 404)
        assert problem.code == "search-not-found"
    refused(http.delete(f"/v1/searches/{job_id}"), 404)


def test_to_retry_a_search_runs_what_failed_of_it(http: httpx.Client, api: Any) -> None:
    search = http.post("/v1/searches", json=SEARCH).json()["id"]
    start(api.store, search)
    write_trials(AttemptFolder(api.settings.storage_root, search, 1))
    assert refused(http.post(f"/v1/jobs/{search}/retry"), 409).code == "job-conflict"
    end(api, search, State.SUCCEEDED)
    assert http.post(f"/v1/jobs/{search}/retry").json()["state"] == "QUEUED"
    assert api.store.get(search).retry_through == 1
