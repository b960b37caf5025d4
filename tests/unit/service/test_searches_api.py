"""Searches over a real socket: submit, leaderboard, trials, retry, promote, refusals."""

import json
import time
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.api.search_views import (
    ConfigurationPage,
    SearchItem,
    SearchPage,
    SearchView,
    TrialPage,
    TrialView,
)
from service.api.views import JobView
from service.queue.job import State
from service.queue.store import NewEvent
from support.api import refused
from support.searches import RATES, SEARCH, start, trials, write_trials
from workers.attempt import AttemptFolder, Progress, TrialCounts, write_atomic
from workers.search_preview import SearchPreview
from workers.search_specs import SearchSpec
from workers.specs import TrainSpec
from workers.trials import Report, Trial, TrialState, TrialTable, TrialWriter, trials_file

JSON = {"Content-Type": "application/json"}
STARTED = NewEvent("started", "started")


def submit(http: httpx.Client, **fields: Any) -> str:
    answer = http.post("/v1/searches", json=SEARCH | fields)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def running(http: httpx.Client, api: Any, **fields: Any) -> tuple[str, TrialWriter]:
    """A search with eight of its ten trials."""
    search = submit(http, **fields)
    job = start(api.store, search)
    return search, write_trials(AttemptFolder(api.settings.storage_root, job.id, 1))


def end(api: Any, search: str, state: State = State.SUCCEEDED) -> None:
    api.store.update(api.store.get(search), state=state, finished_at=api.store.now())


def numbers(http: httpx.Client, search: str, **query: Any) -> list[int]:
    answer = http.get(f"/v1/searches/{search}/trials", params=query)
    assert answer.status_code == 200, answer.text
    return [trial["number"] for trial in answer.json()["trials"]]


# ---------------------------------------------------------------------------- submit and look


def test_a_search_is_accepted_and_found(http: httpx.Client, api: Any) -> None:
    wakes = api.loop.wakes
    answer = http.post("/v1/searches", json=SEARCH)
    assert answer.status_code == 202
    search = SearchView.model_validate_json(answer.content)
    assert answer.headers["location"] == f"/v1/searches/{search.id}" == search.links.self
    assert (search.kind, search.state, search.metric, search.mode) == (
        "search", "QUEUED", "val/accuracy", "max",
    )  # fmt: skip
    assert search.counts == TrialCounts(total=10, waiting=10)
    assert search.best is None
    assert SearchSpec.model_validate_json(json.dumps(search.spec)).seeds == 2
    assert http.get(search.links.self).json()["id"] == search.id
    assert api.loop.wakes == wakes + 1
    for link in (search.links.trials, search.links.configurations, search.links.logs):
        assert http.get(link).status_code == 200


def test_searches_and_jobs_are_listed_together_and_apart(http: httpx.Client) -> None:
    search = submit(http, experiment="both", labels={"n": "1"})
    job = http.post("/v1/jobs", json={"experiment": "both"}).json()["id"]

    def listed(**query: Any) -> list[tuple[str, str]]:
        found = http.get("/v1/jobs", params={"experiment": "both", **query}).json()["jobs"]
        return [(item["id"], item["kind"]) for item in found]

    assert listed() == [(job, "train"), (search, "search")]
    assert listed(kind="search") == [(search, "search")]
    assert listed(kind=["train", "search"]) == listed()
    page = SearchPage.model_validate_json(
        http.get("/v1/searches", params={"experiment": "both", "label": "n=1"}).content
    )
    assert [item.id for item in page.searches] == [search]
    assert page.searches[0].links.promote == f"/v1/searches/{search}/promote"


