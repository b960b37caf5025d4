"""Makes a training job of a search's configuration."""

import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from service.api.fields import explain, scalar
from service.api.parsing import invalid_spec
from service.errors import FieldError, NoScoreError
from service.queue.job import Job
from workers.search_space import FieldPath, apply
from workers.search_specs import SearchSpec
from workers.specs import LabelKey, LabelValue, Name, TrainSpec
from workers.trials import Standing, Trial, standings

LABEL = "search"
"""Label of the promoted job: the search's id."""
BESIDE = ("name", "labels", "priority")
"""Fields of the promotion itself, which `set` does not take."""


class Promotion(BaseModel):
    """What a promoted job takes over, and what is changed in it."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )

    configuration: int | None = Field(default=None, ge=0, le=100_000)
    """The configuration to promote; the best one by default."""
    set: dict[FieldPath, JsonValue] = Field(default={}, max_length=100)
    """Fields of the training, by path, and their values: `{"epochs": 30}`; name, labels and
    priority stand beside it."""
    name: Name | None = None
    labels: dict[LabelKey, LabelValue] = Field(default={}, max_length=31)
    """Added to those of the search; the label `search` is its id."""
    priority: int | None = Field(default=None, ge=-100, le=100)
    """That of the search by default."""


def promoted(search: Job, trials: Sequence[Trial], promotion: Promotion) -> TrainSpec:
    """The training that a configuration stands for.

    Raises NoScoreError where there is no best configuration, SpecInvalidError for what is unknown
    or does not fit.
    """
    spec = search.spec
    assert isinstance(spec, SearchSpec)
    _check_places(promotion)
    chosen = _chosen(search, spec, trials, promotion.configuration)
    document = apply(spec.document(), chosen.values)
    document |= {
        "name": promotion.name or f"{spec.name[:70]} configuration {chosen.configuration}",
        "description": _description(search, spec, chosen),
        "experiment": spec.experiment,
        "labels": {**spec.base.labels, **spec.labels, **promotion.labels, LABEL: search.id},
        "priority": spec.priority if promotion.priority is None else promotion.priority,
    }
    document = _changed(document, promotion)
    try:
        return TrainSpec.model_validate_json(json.dumps(document))
    except ValidationError as error:
        fields = [_at_its_path(field, promotion) for field in explain(error, document)]
        raise invalid_spec(fields, error.error_count()) from None


def _check_places(promotion: Promotion) -> None:
    """Refuse what would be lost: the promotion has fields of its own for it, or the service."""
    wrong = []
    for path, value in promotion.set.items():
        name = path.partition(".")[0]
        if name in BESIDE:
            wrong.append(
                FieldError(
                    f"/set/{path}",
                    f"{name!r} is no setting of the training",
                    scalar(value),
                    hint=f"give `{name}` beside `set`, as a field of the promotion itself",
                )
            )
    if LABEL in promotion.labels:
        wrong.append(
            FieldError(
                f"/labels/{LABEL}",
                "the service sets this label, to the id of the search",
                promotion.labels[LABEL],
                hint="leave it out, or take another name for the label",
            )
        )
    if wrong:
        raise invalid_spec(wrong, len(wrong))


def _chosen(search: Job, spec: SearchSpec, trials: Sequence[Trial], number: int | None) -> Standing:
    board = standings(trials, spec.mode)
    if number is None:
        if not board or board[0].mean is None:
            raise NoScoreError(f"no trial of search {search.id} has a score yet")
        return board[0]
    for standing in board:
        if standing.configuration == number:
            return standing
    known = sorted(standing.configuration for standing in board)
    accepted = f"{known[0]} to {known[-1]}" if known else "none yet: no trial was chosen"
    unknown = FieldError("/configuration", "no such configuration", number, accepted)
    raise invalid_spec([unknown], 1)


def _changed(document: dict[str, Any], promotion: Promotion) -> dict[str, Any]:
    for path, value in sorted(promotion.set.items(), key=lambda item: item[0].count(".")):
        try:
            document = apply(document, {path: value})
        except KeyError:
            problem = "leads through a value that has no fields"
            raise invalid_spec([FieldError(f"/set/{path}", problem, scalar(value))], 1) from None
    return document


def _description(search: Job, spec: SearchSpec, chosen: Standing) -> str:
    score = "without a score"
    if chosen.mean is not None:
        count = len(chosen.scored)
        seeds = "1 seed" if count == 1 else f"{count} seeds"
        deviation = "" if chosen.deviation is None else f" ± {chosen.deviation:.2g}"
        score = f"{spec.metric} {chosen.mean:.6g}{deviation} over {seeds}"
    values = ", ".join(f"`{path}` = {json.dumps(value)}" for path, value in chosen.values.items())
    text = (
        f"Configuration {chosen.configuration} of search `{search.id}` ({spec.name}): {score}. "
        f"{values}."
    )
    return "\n\n".join(part for part in (text[:2000], spec.base.description[:1900]) if part)


def _at_its_path(field: FieldError, promotion: Promotion) -> FieldError:
    """The error at the path that was set: what the search tried was valid."""
    place = field.pointer.removeprefix("/").replace("/", ".")
    blamed = [p for p in promotion.set if f"{place}.".startswith(f"{p}.")]
    blamed = blamed or [p for p in promotion.set if f"{p}.".startswith(f"{place}.")]
    if not blamed:
        return field
    path = max(blamed, key=len)
    rest = place.removeprefix(path).replace(".", "/") if place.startswith(path) else ""
    return FieldError(f"/set/{path}{rest}", field.detail, field.value, field.accepted, field.hint)
