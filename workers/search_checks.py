"""What is refused of a search's space, where and in which words.

Every variant that is tried is validated as a whole training. An error there says where in the
training something is wrong; here it is told which path of the space is to blame: the one without
which the error would not be.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from capsmodel.config import CapsNetConfig, CnnConfig, ModelConfig
from workers.search_fields import accepted, did_you_mean
from workers.search_space import Dimension, RangeDimension, overlap
from workers.specs import TrainSpec

if TYPE_CHECKING:
    from workers.search_specs import SearchSpec

_NOTHING_LEARNT = "it says nothing about what is learnt; write it in the base"
NOT_SEARCHED = {
    **dict.fromkeys(
        (
            "schema_version",
            "name",
            "description",
            "experiment",
            "labels",
            "priority",
            "max_runtime_s",
            "max_retries",
            "artifacts",
            "checkpoint_every_s",
            "keep",
        ),
        _NOTHING_LEARNT,
    ),
    "resources": "all trials reserve what base.resources says",
    "init_from": "all trials start from what base.init_from says",
    "seed": "each configuration is trained with as many seeds as `seeds` says, from base.seed on",
}
"""Fields that no search varies, and what to do instead."""

LONGEST_VALUE = 150
"""Characters of a value that a message repeats."""

Assignment = Mapping[str, Any]


_OURS = ("not-measured", "other-weights", "too-few-pictures")
"""Kinds of problems of a valid training: their messages say what is accepted."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with a variant."""

    location: tuple[int | str, ...]
    """Where in the training's specification."""
    kind: str
    """Pydantic's name of the error, or one of ours."""
    message: str

    @property
    def place(self) -> str:
        """The location as a path."""
        return ".".join(map(str, self.location))


def checked_variant(search: "SearchSpec", assignment: Assignment) -> TrainSpec:
    """The variant, or a ValidationError at the path in the space whose value does not fit."""
    try:
        variant = search.variant(dict(assignment))
    except (KeyError, ValidationError):
        _blame(search, assignment)
    if _objection(search, variant) is not None:
        _blame(search, assignment)
    return variant


def refuse_stated_twice(space: Mapping[str, Dimension]) -> None:
    """Whole objects among the values must not state what a longer path sets as well."""
    for path, dimension in space.items():
        for below in space:
            if not below.startswith(f"{path}."):
                continue
            name, _, deeper = below.removeprefix(f"{path}.").partition(".")
            for value in dimension.corners():
                if isinstance(value, dict) and name in value and not deeper:
                    refuse(
                        below,
                        f"{below!r} is set here, and by {_short(value)} of {path!r} too: state "
                        f"{name!r} in one of them",
                        value[name],
                    )


def refuse(path: str, message: str, value: Any) -> NoReturn:
    """Raise a ValidationError at a path's place in the space."""
    refuse_at(("space", path), message, value)


def refuse_at(location: tuple[int | str, ...], message: str, value: Any) -> NoReturn:
    """Raise a ValidationError at a place in the search's specification."""
    kind = PydanticCustomError("value_error", "{problem}", {"problem": message})
    raise ValidationError.from_exception_data(
        "SearchSpec", [InitErrorDetails(type=kind, loc=location, input=value)]
    )


# ------------------------------------------------------------------------------- who is to blame


def _blame(search: "SearchSpec", assignment: Assignment) -> NoReturn:
    """Refuse an assignment that has a problem."""
    problem = _problem(search, assignment)
    assert problem is not None
    near = [path for path in assignment if overlap(path, problem.place)]
    cures = [path for path in assignment if _problem(search, _without(assignment, path)) is None]
    suspects = [path for path in near if path in cures] or near or cures
    if not suspects:
        refuse_at(("base", *problem.location), problem.message, None)
    blamed = max(suspects, key=lambda path: len(path) if path in near else 0)
    beside = {path: assignment[path] for path in cures if path != blamed}
    message = _in_words(
        blamed,
        search.space[blamed],
        assignment[blamed],
        beside,
        problem,
        _cured(search, _without(assignment, blamed)),
    )
    refuse(blamed, message, assignment[blamed])


def _problem(search: "SearchSpec", assignment: Assignment) -> Problem | None:
    """What is wrong with a variant, if anything."""
    try:
        variant = search.variant(dict(assignment))
    except KeyError as error:
        return Problem(tuple(str(error.args[0]).split(".")), "no-fields", "")
    except ValidationError as error:
        return _told(error)
    return _objection(search, variant)