def test_the_verbs_of_jobs_work_for_a_search(http: httpx.Client, api: Any) -> None:
    search, _ = running(http, api)
    write_atomic(AttemptFolder(api.settings.storage_root, search, 1).log, b"trial 0 starts\n")
    job = JobView.model_validate_json(http.get(f"/v1/jobs/{search}").content)
    assert (job.kind, job.links.search) == ("search", f"/v1/searches/{search}")
    assert http.get(f"/v1/jobs/{search}/logs").text == "trial 0 starts\n"
    assert http.get(f"/v1/jobs/{search}/events").json()["events"][0]["type"] == "submitted"
    for path in (f"/v1/jobs/{search}/cancel", f"/v1/searches/{search}/cancel"):
        answer = http.post(path)
        assert (answer.status_code, answer.json()["phase"]) == (202, "cancelling")
    assert api.store.get(search).desired == "cancel"


def test_the_progress_of_a_search_is_that_of_its_trials(http: httpx.Client, api: Any) -> None:
    search, _ = running(http, api)
    counts = TrialCounts(total=10, running=1, succeeded=4, pruned=1)
    progress = Progress(phase="searching", trials=counts, best_score=0.96)
    AttemptFolder(api.settings.storage_root, search, 1).write_progress(progress)
    view = JobView.model_validate_json(http.get(f"/v1/jobs/{search}").content)
    assert view.phase == "searching"
    assert view.progress is not None
    assert (view.progress.fraction, view.progress.best_score) == (0.5, 0.96)
    assert view.progress.trials == counts


def test_a_search_tells_its_counts_and_its_best(http: httpx.Client, api: Any) -> None:
    search, _ = running(http, api)
    view = SearchView.model_validate_json(http.get(f"/v1/searches/{search}").content)
    assert view.counts == TrialCounts(
        total=10, waiting=2, running=1, succeeded=4, pruned=1, failed=2
    )
    assert view.best is not None
    assert (view.best.rank, view.best.configuration, view.best.best_trial) == (1, 1, 2)
    assert view.best.mean == pytest.approx(0.96)
    assert view.best.deviation == pytest.approx(0.02 / 2**0.5)


def test_what_a_killed_driver_left_open_is_told_as_it_is(http: httpx.Client, api: Any) -> None:
    search, _ = running(http, api)
    assert numbers(http, search, state="RUNNING") == [7]
    job = api.store.update(api.store.get(search), state=State.QUEUED)
    assert numbers(http, search, state="WAITING") == [7]
    api.store.start_attempt(job, STARTED)
    assert numbers(http, search, state="RUNNING") == [7], "the new attempt has told nothing yet"
    end(api, search, State.FAILED)
    assert numbers(http, search, state="CANCELLED") == [7]
    view = SearchView.model_validate_json(http.get(f"/v1/searches/{search}").content)
    assert (view.counts.waiting, view.counts.running, view.counts.cancelled) == (0, 0, 1)


# --------------------------------------------------------------------------------- trials


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, [5, 2, 3, 1, 0, 6, 4, 7]),
        ({"order_by": "-score"}, [5, 2, 3, 1, 0, 6, 4, 7]),
        ({"order_by": "score"}, [6, 0, 1, 3, 2, 5, 4, 7]),
        ({"order_by": "number"}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"order_by": "-number", "limit": 2}, [7, 6]),
        ({"order_by": "-number", "limit": 2, "offset": 2}, [5, 4]),
        ({"order_by": "-epoch"}, [0, 2, 6, 1, 3, 5, 4, 7]),
        ({"order_by": "-started_at", "offset": 6}, [1, 0]),
        ({"state": "FAILED", "order_by": "number"}, [4, 5]),
        ({"state": ["FAILED", "PRUNED"], "order_by": "number"}, [4, 5, 6]),
        ({"configuration": 1}, [2, 3]),
        ({"configuration": 2, "state": "SUCCEEDED"}, []),
        ({"offset": 100}, []),
    ],
)
def test_trials_are_filtered_and_ordered(
    http: httpx.Client, api: Any, query: dict[str, Any], expected: list[int]
) -> None:
    search, _ = running(http, api)
    assert numbers(http, search, **query) == expected


def test_smaller_is_first_where_smaller_is_better(http: httpx.Client, api: Any) -> None:
    search, _ = running(http, api, metric="val/total_loss")
    assert numbers(http, search)[:3] == [6, 0, 1]
    board = http.get(f"/v1/searches/{search}/configurations").json()
    assert (board["mode"], board["configurations"][0]["configuration"]) == ("min", 3)


