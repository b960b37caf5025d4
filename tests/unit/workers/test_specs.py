"""The training job's specification: complete, strict, bounded on every field."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from workers.specs import ARTIFACTS, PRESETS, TrainSpec

SCHEMA = TrainSpec.model_json_schema()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_json(name: str) -> None:
    spec = PRESETS[name]
    assert TrainSpec.model_validate_json(spec.model_dump_json()) == spec
    assert TrainSpec.model_validate(spec.model_dump(mode="json")) == spec
    assert spec.name == name
    assert spec.description


def test_the_empty_specification_is_complete() -> None:
    spec = TrainSpec.model_validate({})
    assert (spec.dataset.type, spec.model.type) == ("mnist", "capsnet")
    assert spec.keep == ("best", "last")
    assert spec.training.model_dump().items() <= spec.model_dump().items()


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("", {"colour": "blue"}),
    ("schema_version", {"schema_version": 2}),
    ("name", {"name": ""}),
    ("name", {"name": "x" * 101}),
    ("name", {"name": "../x"}),
    ("name", {"name": "a\n"}),
    ("experiment", {"experiment": " blank"}),
    ("description", {"description": "x" * 4001}),
    ("labels", {"labels": {"mlflow.note": "x"}}),
    ("labels", {"labels": {"caps.job": "x"}}),
    ("labels", {"labels": {"a b": "x"}}),
    ("labels", {"labels": {"a": "x" * 201}}),
    ("labels", {"labels": {"a": "line\nbreak"}}),
    ("labels", {"labels": {"a": 1}}),
    ("labels", {"labels": {f"k{n}": "" for n in range(33)}}),
    ("priority", {"priority": 101}),
    ("max_runtime_s", {"max_runtime_s": 0}),
    ("max_retries", {"max_retries": 11}),
    ("epochs", {"epochs": 10**9}),
    ("epochs", {"epochs": 0}),
    ("epochs", {"epochs": "10"}),
    ("epochs", {"epochs": 1.5}),
    ("epochs", {"epochs": True}),
    ("seed", {"seed": -1}),
    ("batch_size", {"batch_size": 8193}),
    ("precision", {"precision": "fp16"}),
    ("model", {"model": {"routing": {"iterations": 0}}}),
    ("model", {"model": {"routing": {"type": "magic"}}}),
    ("model", {"model": {"conv_channels": 10**6}}),
    ("loss", {"loss": {"m_plus": float("nan")}}),
    ("loss", {"loss": {"reconstruction_weight": float("inf")}}),
    ("optimizer", {"optimizer": {"learning_rate": float("nan")}}),
    ("optimizer", {"optimizer": {"learning_rate": 0}}),
    ("optimizer", {"optimizer": {"beta1": 1.0}}),
    ("resources", {"resources": {"workers": 65}}),
    ("resources", {"resources": {"cpus_per_worker": 0}}),
    ("resources", {"resources": {"gpus_per_worker": 2}}),
    ("artifacts", {"artifacts": [{"type": "film"}]}),
    ("artifacts", {"artifacts": [{"columns": 1}]}),
    ("artifacts", {"artifacts": [{}] * 21}),
    ("checkpoint_every_s", {"checkpoint_every_s": 0}),
    ("init_from", {"init_from": {}}),
    ("init_from", {"init_from": {"job": "a", "path": "a.pt"}}),
    ("init_from", {"init_from": {"job": "A B"}}),
    ("init_from", {"init_from": {"job": "a", "checkpoint": "first"}}),
    ("init_from", {"init_from": {"path": "../a.pt"}}),
    ("init_from", {"init_from": {"path": "a/../../b.pt"}}),
    ("init_from", {"init_from": {"path": "/etc/passwd.pt"}}),
    ("init_from", {"init_from": {"path": "a.pickle"}}),
    ("keep", {"keep": ["first"]}),
    ("keep", {"keep": ["best", "last", "best"]}),
]


@pytest.mark.parametrize(("field", "fields"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_is_out_of_bounds_is_refused_at_its_field(field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainSpec.model_validate(fields)
    places = [error["loc"] for error in caught.value.errors()]
    messages = [error["msg"] for error in caught.value.errors()]
    assert any(place[:1] == (field,) for place in places) or any(field[:5] in m for m in messages)


ACCEPTED: list[dict[str, Any]] = [
    {"labels": {"mlflow": "a", "team.x": ""}},
    {"init_from": {"job": "abc-1", "checkpoint": "last"}},
    {"init_from": {"path": "jobs/a/1/checkpoints/best.pt"}},
    {"init_from": {"path": "a..b/c.pt"}},
    {"keep": []},
    {"keep": ["last"]},
    {"artifacts": []},
    {"artifacts": [{"columns": 10}]},
    {"model": {"decoder": None}},
    {"loss": {"lambda": 0.3}},
]


@pytest.mark.parametrize("fields", ACCEPTED, ids=str)
def test_what_is_in_bounds_is_accepted(fields: dict[str, Any]) -> None:
    spec = TrainSpec.model_validate(fields)
    assert TrainSpec.model_validate_json(spec.model_dump_json()) == spec


def test_every_artifact_has_an_implementation() -> None:
    for name in ARTIFACTS.members:
        assert callable(ARTIFACTS.implementation(name))


def walk(path: str, node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every subschema that says what a value may be."""
    if isinstance(node, list):
        for index, child in enumerate(node):
            yield from walk(f"{path}/{index}", child)
    elif isinstance(node, dict):
        if "type" in node and isinstance(node["type"], str):
            yield path, node
        for key, child in node.items():
            if key not in ("default", "enum", "const", "discriminator", "examples"):
                yield from walk(f"{path}/{key}", child)


def bounded(node: dict[str, Any]) -> bool:
    if node["type"] in ("integer", "number"):
        low = {"minimum", "exclusiveMinimum"} & node.keys()
        high = {"maximum", "exclusiveMaximum"} & node.keys()
        return "const" in node or bool(low and high)
    if node["type"] == "string":
        return bool({"maxLength", "enum", "const"} & node.keys())
    if node["type"] == "array":
        return "maxItems" in node
    if node["type"] == "object":
        return node.get("additionalProperties") is False or "maxProperties" in node
    return True


def test_every_value_of_the_schema_is_bounded() -> None:
    found = dict(walk("", SCHEMA))
    assert len(found) > 50
    assert [path for path, node in found.items() if not bounded(node)] == []


def test_every_field_of_the_schema_says_what_it_is() -> None:
    documents = [SCHEMA, *SCHEMA["$defs"].values()]
    fields = [
        (document["title"], name, field)
        for document in documents
        for name, field in document.get("properties", {}).items()
    ]
    told = {"description", "title", "$ref", "const", "anyOf", "oneOf"}
    assert [(owner, name) for owner, name, field in fields if not told & field.keys()] == []
    assert all(document.get("description") for document in documents)
