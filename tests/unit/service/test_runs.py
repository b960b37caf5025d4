"""What MLflow is told of a job: its parameters and its note."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    PERMISSION_DENIED,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
)

from service.api import search_examples as examples
from service.errors import TrackingUnavailableError
from service.notes import describe, in_words
from service.queue.job import AnySpec, Desired, Job, State
from service.runs import MlflowRuns
from workers.parameters import flatten
from workers.search_space import Dimension, Grid, QUniform, RandInt
from workers.search_specs import SearchSpec
from workers.specs import PRESETS, InitFrom

DEMO = PRESETS["demo"]


def a_job(spec: AnySpec) -> Job:
    return Job("j1", spec, Desired.RUN, State.QUEUED, 0, 1, created_at=0.0, updated_at=0.0)


def test_every_setting_is_a_parameter_named_by_its_path() -> None:
    found = dict(flatten(DEMO))
    assert found["seed"] == "0"
    assert found["model.routing.iterations"] == "3"
    assert found["model.decoder.hidden"] == "[128, 256]"
    assert found["loss.lambda"] == "0.5"
    assert found["artifacts.0.type"] == "reconstruction-sheet"
    assert found["early_stopping"] == "None"


def test_what_stands_in_tags_and_notes_is_no_parameter() -> None:
    labelled = DEMO.model_copy(update={"labels": {"team": "vision"}})
    names = {name.split(".")[0] for name, _ in flatten(labelled)}
    assert names.isdisjoint({"labels", "name", "description", "experiment", "schema_version"})
    assert len(dict(flatten(DEMO))) == len(list(flatten(DEMO))), "a name is there twice"


def test_nested_settings_follow_their_values() -> None:
    spec = DEMO.model_copy(
        update={
            "artifacts": (),
            "init_from": InitFrom(job="abc"),
            "model": DEMO.model.model_copy(update={"decoder": None}),
        }
    )
    found = dict(flatten(spec))
    assert found["artifacts"] == "[]"
    assert (found["init_from.job"], found["init_from.path"]) == ("abc", "None")
    assert found["model.decoder"] == "None"


def test_the_note_says_what_the_run_is() -> None:
    note = describe(a_job(DEMO))
    for part in ("# demo", DEMO.description, "`j1`", "**capsnet**", "**mnist-5k**", "bf16"):
        assert part in note


def test_the_note_says_which_weights_count() -> None:
    assert "validation part" in describe(a_job(DEMO))
    whole = DEMO.dataset.model_copy(update={"validation_fraction": 0.0})
    note = describe(a_job(DEMO.model_copy(update={"dataset": whole})))
    assert "validation part" not in note
    assert "the last ones count" in note


def test_a_note_without_description_has_no_hole() -> None:
    assert "\n\n\n" not in describe(a_job(DEMO.model_copy(update={"description": ""})))


# ---------------------------------------------------------------------------------- searches


def test_the_note_of_a_search_tells_base_space_and_method() -> None:
    spec = SearchSpec.model_validate_json(json.dumps(examples.SPEC))
    note = describe(a_job(spec))
    for part in (
        "# routing",
        "Search `j1` over a **capsnet** trained on **mnist-5k**",
        "| `model.routing.iterations` | choice of 1, 2, 3, 5 |",
        "| `loss.reconstruction_weight` | loguniform 1e-05 to 0.01 |",
        "12 configurations;",
        "scheduler **asha** (grace_epochs 1, reduction_factor 3), 2 trials at once",
        "**val/accuracy** at its best epoch (larger is better)",
    ):
        assert part in note
    assert "\n\n\n" not in note


def test_the_space_of_a_search_is_among_its_parameters() -> None:
    spec = SearchSpec.model_validate_json(json.dumps(examples.SPEC))
    found = dict(flatten(spec))
    assert found["space.model.routing.iterations.values"] == "[1, 2, 3, 5]"
    assert found["space.loss.m_minus.high"] == "0.3"
    assert found["base.epochs"] == "9"
    assert found["scheduler.reduction_factor"] == "3"


@pytest.mark.parametrize(
    ("dimension", "words"),
    [
        (
            Grid(values=(True, "bf16", {"type": "uniform"})),
            'grid of true, bf16, {"type": "uniform"}',
        ),
        (QUniform(low=0, high=1, q=0.25), "quniform 0 to 1, q 0.25"),
        (RandInt(low=1, high=8), "randint 1 to 8"),
    ],
)
def test_a_dimension_is_put_in_words(dimension: Dimension, words: str) -> None:
    assert in_words(dimension) == words


class Mlflow:
    """The calls of MlflowClient that `close` makes, noted."""

    def __init__(self, *statuses: str) -> None:
        self.statuses = dict(enumerate(statuses))
        self.asked = ""

    def get_run(self, run_id: str) -> SimpleNamespace:
        return SimpleNamespace(info=SimpleNamespace(status="FINISHED", experiment_id="e1"))

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        pass

    def search_runs(self, ids: list[str], filter: str, **options: object) -> list[SimpleNamespace]:
        self.asked = filter
        running = [n for n, status in self.statuses.items() if status == "RUNNING"]
        return [SimpleNamespace(info=SimpleNamespace(run_id=n)) for n in running]

    def set_terminated(self, run_id: int, status: str) -> None:
        self.statuses[run_id] = status


def test_runs_that_a_killed_driver_left_open_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = MlflowRuns("http://mlflow")
    mlflow = Mlflow("FINISHED", "RUNNING", "RUNNING")
    monkeypatch.setattr(runs, "_client", mlflow)
    monkeypatch.setattr(runs, "ping", lambda: None)
    spec = SearchSpec.model_validate_json(json.dumps(examples.SPEC))
    job = replace(a_job(spec), run_id="parent", experiment_id="e1", state=State.SUCCEEDED)
    runs.close(job, None)
    assert list(mlflow.statuses.values()) == ["FINISHED", "KILLED", "KILLED"]
    assert "mlflow.parentRunId` = 'parent'" in mlflow.asked


@pytest.mark.parametrize(
    ("owner", "user"), [("local", None), ("ann@example.org", "ann@example.org")]
)
def test_a_run_is_its_owners(monkeypatch: pytest.MonkeyPatch, owner: str, user: str | None) -> None:
    made: list[dict[str, str]] = []

    def create_run(experiment: str, tags: dict[str, str], run_name: str) -> SimpleNamespace:
        made.append(tags)
        return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

    client = SimpleNamespace(
        create_run=create_run,
        get_experiment_by_name=lambda name: SimpleNamespace(
            experiment_id="e1", lifecycle_stage="active"
        ),
        search_runs=lambda ids, which: [],
        log_batch=lambda run_id, params: None,
    )
    runs = MlflowRuns("http://mlflow")
    monkeypatch.setattr(runs, "_client", client)
    monkeypatch.setattr(runs, "ping", lambda: None)
    spec = SearchSpec.model_validate_json(json.dumps(examples.SPEC))
    assert runs.ensure(replace(a_job(spec), owner=owner)) == ("e1", "r1")
    assert made[0].get("mlflow.user") == user


class Refusing(Mlflow):
    """Refuses to end some runs, with an error of MLflow."""

    def __init__(self, *statuses: str, refused: dict[object, int]) -> None:
        super().__init__(*statuses)
        self.refused = refused

    def get_run(self, run_id: str) -> SimpleNamespace:
        return SimpleNamespace(info=SimpleNamespace(status="RUNNING", experiment_id="e1"))

    def set_terminated(self, run_id: object, status: str) -> None:
        if run_id in self.refused:
            raise MlflowException("must be in the 'active' state", self.refused[run_id])
        if run_id in self.statuses:
            self.statuses[run_id] = status


def closing(monkeypatch: pytest.MonkeyPatch, mlflow: Mlflow) -> None:
    """Close a search's run with that MLflow."""
    runs = MlflowRuns("http://mlflow")
    monkeypatch.setattr(runs, "_client", mlflow)
    monkeypatch.setattr(runs, "ping", lambda: None)
    spec = SearchSpec.model_validate_json(json.dumps(examples.SPEC))
    job = replace(a_job(spec), run_id="parent", experiment_id="e1", state=State.SUCCEEDED)
    runs.close(job, None)


@pytest.mark.parametrize("code", [INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST])
@pytest.mark.parametrize("deleted", ["parent", 0])
def test_a_run_that_somebody_deleted_keeps_no_other_open(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int, deleted: object
) -> None:
    mlflow = Refusing("RUNNING", "RUNNING", refused={deleted: code})
    closing(monkeypatch, mlflow)
    assert mlflow.statuses == {0: "RUNNING" if deleted == 0 else "KILLED", 1: "KILLED"}
    assert f"run {deleted} stays as it is" in caplog.text


@pytest.mark.parametrize("code", [INTERNAL_ERROR, TEMPORARILY_UNAVAILABLE, PERMISSION_DENIED])
@pytest.mark.parametrize("run", ["parent", 0])
def test_an_outage_closes_nothing(monkeypatch: pytest.MonkeyPatch, code: int, run: object) -> None:
    with pytest.raises(TrackingUnavailableError, match="active"):
        closing(monkeypatch, Refusing("RUNNING", refused={run: code}))