def test_trials_are_ordered_by_duration(http: httpx.Client, api: Any) -> None:
    search, _ = running(http, api)
    ordered = numbers(http, search, order_by="duration")
    assert ordered == [0, 1, 2, 3, 4, 5, 6, 7], "the one that runs is the longest"


def test_pages_go_on(http: httpx.Client, api: Any) -> None:
    search, _ = running(http, api)
    url = f"/v1/searches/{search}/trials"
    read, offset = [], 0
    while offset is not None:
        page = TrialPage.model_validate_json(
            http.get(url, params={"limit": 3, "offset": offset}).content
        )
        assert page.total == 8
        read += [trial.number for trial in page.trials]
        offset = page.next_offset
    assert read == numbers(http, search)


def test_a_trial_tells_its_run_reason_and_time(http: httpx.Client, api: Any) -> None:
    search, _ = running(http, api)
    page = TrialPage.model_validate_json(
        http.get(f"/v1/searches/{search}/trials", params={"order_by": "number"}).content
    )
    failed = page.trials[4]
    assert (failed.reason, failed.evidence) == ("diverged", "loss is nan")
    assert failed.hint is not None
    assert "learning_rate" in failed.hint
    assert failed.mlflow is not None
    assert failed.mlflow.url == "http://127.0.0.1:5000/#/experiments/1/runs/run-4"
    assert failed.duration_s == 18.0
    assert failed.started_at is not None
    assert failed.started_at.timestamp() == 1004.0
    assert page.trials[7].ended_at is None
    assert page.trials[7].duration_s is not None
    assert page.trials[7].values == {"optimizer.learning_rate": RATES[3]}


def test_the_leaderboard_ranks_means_over_seeds(http: httpx.Client, api: Any) -> None:
    search, _ = running(http, api)
    url = f"/v1/searches/{search}/configurations"
    page = ConfigurationPage.model_validate_json(http.get(url).content)
    told = [(c.rank, c.configuration, c.scored) for c in page.configurations]
    assert told == [(1, 1, 2), (2, 0, 2), (3, 3, 1), (None, 2, 0)]
    third = page.configurations[2]
    assert (third.mean, third.deviation, third.trials) == (0.5, None, [6, 7])
    assert third.states == {TrialState.RUNNING: 1, TrialState.PRUNED: 1}
    assert (third.epoch, third.epochs) == (3, 4)
    second = http.get(url, params={"offset": 1, "limit": 1}).json()
    assert [c["rank"] for c in second["configurations"]] == [2]
    assert (second["total"], second["next_offset"]) == (4, 2)


def test_new_lines_are_seen_and_a_torn_one_is_not(http: httpx.Client, api: Any) -> None:
    search, writer = running(http, api)
    assert len(numbers(http, search)) == 8
    new = trials()[0].model_copy(update={"number": 8, "configuration": 4, "score": 0.995})
    writer.trial(new)
    assert numbers(http, search)[0] == 8
    path = trials_file(AttemptFolder(api.settings.storage_root, search, 1))
    with path.open("ab") as file:
        file.write(b'{"trial": {"number": 9, "configu')
        file.flush()
        assert len(numbers(http, search)) == 9
        file.write(b'ration": 4, "seed": 1, "values": {}}}\n')
    assert 9 in numbers(http, search)
    path.write_bytes(b"")
    assert numbers(http, search) == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\n", b"[]\n1\n", b"\n" * 9])
def test_a_corrupt_file_of_trials_is_an_empty_one(
    http: httpx.Client, api: Any, content: bytes
) -> None:
    search = submit(http)
    start(api.store, search)
    write_atomic(trials_file(AttemptFolder(api.settings.storage_root, search, 1)), content)
    assert numbers(http, search) == []
    assert http.get(f"/v1/searches/{search}").json()["counts"]["total"] == 10


