"""What MLflow is told of a job: its parameters and its note."""

from service.queue.job import Desired, Job, State
from service.runs import describe, flatten
from workers.specs import PRESETS, InitFrom, TrainSpec

DEMO = PRESETS["demo"]


def a_job(spec: TrainSpec) -> Job:
    return Job("j1", spec, Desired.RUN, State.QUEUED, 0, 1, created_at=0.0, updated_at=0.0)


def test_every_setting_is_a_parameter_named_by_its_path() -> None:
    found = dict(flatten(DEMO))
    assert found["seed"] == "0"
    assert found["model.routing.iterations"] == "3"
    assert found["model.decoder.hidden"] == "[256, 512]"
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


def test_a_note_without_description_has_no_hole() -> None:
    assert "\n\n\n" not in describe(a_job(DEMO.model_copy(update={"description": ""})))
