"""The notes of MLflow's runs, in Markdown: what a training or a search is."""

import json
from typing import Any

from pydantic import BaseModel

from service.queue.job import Job
from workers.search_specs import SearchSpec
from workers.specs import TrainSpec


def describe(job: Job) -> str:
    """The run's note."""
    spec = job.spec
    told = _search(job.id, spec) if isinstance(spec, SearchSpec) else _training(job.id, spec)
    return "\n\n".join(part for part in (f"# {spec.name}", spec.description, *told) if part)


def _training(job_id: str, spec: TrainSpec) -> list[str]:
    if spec.dataset.validation_fraction > 0:
        weights = (
            "The best weights are chosen by the accuracy on the validation part; the test set is "
            "read once, at the end (`test/`: best weights, `test_last/`: last weights)."
        )
    else:
        weights = (
            "Nothing is held out to choose weights by: the last ones count. The test set is read "
            "once, at the end."
        )
    curves = "Open *Model metrics* for the curves and the reconstruction sheets."
    return [f"Job `{job_id}`: {_what(spec)}.", f"{weights} {curves}"]


def _search(job_id: str, spec: SearchSpec) -> list[str]:
    better = "larger" if spec.mode == "max" else "smaller"
    seeds = f", each with {spec.seeds} seeds" if spec.seeds > 1 else ""
    rows = [f"| `{path}` | {in_words(d)} |" for path, d in spec.space.items()]
    return [
        f"Search `{job_id}` over {_what(spec.base)}.",
        "\n".join(["| field | values |", "| --- | --- |", *rows]),
        f"{spec.configurations} configurations{seeds}; algorithm {_member(spec.algorithm)}, "
        f"scheduler {_member(spec.scheduler)}, {spec.concurrency} trials at once.",
        f"A trial's score is **{spec.metric}** at its best epoch ({better} is better), a "
        "configuration's score is the mean over its seeds. No trial reads the test set: promote "
        "the best configuration to a job of its own for that. The trials are the nested runs.",
    ]


def in_words(dimension: BaseModel) -> str:
    """A dimension of a space, e.g. `loguniform 0.0001 to 0.01`."""
    fields: dict[str, Any] = dimension.model_dump(mode="json")
    name = fields.pop("type")
    if values := fields.pop("values", None):
        return f"{name} of {', '.join(_value(value) for value in values)}"
    if "low" in fields and "high" in fields:
        low, high = fields.pop("low"), fields.pop("high")
        rest = [f"{key} {_value(value)}" for key, value in fields.items()]
        return ", ".join([f"{name} {_value(low)} to {_value(high)}", *rest])
    return f"{name} {_value(fields)}"


def _what(spec: TrainSpec) -> str:
    return (
        f"a **{spec.model.type}** trained on **{spec.dataset.type}** for at most {spec.epochs} "
        f"epochs, {spec.batch_size} images a batch, in {spec.precision}, seed {spec.seed}"
    )


def _member(config: BaseModel) -> str:
    """A member of an open set with its settings."""
    fields = config.model_dump(mode="json")
    name = f"**{fields.pop('type')}**"
    settings = ", ".join(f"{key} {_value(value)}" for key, value in fields.items())
    return f"{name} ({settings})" if settings else name


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)