def test_a_thousand_trials_answer_quickly(http: httpx.Client, api: Any) -> None:
    search = submit(http)
    start(api.store, search)
    folder = AttemptFolder(api.settings.storage_root, search, 1)
    writer = TrialWriter(trials_file(folder), TrialTable())
    for number in range(1000):
        row = trials()[0].model_copy(update={"number": number, "configuration": number})
        for epoch in range(20):
            metrics = {f"val/metric_{n}": 0.5 for n in range(6)}
            writer.report(Report(number=number, epoch=epoch, step=1, at=1.0, metrics=metrics))
        writer.trial(row)
    url = f"/v1/searches/{search}"
    http.get(url)
    for path in ("", "/trials", "/configurations"):
        begun = time.perf_counter()
        assert http.get(url + path).status_code == 200
        assert time.perf_counter() - begun < 0.5, path


def test_the_log_of_a_trial_is_read(http: httpx.Client, api: Any) -> None:
    search, _ = running(http, api)
    root = api.settings.storage_root
    write_atomic(root / "jobs" / search / "trials" / "00007" / "1" / "log.txt", b"epoch 1\n")
    write_atomic(root / "jobs" / search / "trials" / "00006" / "1" / "log.txt", b"epoch 2\n")
    url = f"/v1/searches/{search}/trials"
    answer = http.get(f"{url}/7/logs")
    assert (answer.text, answer.headers["caps-log-end"]) == ("epoch 1\n", "false")
    answer = http.get(f"{url}/6/logs", params={"offset": 6})
    assert (answer.text, answer.headers["caps-log-end"]) == ("2\n", "true")
    assert http.get(f"{url}/0/logs").text == ""
    assert refused(http.get(f"{url}/9/logs"), 404).code == "trial-not-found"
    assert refused(http.get(f"{url}/7/logs?attempt=2"), 404).code == "attempt-not-found"


# ---------------------------------------------------------------------------- retry and promote


def test_failed_trials_are_retried_once_the_search_has_ended(http: httpx.Client, api: Any) -> None:
    search, _ = running(http, api)
    url = f"/v1/searches/{search}/retry-failed"
    assert refused(http.post(url), 409).code == "job-conflict"
    api.store.update(api.store.get(search), reason="trials-failed", evidence="6", errors=1)
    end(api, search, State.FAILED)
    wakes = api.loop.wakes
    answer = http.post(url)
    assert (answer.status_code, answer.json()["state"]) == (202, "QUEUED")
    job = api.store.get(search)
    assert (job.retry_through, job.errors, job.finished_at, job.run_closed, job.reason) == (
        1, 0, None, False, None,
    )  # fmt: skip
    assert api.loop.wakes == wakes + 1


def test_without_a_failure_there_is_nothing_to_retry(http: httpx.Client, api: Any) -> None:
    search = submit(http)
    start(api.store, search)
    write_trials(AttemptFolder(api.settings.storage_root, search, 1), trials()[:4])
    end(api, search)
    assert refused(http.post(f"/v1/searches/{search}/retry-failed"), 409).code == "nothing-to-retry"


def test_a_search_whose_driver_was_lost_goes_on(http: httpx.Client, api: Any) -> None:
    search = submit(http)
    start(api.store, search)
    end(api, search, State.FAILED)
    assert http.post(f"/v1/searches/{search}/retry-failed").status_code == 202


def test_the_best_configuration_becomes_a_job(http: httpx.Client, api: Any) -> None:
    search, _ = running(http, api, labels={"team": "a"}, priority=3)
    answer = http.post(f"/v1/searches/{search}/promote")
    assert answer.status_code == 202, answer.text
    job = JobView.model_validate_json(answer.content)
    assert answer.headers["location"] == f"/v1/jobs/{job.id}" == job.links.self
    spec = TrainSpec.model_validate_json(json.dumps(job.spec))
    assert spec.optimizer.learning_rate == RATES[1]
    assert (spec.seed, spec.epochs, spec.experiment, spec.priority) == (7, 4, "searches", 3)
    assert spec.labels == {"team": "a", "search": search}
    assert (job.kind, job.name) == ("train", "rates configuration 1")
    assert "0.96 ±" in spec.description