def _told(error: ValidationError) -> Problem:
    """The first error; a field that is unknown says more than one that is therefore missing."""
    lines = error.errors(include_url=False)
    line = next((each for each in lines if each["type"] == "extra_forbidden"), lines[0])
    message = str(line["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if line["type"] == "missing":
        message = f"it needs the field {line['loc'][-1]!r}"
    if line["type"] == "union_tag_invalid":
        context = line["ctx"]
        message = f"unknown type {context['tag']!r}, accepted is one of {context['expected_tags']}"
    return Problem(line["loc"], str(line["type"]), message)


def _cured(search: "SearchSpec", assignment: Assignment) -> TrainSpec:
    """A valid training to look fields up in: the variant, or else the base."""
    if _problem(search, assignment) is not None:
        return search.base
    return search.variant(dict(assignment))


def _without(assignment: Assignment, path: str) -> dict[str, Any]:
    return {name: value for name, value in assignment.items() if name != path}


# --------------------------------------------------------------- valid, but no use to this search


def _objection(search: "SearchSpec", variant: TrainSpec) -> Problem | None:
    """Why a valid training is no use to a search, if it is none."""
    return (
        _too_few_pictures(variant)
        or _not_measured(search.metric, variant)
        or _other_weights(search.base, variant)
    )


def _too_few_pictures(variant: TrainSpec) -> Problem | None:
    """What would else be found when the data are loaded, in every trial anew."""
    available = getattr(variant.dataset, "images_per_class", None)
    wanted = variant.dataset.per_class
    if available is None or wanted is None or wanted <= min(available):
        return None
    return Problem(
        ("dataset", "per_class"),
        "too-few-pictures",
        f"data set {variant.dataset.type!r} has only {min(available):,} images of its rarest class "
        f"to learn from, and per_class is {wanted:,}: accepted is up to {min(available):,}, or "
        "null for all",
    )


def _not_measured(metric: str, variant: TrainSpec) -> Problem | None:
    """The metric must be measured in every trial, on a validation part."""
    dataset, model = variant.dataset, variant.model
    parts = getattr(dataset, "part_sizes", None)
    if dataset.validation_fraction == 0 or (parts is not None and parts.validation == 0):
        return Problem(
            ("dataset", "validation_fraction"),
            "not-measured",
            f"metric {metric!r} is measured on the validation part, and "
            f"dataset.validation_fraction {dataset.validation_fraction:g} holds out no image: "
            "accepted is up to 0.5, try 0.1",
        )
    if metric == "val/per_digit_accuracy" and dataset.targets == 1:
        return Problem(
            ("dataset",),
            "not-measured",
            f"metric {metric!r} needs two classes in an image, and data set {dataset.type!r} has "
            "one: use 'val/accuracy', or the data set 'multimnist'",
        )
    drawless = isinstance(model, CnnConfig) or (
        isinstance(model, CapsNetConfig) and model.decoder is None
    )
    if metric == "val/reconstruction_loss" and drawless:
        return Problem(
            ("model", "decoder") if isinstance(model, CapsNetConfig) else ("model",),
            "not-measured",
            f"metric {metric!r} needs a decoder, and the model has none: use 'val/accuracy', or "
            "give model.decoder",
        )
    return None


def _other_weights(base: TrainSpec, variant: TrainSpec) -> Problem | None:
    """Weights from a checkpoint fit the base's model, so no variant may have others."""
    if base.init_from is None or weights_of(base.model) == weights_of(variant.model):
        return None
    before, after = weights_of(base.model), weights_of(variant.model)
    changed = next(name for name in {**before, **after} if before.get(name) != after.get(name))
    return Problem(
        ("model", changed),
        "other-weights",
        f"base.init_from gives weights for the base's model, and model.{changed} makes others: "
        "leave init_from out, or vary only what needs no weights (the iterations of the routing, "
        "losses, the optimizer)",
    )


def weights_of(model: ModelConfig) -> dict[str, Any]:
    """The settings of a model that decide which weights it has."""
    document = model.model_dump(mode="json", by_alias=True, exclude={"initialization", "dropout"})
    routing = document.get("routing")
    if isinstance(routing, dict) and routing.get("type") in ("dynamic", "uniform"):
        document["routing"] = "without weights"
    return document


# ----------------------------------------------------------------------------------------- words


def _in_words(
    path: str,
    dimension: Dimension,
    value: Any,
    beside: Mapping[str, Any],
    problem: Problem,
    cured: TrainSpec,
) -> str:
    """The refusal of a value: what it is, what is accepted, what to do."""
    hint = did_you_mean(path, cured, NOT_SEARCHED)
    if problem.kind == "no-fields":
        return f"{path!r} leads through a value that has no fields: {hint}"
    if problem.kind == "extra_forbidden" and path.startswith(problem.place):
        return f"{path!r} is no field of a training{_beside(beside)}: {hint}"
    if problem.kind == "extra_forbidden":
        hint = did_you_mean(problem.place, cured, NOT_SEARCHED)
        return f"{_short(value)} has an unknown field {str(problem.location[-1])!r}: {hint}"
    if problem.kind in ("int_type", "int_from_float") and isinstance(dimension, RangeDimension):
        return (
            f"{dimension.type!r} draws numbers such as {value!r}, accepted is "
            f"{accepted(cured, path)}: write `randint`, `lograndint`, or `quniform` with whole "
            "low, high and q"
        )
    message = f"{_short(value)} does not fit{_beside(beside)}: {problem.message}"
    takes = None if problem.kind in _OURS or path != problem.place else accepted(cured, path)
    return f"{message}; accepted: {takes}" if takes else message


def _beside(values: Mapping[str, Any]) -> str:
    """The other values without which a problem would not be there."""
    together = ", ".join(f"{path} = {_short(value)}" for path, value in values.items())
    return f" beside {together}" if together else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"
