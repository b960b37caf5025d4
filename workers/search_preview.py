"""What a search amounts to, before anything runs: configurations, points, images, operations."""

import json
import math
from random import Random
from typing import Any

from pydantic import BaseModel, ConfigDict

from capsmodel.cost import TrainingCost, training_cost
from workers.search_specs import NoSchedulerConfig, RandomSearchConfig, SearchSpec, TpeConfig

COUNTED = 1000
"""Configurations that are counted one by one; beyond them their mean stands for the others."""
_COSTLY = ("dataset", "epochs", "model")
"""Fields that decide what a training amounts to."""


class SearchPreview(BaseModel):
    """What a search amounts to if nothing ends it early."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    configurations: int
    """Assignments of values that will be tried."""
    trials: int
    """Trainings: each configuration with each of its seeds."""
    points: list[dict[str, Any]]
    """The first configurations, a value for every path of the space."""
    epochs: int | None
    """Epochs of all trials together, at most; the validation part is evaluated after each."""
    training_images: int | None
    """Images that all trials together learn from, at most; null where `unknown` says why."""
    validation_images: int | None
    """Images of the validation part that all trials together evaluate, at most, or null."""
    flops: int | None
    """Floating point operations of all trials together, at most, or null: three ways forward for an
    image learnt from, one for an image evaluated, a multiplication with its addition counted 2."""
    estimated: bool
    """Whether the sums rest on a sample of the configurations."""
    unknown: list[str]
    """Why a sum is null."""
    notes: list[str]
    """What else is to know before the search runs."""


def preview(spec: SearchSpec, points: int = 5) -> SearchPreview:
    """What the search amounts to.

    Args:
        spec: A valid search.
        points: First configurations to show, fewer where the search has fewer.

    Raises:
        pydantic.ValidationError: One of up to `COUNTED` configurations that are looked at is not
            valid; the validation of `spec` has tried corners and the first ones alone.
    """
    varied = any(path.partition(".")[0] in _COSTLY for path in spec.space)
    guessed = spec.configurations > COUNTED or isinstance(spec.algorithm, TpeConfig)
    costs = _costs(spec)
    return SearchPreview(
        configurations=spec.configurations,
        trials=spec.configurations * spec.seeds,
        points=[spec.configuration(number) for number in range(min(points, spec.configurations))],
        epochs=_sum(spec, [cost.epochs for cost in costs]),
        training_images=_sum(spec, [cost.training_images for cost in costs]),
        validation_images=_sum(spec, [cost.validation_images for cost in costs]),
        flops=_sum(spec, [cost.flops for cost in costs]),
        estimated=varied and guessed,
        unknown=list(dict.fromkeys(reason for cost in costs for reason in cost.unknown)),
        notes=_notes(spec),
    )


def _costs(spec: SearchSpec) -> list[TrainingCost]:
    """One cost for each configuration, or for `COUNTED` of them, drawn without replacement."""
    numbers = range(spec.configurations)
    if len(numbers) > COUNTED:
        sample = Random(spec.base.seed).sample(numbers, COUNTED)
    else:
        sample = list(numbers)
    return [training_cost(spec.checked_variant(spec.configuration(number))) for number in sample]


def _sum(spec: SearchSpec, each: list[int] | list[int | None]) -> int | None:
    """Sum over all trials of what one trial of each counted configuration amounts to."""
    known = [amount for amount in each if amount is not None]
    if len(known) < len(each):
        return None
    # Whole numbers throughout: operations of a large search have more digits than a float.
    return spec.seeds * sum(known) * spec.configurations // len(known)


def _repeats(spec: SearchSpec) -> int:
    """Configurations of a random search that are the same as an earlier one."""
    if not isinstance(spec.algorithm, RandomSearchConfig) or math.isinf(spec.different_draws):
        return 0
    crossed = spec.configurations // spec.draws
    # A draw that comes again meets the same combinations of the grids again: look at the first.
    firsts = (spec.configuration(number) for number in range(0, spec.configurations, crossed))
    different = {json.dumps(first, sort_keys=True) for first in firsts}
    return (spec.draws - len(different)) * crossed


def _notes(spec: SearchSpec) -> list[str]:
    notes = []
    if isinstance(spec.algorithm, TpeConfig):
        notes.append(
            "tpe chooses by what it has measured: the points are random ones of its space, not "
            "those that it will try"
        )
    if repeats := _repeats(spec):
        notes.append(
            f"{repeats:,} of the {spec.configurations:,} configurations "
            f"{'is a repeat' if repeats == 1 else 'are repeats'} of earlier ones: the space is "
            "small, and each is drawn by itself; the algorithm 'grid' tries each combination of "
            "listed values once"
        )
    if not isinstance(spec.scheduler, NoSchedulerConfig):
        notes.append(
            f"the scheduler {spec.scheduler.type!r} ends trials early: the sums are upper bounds"
        )
    if spec.base.early_stopping or any(path.startswith("early_stopping") for path in spec.space):
        notes.append("early_stopping ends trials early: the sums are upper bounds")
    grace = getattr(spec.scheduler, "grace_epochs", 0)
    if spec.epochs_range[0] <= grace:
        notes.append(f"trials of up to {grace} epochs (scheduler.grace_epochs) run to their end")
    if spec.metric in ("val/total_loss", "val/classification_loss") and any(
        path.partition(".")[0] == "loss" for path in spec.space
    ):
        notes.append(
            f"the space varies the loss, and {spec.metric!r} is measured with each configuration's "
            "own: the numbers do not compare; 'val/accuracy' does"
        )
    return notes