def test_a_promotion_may_choose_and_change(http: httpx.Client, api: Any) -> None:
    search, _ = running(http, api)
    wish = {
        "configuration": 2,
        "set": {"epochs": 30, "seed": 1, "model.routing": {"type": "uniform"}},
        "name": "long",
        "labels": {"k": "v"},
        "priority": -1,
    }
    answer = http.post(f"/v1/searches/{search}/promote", json=wish)
    assert answer.status_code == 202, answer.text
    spec = TrainSpec.model_validate_json(json.dumps(answer.json()["spec"]))
    assert (spec.epochs, spec.seed, spec.name, spec.priority) == (30, 1, "long", -1)
    assert spec.optimizer.learning_rate == RATES[2]
    assert spec.labels == {"k": "v", "search": search}


def test_a_promotion_may_go_to_another_experiment(http: httpx.Client, api: Any) -> None:
    search, _ = running(http, api)
    wish = {"set": {"experiment": "finals", "description": "The long one."}}
    answer = http.post(f"/v1/searches/{search}/promote", json=wish)
    assert answer.status_code == 202, answer.text
    spec = TrainSpec.model_validate_json(json.dumps(answer.json()["spec"]))
    assert (spec.experiment, spec.description) == ("finals", "The long one.")
    assert spec.labels["search"] == search


def test_one_seed_is_not_told_as_several(http: httpx.Client, api: Any) -> None:
    search = submit(http, seeds=1)
    job = start(api.store, search)
    alone = [trial for trial in trials() if trial.seed == 0]
    write_trials(AttemptFolder(api.settings.storage_root, job.id, 1), alone)
    wish = {"configuration": 1}
    told = http.post(f"/v1/searches/{search}/promote", json=wish).json()["spec"]["description"]
    assert "val/accuracy 0.97 over 1 seed." in told


@pytest.mark.parametrize(
    ("body", "pointer", "tells"),
    [
        ({"configuration": 77}, "/configuration", "0 to 3"),
        ({"set": {"epochs": 0}}, "/set/epochs", "1 to 10000"),
        ({"set": {"model.routing": {"iterations": 99}}}, "/set/model.routing/iterations", "10"),
        ({"set": {"epoch": 1}}, "/set/epoch", "did you mean 'epochs'"),
        ({"set": {"epochs.more": 1}}, "/set/epochs.more", "no fields"),
        ({"set": {"A b": 1}}, "/set/A b", "pattern"),
        ({"config": 1}, "/config", "did you mean 'configuration'"),
        ({"priority": 1000}, "/priority", "-100 to 100"),
        ({"set": {"name": "x"}}, "/set/name", "give `name` beside `set`"),
        ({"set": {"labels.team": "b"}}, "/set/labels.team", "give `labels` beside `set`"),
        ({"set": {"priority": 9}}, "/set/priority", "give `priority` beside `set`"),
        ({"set": {"experiment": ""}}, "/set/experiment", "at least 1"),
        ({"labels": {"search": "mine"}}, "/labels/search", "another name"),
    ],
)
def test_a_bad_promotion_is_refused_at_its_field(
    http: httpx.Client, api: Any, body: dict[str, Any], pointer: str, tells: str
) -> None:
    search, _ = running(http, api)
    problem = refused(http.post(f"/v1/searches/{search}/promote", json=body), 422)
    assert problem.errors[0].pointer == pointer
    assert tells in problem.model_dump_json()


def test_nothing_is_promoted_before_there_is_a_score(http: httpx.Client) -> None:
    url = f"/v1/searches/{submit(http)}/promote"
    assert refused(http.post(url), 409).code == "no-score"
    assert refused(http.post(url, content=b"x", headers={"Content-Type": "a/b"}), 415)
    assert refused(http.post(url, content=b"{", headers=JSON), 400)


# --------------------------------------------------------------------------------- refusals

