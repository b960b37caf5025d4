"""`capsctl` against a real server: what it prints, and its exit status."""

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner
from typer.testing import Result as Answer

from service.cli import app
from service.cli.documents import load
from service.cli.output import InputError
from service.queue.job import State
from service.queue.store import NewEvent
from workers.attempt import AttemptFolder, Progress, Reason, Result
from workers.specs import PRESETS, TrainSpec


@pytest.fixture
def capsctl(api: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("CAPS_URL", api.url)

    def run(*arguments: str, stdin: str | None = None) -> Answer:
        return CliRunner().invoke(app, list(arguments), input=stdin)

    return run


def submitted(capsctl: Any, *arguments: str) -> str:
    result = capsctl("submit", *(arguments or ("demo",)), "-o", "json")
    assert result.exit_code == 0, result.output
    return str(json.loads(result.stdout)["id"])


def ended(api: Any, job_id: str, state: State = State.SUCCEEDED) -> None:
    job = api.store.start_attempt(api.store.get(job_id), NewEvent("started", "started"))
    folder = AttemptFolder(api.settings.storage_root, job_id, 1)
    folder.write_progress(
        Progress(epoch=1, epochs=2, step=5, steps=10, train_loss=0.5, val_accuracy=0.9)
    )
    folder.log.write_text("hello\n")
    reason = "completed" if state is State.SUCCEEDED else "diverged"
    api.store.update(job, state=state, reason=reason, evidence="the line that tells")


def test_submit_says_what_to_do_next(capsctl: Any) -> None:
    result = capsctl("submit", "demo", "--set", "model.routing.iterations=1", "--name", "quick")
    assert result.exit_code == 0, result.output
    job_id = result.stdout.split()[1]
    assert f"capsctl watch {job_id}" in result.stdout
    view = json.loads(capsctl("show", job_id, "-o", "json").stdout)
    assert view["spec"]["model"]["routing"]["iterations"] == 1
    assert view["name"] == "quick"
    assert "iterations: 1" in capsctl("show", job_id).stdout


def test_submit_reads_yaml_and_json(capsctl: Any, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("name: 2026-11-22\nepochs: 1_000\noptimizer: {learning_rate: 1e-3}\n")
    view = json.loads(capsctl("show", submitted(capsctl, str(file)), "-o", "json").stdout)
    assert (view["name"], view["spec"]["epochs"]) == ("2026-11-22", 1000)
    assert view["spec"]["optimizer"]["learning_rate"] == 0.001
    result = capsctl("submit", "-", "-o", "json", stdin='{"epochs": 3}')
    assert json.loads(result.stdout)["spec"]["epochs"] == 3


@pytest.mark.parametrize(
    ("arguments", "tells"),
    [
        (["demo", "--set", "model.routing.iterations=0"], "/model/routing/iterations"),
        (["demo", "--set", "model.routing.iterations=0"], "1 to 10"),
        (["demo", "--set", "optimizer.learning_rate=.nan"], "finite"),
        (["demo", "--set", "epoch=1"], "did you mean 'epochs'"),
        (["demo", "--set", "epochs"], "write it as"),
        (["demo", "--set", "artifacts.7.columns=3"], "3 items"),
        (["demo", "--set", "epochs={"], "--set"),
        (["dmo"], "did you mean 'demo'"),
        (["nothing-of-it"], "presets: demo, demo-multimnist, paper"),
    ],
)
def test_bad_input_names_the_field_and_exits_2(
    capsctl: Any, arguments: list[str], tells: str
) -> None:
    result = capsctl("submit", *arguments)
    assert result.exit_code == 2
    assert tells in result.stderr
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output
    assert "\x1b" not in result.output


@pytest.mark.parametrize("content", ["- 1", "a: [", "\x00", "{" * 3000, "!!python/object:x {}"])
def test_a_broken_file_is_bad_input(capsctl: Any, tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    result = capsctl("submit", str(tmp_path / "bad.yaml"))
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output


def test_errors_of_the_api_are_told_with_hint_and_request(capsctl: Any) -> None:
    result = capsctl("show", "nope")
    assert result.exit_code == 2
    for tells in ("error: job-not-found", "hint: ", "request: "):
        assert tells in result.stderr


def test_an_api_that_does_not_answer_is_a_failure(
    capsctl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPS_URL", "http://127.0.0.1:9")
    result = capsctl("jobs")
    assert result.exit_code == 1
    assert "error: api-unreachable" in result.stderr
    assert "capsctl up" in result.stderr


def test_jobs_are_listed(capsctl: Any) -> None:
    ids = [submitted(capsctl, "demo", "--set", "experiment=listed") for _ in range(3)]
    text = capsctl("jobs", "--experiment", "listed", "--state", "queued").stdout
    assert [line.split()[0] for line in text.splitlines()] == ["ID", *sorted(ids, reverse=True)]
    listed = json.loads(
        capsctl("jobs", "--experiment", "listed", "--limit", "2", "-o", "json").stdout
    )
    assert len(listed) == 2
    assert capsctl("jobs", "--label", "novalue").exit_code == 2


def test_watch_exits_by_what_became_of_the_job(capsctl: Any, api: Any) -> None:
    good, bad = submitted(capsctl), submitted(capsctl)
    ended(api, good)
    ended(api, bad, State.FAILED)
    result = capsctl("watch", good)
    assert result.exit_code == 0, result.output
    assert "epoch 1/2, step 5/10, loss 0.5000, validation 90.00%" in result.stdout
    assert "\x1b" not in result.stdout
    result = capsctl("watch", bad)
    assert result.exit_code == 1
    assert "FAILED, diverged\n  the line that tells\n  hint: lower optim" in result.stdout
    assert f"capsctl explain {bad}" in result.stdout
    lines = capsctl("watch", bad, "-o", "json").stdout.splitlines()
    assert json.loads(lines[-1])["state"] == "FAILED"


def test_ctrl_c_detaches_and_leaves_the_job_alone(
    capsctl: Any, api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    job_id = submitted(capsctl)
    monkeypatch.setattr("service.client.CapsClient.wait", interrupt)
    result = capsctl("watch", job_id)
    assert result.exit_code == 130
    assert f"capsctl watch {job_id}" in result.stderr
    assert api.store.get(job_id).desired == "run"


def test_logs_events_and_cancel(capsctl: Any, api: Any) -> None:
    job_id = submitted(capsctl)
    ended(api, job_id)
    assert capsctl("logs", job_id).stdout == "hello\n"
    assert capsctl("logs", "-f", job_id).stdout == "hello\n"
    assert json.loads(capsctl("logs", job_id, "-o", "json").stdout)["text"] == "hello\n"
    assert "submitted: submitted as 'demo'" in capsctl("events", job_id).stdout
    events = [
        json.loads(line) for line in capsctl("events", job_id, "-o", "json").stdout.splitlines()
    ]
    assert [event["type"] for event in events] == ["submitted", "started"]
    result = capsctl("cancel", job_id)
    assert result.exit_code == 1
    assert "error: job-ended" in result.stderr
    assert "cancelling" in capsctl("cancel", submitted(capsctl)).stdout


def test_following_the_log_of_a_job_that_failed_exits_1(capsctl: Any, api: Any) -> None:
    for state in (State.FAILED, State.CANCELLED):
        job_id = submitted(capsctl)
        ended(api, job_id, state)
        result = capsctl("logs", "-f", job_id)
        assert (result.exit_code, result.stdout) == (1, "hello\n")
        assert capsctl("logs", job_id).exit_code == 0


def test_a_log_is_followed_until_the_job_fails(capsctl: Any, api: Any) -> None:
    job_id = submitted(capsctl)
    job = api.store.start_attempt(api.store.get(job_id), NewEvent("started", "started"))
    log = AttemptFolder(api.settings.storage_root, job_id, 1).log
    log.parent.mkdir(parents=True)

    def work() -> None:
        for line in ("one\n", "two\n"):
            with log.open("a") as file:
                file.write(line)
            time.sleep(0.3)
        api.store.update(job, state=State.FAILED)

    worker = threading.Thread(target=work)
    worker.start()
    result = capsctl("logs", "-f", job_id)
    worker.join()
    assert (result.exit_code, result.stdout) == (1, "one\ntwo\n")


def test_verbs_take_several_jobs_and_tell_what_each_became(capsctl: Any, api: Any) -> None:
    first, second = submitted(capsctl), submitted(capsctl)
    result = capsctl("pause", first, second)
    assert result.stdout.splitlines() == [f"job {first}: pausing", f"job {second}: pausing"]
    assert capsctl("pause", first).exit_code == 0
    views = [json.loads(line) for line in capsctl("resume", first, second, "-o", "json").stdout
             .splitlines()]  # fmt: skip
    assert [(view["id"], view["desired"]) for view in views] == [(first, "run"), (second, "run")]
    result = capsctl("retry", first)
    assert (result.exit_code, "error: job-conflict" in result.stderr) == (1, True)
    for job_id in (first, second):
        ended(api, job_id, State.FAILED)
    assert capsctl("retry", first, second).stdout.count("waiting") == 2


def test_one_job_that_refuses_keeps_no_other_from_it(capsctl: Any, api: Any) -> None:
    good, done = submitted(capsctl), submitted(capsctl)
    ended(api, done)
    result = capsctl("cancel", done, "nope", good)
    assert result.exit_code == 2
    assert "error: job-ended" in result.stderr
    assert "error: job-not-found" in result.stderr
    assert result.stdout == f"job {good}: cancelling\n"
    result = capsctl("cancel", done, good, "-o", "json")
    assert (result.exit_code, json.loads(result.stderr)["code"]) == (1, "job-ended")


def test_delete_asks_unless_it_is_told_not_to(
    capsctl: Any, api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = submitted(capsctl)
    refused = capsctl("delete", job_id)
    assert (refused.exit_code, "-y deletes unasked" in refused.stderr) == (2, True)
    result = capsctl("delete", "-y", job_id)
    assert (result.exit_code, "error: job-active" in result.stderr) == (1, True)
    ended(api, job_id)
    monkeypatch.setattr("service.cli.verbs._somebody_is_there", lambda: True)
    result = capsctl("delete", job_id, stdin="n\n")
    assert (result.exit_code, f"delete {job_id}" in result.stderr) == (1, True)
    assert capsctl("show", job_id).exit_code == 0
    assert capsctl("delete", job_id, stdin="y\n").stdout.endswith(f"deleted {job_id}\n")
    assert capsctl("show", job_id).exit_code == 2
    other = submitted(capsctl)
    ended(api, other)
    assert json.loads(capsctl("delete", "-y", other, "-o", "json").stdout) == {"deleted": other}


def test_a_key_makes_a_submission_one(capsctl: Any) -> None:
    job_id = submitted(capsctl, "demo", "--key", "cli-1")
    assert submitted(capsctl, "demo", "--key", "cli-1") == job_id
    result = capsctl("submit", "paper", "--key", "cli-1")
    assert (result.exit_code, "idempotency-key-reused" in result.stderr) == (2, True)


def test_a_submission_says_that_it_is_tried_again(
    capsctl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPS_URL", "http://127.0.0.1:9")
    naps: list[float] = []
    turned = SimpleNamespace(sleep=naps.append, monotonic=lambda: sum(naps))
    monkeypatch.setattr("service.client.transport.time", turned)
    result = capsctl("submit", "demo")
    assert result.exit_code == 1
    assert result.stderr.count("trying again for up to 30 s") == 1
    assert "error: api-unreachable" in result.stderr


def test_explain_tells_why_and_what_next(capsctl: Any, api: Any) -> None:
    job_id = submitted(capsctl)
    text = capsctl("explain", job_id).stdout
    assert text.startswith(f"job {job_id} (demo): QUEUED\n  It waits at position ")
    ended(api, job_id, State.FAILED)
    api.store.update(api.store.get(job_id), NewEvent("failed", "the line that tells"))
    text = capsctl("explain", job_id).stdout
    for tells in (
        f"job {job_id} (demo): FAILED, diverged", "the training diverged", "The line that tells.",
        "hint: lower optimizer", "attempts:\n  1  ", "failed: the line that tells",
        f"capsctl logs {job_id}", f"capsctl retry {job_id}",
    ):  # fmt: skip
        assert tells in text, text
    found = json.loads(capsctl("explain", job_id, "-o", "json").stdout)
    assert (found["state"], found["reason"], len(found["attempts"])) == ("FAILED", "diverged", 1)
    assert capsctl("explain", "nope").exit_code == 2


def test_explain_tells_what_mlflow_has_by_now(capsctl: Any, api: Any) -> None:
    job_id = submitted(capsctl)
    ended(api, job_id, State.CANCELLED)
    result = Result(
        outcome="cancelled", reason=Reason.CANCELLED, tracking="incomplete: the end: away"
    )
    changes = {"result": result.model_dump(mode="json"), "experiment_id": "1", "run_id": "r7"}
    job = api.store.update(api.store.get(job_id), **changes)
    assert "sends the metrics before it closes the run" in capsctl("explain", job_id).stdout
    api.store.update(job, run_closed=True)
    assert "has sent the metrics since" in capsctl("explain", job_id).stdout
    assert json.loads(capsctl("show", job_id, "-o", "json").stdout)["mlflow"]["closed"] is True


def test_schema_and_presets_are_printed(capsctl: Any) -> None:
    assert json.loads(capsctl("schema").stdout)["title"] == "TrainSpec"
    assert json.loads(capsctl("schema", "train", "-o", "json").stdout)["title"] == "TrainSpec"
    for name, preset in PRESETS.items():
        document = yaml.safe_load(capsctl("schema", "--preset", name).stdout)
        assert TrainSpec.model_validate_json(json.dumps(document)) == preset
    assert capsctl("schema", "--preset", "nope").exit_code == 2


@pytest.mark.parametrize(
    ("settings", "path", "value"),
    [
        (["optimizer.learning_rate=1e-3"], "optimizer.learning_rate", 1e-3),
        (["optimizer.learning_rate=1E3"], "optimizer.learning_rate", 1e3),
        (["model.decoder.hidden=[8, 16]"], "model.decoder.hidden", [8, 16]),
        (["model.decoder=null"], "model.decoder", None),
        (["artifacts.0.columns=3"], "artifacts.0.columns", 3),
        (["early_stopping.patience=2"], "early_stopping.patience", 2),
        (["labels.at=12:30:00"], "labels.at", "12:30:00"),
        (["name=010"], "name", "010"),
        (["model.routing.type=uniform"], "model.routing", {"type": "uniform"}),
        (["schedule.floor=0.1", "schedule.type=exponential"], "schedule",
         {"type": "exponential", "floor": 0.1}),
    ],
)  # fmt: skip
def test_settings_are_typed_and_nested(settings: list[str], path: str, value: object) -> None:
    place: Any = load("demo", settings)
    for part in path.split("."):
        place = place[int(part)] if isinstance(place, list) else place[part]
    assert place == value
    assert type(place) is type(value)


def test_a_setting_through_a_list_needs_a_place() -> None:
    with pytest.raises(InputError, match="3 items"):
        load("demo", ["artifacts.first.columns=3"])


def test_presets_are_not_changed_by_settings() -> None:
    before = PRESETS["demo"].model_dump()
    load("demo", ["model.routing.iterations=9", "labels.a=b"])
    assert PRESETS["demo"].model_dump() == before


def test_an_error_is_json_where_json_is_asked_for(capsctl: Any) -> None:
    answer = capsctl("show", "no-such-job", "-o", "json")
    assert answer.exit_code == 2
    assert json.loads(answer.stderr)["code"] == "job-not-found"


@pytest.mark.parametrize("name", PRESETS)
def test_a_presets_document_is_the_preset(name: str) -> None:
    document = json.dumps(load(name, []))
    assert TrainSpec.model_validate_json(document) == PRESETS[name]


def test_another_data_set_brings_its_own_defaults_and_shape() -> None:
    document = load("demo", ["dataset.type=multimnist"])
    spec = TrainSpec.model_validate_json(json.dumps(document))
    assert spec.dataset.max_shift == 4
    assert (spec.model.image_shape, spec.model.targets) == ((1, 36, 36), 2)


def test_another_model_brings_its_own_loss() -> None:
    document = load("demo", ["model={type: cnn}"])
    assert TrainSpec.model_validate_json(json.dumps(document)).loss.type == "cross-entropy"
    document = load("demo", ["loss.m_plus=0.8"])
    assert TrainSpec.model_validate_json(json.dumps(document)).loss.type == "margin"