RATE = "optimizer.learning_rate"


@pytest.mark.parametrize(
    ("change", "pointer", "tells"),
    [
        ({"space": {}}, "/space", "at least 1"),
        ({"space": None}, "/space", "object"),
        ({"space": {"model.routing.iteration": {"values": [1]}}}, "/space/model.routing.iteration",
         "did you mean 'model.routing.iterations'"),
        ({"space": {"iterations": {"values": [1]}}}, "/space/iterations",
         "model.routing.iterations"),
        ({"space": {"A b": {"values": [1]}}}, "/space/A b", "pattern"),
        ({"space": {RATE: {"type": "uniform", "low": 1, "high": 0.1}}}, f"/space/{RATE}",
         "exchange them"),
        ({"space": {RATE: {"type": "loguniform", "low": 0, "high": 0.1}}}, f"/space/{RATE}",
         "more than 0"),
        ({"space": {RATE: {"type": "uniform", "low": 1, "lo": 1, "high": 2}}},
         f"/space/{RATE}/lo", "did you mean 'low'"),
        ({"space": {RATE: {"type": "lognormal"}}}, f"/space/{RATE}/type", "loguniform"),
        ({"space": {"model.routing.iterations": {"values": [1, 99]}}},
         "/space/model.routing.iterations", "less than or equal to 10"),
        ({"space": {"epochs.more": {"values": [1]}}}, "/space/epochs.more", "no fields"),
        ({"space": {"seed": {"values": [1]}}}, "/space/seed", "nothing that a search varies"),
        ({"base": {"epochs": 0}}, "/base/epochs", "1 to 10000"),
        ({"base": {"model": {"routing": {"iterations": 0}}}}, "/base/model/routing/iterations",
         "1 to 10"),
        ({"base": {"epoch": 0}}, "/base/epoch", "did you mean 'epochs'"),
        ({"base": {"init_from": {"job": "no-such"}}}, "/base/init_from/job", "the id of a job"),
        ({"metric": "test/accuracy"}, "/metric", "val/accuracy"),
        ({"algorithm": {"type": "optuna"}}, "/algorithm/type", "random, grid, tpe"),
        ({"scheduler": {"type": "asha", "factor": 3}}, "/scheduler/factor", "reduction_factor"),
        ({"trials": 3}, "/trials", "leave it out"),
        ({"epochs": 3}, "/epochs", "base.epochs"),
        ({"budget": {"max_runtime_s": 1}}, "/budget/max_runtime_s", "10 to"),
    ],
)  # fmt: skip
def test_a_bad_search_is_refused_at_its_field(
    http: httpx.Client, change: dict[str, Any], pointer: str, tells: str
) -> None:
    document = SEARCH | {"algorithm": {"type": "random"}} | change
    if "trials" in change:
        document["algorithm"] = {"type": "grid"}
    for path in ("/v1/searches", "/v1/searches/preview"):
        problem = refused(http.post(path, json=document), 422)
        assert problem.errors[0].pointer == pointer
        assert tells in problem.model_dump_json()
        assert "search" in str(problem.hint)


def test_a_training_is_no_search(http: httpx.Client) -> None:
    job = http.post("/v1/jobs", json={}).json()["id"]
    for path in ("", "/trials", "/configurations", "/trials/0/logs"):
        problem = refused(http.get(f"/v1/searches/{job}{path}"), 404)
        assert problem.code == "search-not-found"
        assert f"GET /v1/jobs/{job}" in str(problem.hint)
    for verb in ("cancel", "retry-failed", "promote"):
        assert refused(http.post(f"/v1/searches/{job}/{verb}"), 404).code == "search-not-found"
    assert "GET /v1/searches" in str(refused(http.get("/v1/searches/nope"), 404).hint)


@pytest.mark.parametrize(
    ("path", "pointer"),
    [
        ("/v1/searches?kind=train", "/query/kind"),
        ("/v1/searches?limit=0", "/query/limit"),
        ("/v1/searches/{id}/trials?sort=score", "/query/sort"),
        ("/v1/searches/{id}/trials?order_by=rank", "/query/order_by"),
        ("/v1/searches/{id}/trials?state=DONE", "/query/state/0"),
        ("/v1/searches/{id}/trials?limit=1001", "/query/limit"),
        ("/v1/searches/{id}/configurations?cursor=x", "/query/cursor"),
        ("/v1/searches/{id}/trials/-1/logs", "/path/number"),
        ("/v1/jobs?kind=tune", "/query/kind/0"),
    ],
)
def test_a_bad_parameter_is_refused(http: httpx.Client, path: str, pointer: str) -> None:
    problem = refused(http.get(path.format(id=submit(http))), 422)
    assert (problem.code, problem.errors[0].pointer) == ("parameter-invalid", pointer)


# ---------------------------------------------------------------------------------- document


def test_the_examples_are_valid_answers() -> None:
    from service.api import search_examples as examples

    for example in (examples.SEARCH, examples.ACCEPTED, examples.CANCELLING):
        view = SearchView.model_validate(example)
        assert view.model_dump(mode="json").keys() == example.keys()
    for model, example in (
        (SearchItem, examples.ITEM),
        (TrialView, examples.TRIAL),
        (JobView, examples.PROMOTED),
    ):
        assert model.model_validate(example).model_dump(mode="json").keys() == example.keys()
    SearchPage.model_validate(examples.PAGE)
    TrialPage.model_validate(examples.TRIAL_PAGE)
    ConfigurationPage.model_validate(examples.CONFIGURATION_PAGE)
    assert SearchPreview.model_validate(examples.PREVIEW).model_dump() == examples.PREVIEW


def test_the_schema_is_served(http: httpx.Client) -> None:
    schema = http.get("/v1/schema/search").json()
    assert schema["title"] == "SearchSpec"
    assert "space" in schema["required"]


def test_all_that_is_known_of_a_trial_is_told() -> None:
    assert Trial.model_fields.keys() - {"run_id", "shipped"} <= TrialView.model_fields.keys()


def test_a_preview_tells_what_a_search_amounts_to(http: httpx.Client, api: Any) -> None:
    wakes, before = api.loop.wakes, len(http.get("/v1/searches?limit=200").json()["searches"])
    answer = http.post("/v1/searches/preview", json=SEARCH)
    assert answer.status_code == 200, answer.text
    told = SearchPreview.model_validate_json(answer.content)
    assert (told.configurations, told.trials, len(told.points)) == (5, 10, 5)
    assert told.training_images == 10 * 4 * 3600
    assert len(http.get("/v1/searches?limit=200").json()["searches"]) == before
    assert api.loop.wakes == wakes


_PATHS = st.sampled_from([*TrainSpec.model_fields, RATE, "model.type", "epochs.x", "artifacts.0"])
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
_DIMENSIONS = st.fixed_dictionaries(
    {"type": st.sampled_from(["choice", "grid", "uniform", "loguniform", "randint", "quniform"])},
    optional={
        "values": st.lists(_VALUES, max_size=3),
        "low": _VALUES,
        "high": _VALUES,
        "q": st.floats(),
    },
)
_SEARCHES = st.fixed_dictionaries(
    {"space": st.dictionaries(_PATHS | st.text(max_size=5), _DIMENSIONS | _VALUES, max_size=3)},
    optional={
        "base": st.dictionaries(_PATHS, _VALUES, max_size=2),
        "trials": _VALUES,
        "algorithm": _VALUES | st.just({"type": "grid"}),
        "seeds": st.integers(),
    },
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(document=_SEARCHES, path=st.sampled_from(["/v1/searches", "/v1/searches/preview"]))
def test_no_body_makes_the_service_fail(
    http: httpx.Client, document: dict[str, Any], path: str
) -> None:
    body = json.dumps(document, ensure_ascii=False).encode(errors="surrogatepass")
    answer = http.post(path, content=body, headers=JSON)
    assert answer.status_code in (200, 202, 400, 422), answer.text
