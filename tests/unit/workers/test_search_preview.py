"""What a search amounts to, against sums made by hand over the variants."""

import json
import time
from typing import Any

import pytest
from pydantic import ValidationError

from capsmodel.config import CapsNetConfig, DynamicRoutingConfig
from workers.search_preview import COUNTED, SearchPreview, preview
from workers.search_specs import SearchSpec

TRAIN, VALIDATION = 3600, 400
"""Images of mnist-5k, of which a tenth is held out."""
BASE = {"dataset": {"type": "mnist-5k"}, "epochs": 3}
GRID = {"type": "grid"}


def search(space: dict[str, Any], **settings: Any) -> SearchSpec:
    dimensions = {
        path: {"type": "choice", "values": each} if isinstance(each, list) else each
        for path, each in space.items()
    }
    document = {"base": BASE, "space": dimensions, **settings}
    return SearchSpec.model_validate_json(json.dumps(document))


def between(kind: str, low: float, high: float) -> dict[str, Any]:
    return {"type": kind, "low": low, "high": high}


def forward(iterations: int = 3) -> int:
    flops = CapsNetConfig(routing=DynamicRoutingConfig(iterations=iterations)).forward_flops
    assert flops is not None
    return flops


def test_a_grid_is_summed_up_over_its_configurations_and_seeds() -> None:
    found = preview(
        search({"model.routing.iterations": [1, 3], "epochs": [2, 5, 11]}, algorithm=GRID, seeds=4)
    )
    epochs = 2 * (2 + 5 + 11)
    assert (found.configurations, found.trials) == (6, 24)
    assert found.epochs == 4 * epochs
    assert found.training_images == 4 * epochs * TRAIN
    assert found.validation_images == 4 * epochs * VALIDATION
    per_net = 4 * (epochs // 2) * (3 * TRAIN + VALIDATION)
    assert found.flops == per_net * (forward(1) + forward(3))
    assert (found.estimated, found.unknown, found.notes) == (False, [], [])


def test_random_draws_are_summed_up_as_they_will_be_drawn() -> None:
    spec = search({"epochs": between("randint", 1, 50)}, trials=37)
    found = preview(spec)
    epochs = [spec.configuration(number)["epochs"] for number in range(37)]
    assert len(set(epochs)) > 10
    assert found.epochs == sum(epochs)
    assert found.flops == sum(epochs) * (3 * TRAIN + VALIDATION) * forward()
    assert not found.estimated


@pytest.mark.parametrize("points", [0, 2, 5, 100])
def test_the_points_are_the_searchs_first_configurations(points: int) -> None:
    spec = search({"epochs": [1, 2, 3], "loss.m_minus": between("uniform", 0.05, 0.2)}, trials=7)
    found = preview(spec, points)
    assert found.points == [spec.configuration(number) for number in range(min(points, 7))]


def test_a_large_search_is_estimated_by_the_mean_of_a_sample() -> None:
    space = {"epochs": between("randint", 1, 99), "batch_size": between("randint", 1, 100)}
    spec = search(space, trials=8000, seeds=1)
    found = preview(spec)
    exact = sum(spec.configuration(number)["epochs"] for number in range(8000))
    assert found.estimated
    assert found.epochs == pytest.approx(exact, rel=0.05)
    assert found.training_images == pytest.approx(TRAIN * found.epochs, abs=8 * TRAIN)


def test_the_sample_of_a_large_grid_is_no_corner_of_it() -> None:
    """The first thousand combinations would all have the first epochs of the list."""
    spec = search({"batch_size": list(range(1, 51)), "epochs": list(range(1, 101))}, algorithm=GRID)
    assert spec.configurations == 5 * COUNTED
    assert preview(spec).epochs == pytest.approx(50 * sum(range(1, 101)), rel=0.1)


def test_what_costs_the_same_everywhere_is_exact_however_large_the_search() -> None:
    found = preview(search({"loss.m_minus": between("uniform", 0.05, 0.2)}, trials=5000, seeds=2))
    assert not found.estimated
    assert found.epochs == 3 * 10_000
    assert found.flops == 3 * 10_000 * (3 * TRAIN + VALIDATION) * forward()


def test_data_sets_may_differ() -> None:
    sets = [{"type": "mnist-5k"}, {"type": "mnist-5k", "per_class": 20}]
    found = preview(search({"dataset": sets}, algorithm=GRID))
    assert found.training_images == 3 * (TRAIN + 200)
    assert found.validation_images == 3 * 2 * VALIDATION


def test_what_only_the_files_tell_is_null_with_its_reason() -> None:
    own = {"type": "huggingface", "path": "x", "image_shape": [1, 28, 28], "classes": 10}
    found = preview(search({"dataset": [{"type": "mnist-5k"}, own]}, algorithm=GRID))
    assert (found.training_images, found.validation_images, found.flops) == (None, None, None)
    assert found.epochs == 6
    assert len(found.unknown) == 1
    assert "'huggingface'" in found.unknown[0]


def test_tpe_shows_random_points_and_says_so() -> None:
    space = {"epochs": between("randint", 1, 50)}
    found = preview(search(space, algorithm={"type": "tpe"}))
    assert found.points == preview(search(space)).points
    assert found.estimated
    assert "random" in found.notes[0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scheduler": {"type": "asha"}}, ["'asha' ends trials early"]),
        (
            {"scheduler": {"type": "median", "grace_epochs": 2}},
            ["'median' ends trials early", "trials of up to 2 epochs"],
        ),
        ({"base": BASE | {"early_stopping": {"patience": 1}}}, ["early_stopping ends"]),
        ({"metric": "val/total_loss"}, ["do not compare"]),
        ({"metric": "val/classification_loss"}, ["do not compare"]),
        ({"metric": "val/reconstruction_loss"}, []),
    ],
    ids=str,
)
def test_what_else_is_to_know_is_told(settings: dict[str, Any], words: list[str]) -> None:
    spec = search({"epochs": [2, 7], "loss.m_minus": [0.1, 0.2]}, algorithm=GRID, **settings)
    notes = preview(spec).notes
    assert len(notes) == len(words)
    for note, word in zip(notes, words, strict=True):
        assert word in note


def test_draws_that_come_again_are_counted() -> None:
    grid = {"type": "grid", "values": [0.1, 0.2]}
    spec = search({"epochs": [1, 2, 3, 4, 5], "loss.m_minus": grid}, trials=5)
    every = [tuple(spec.configuration(number).values()) for number in range(10)]
    repeats = 10 - len(set(every))
    assert repeats > 0
    (note,) = preview(spec).notes
    assert note.startswith(f"{repeats} of the 10 configurations are repeats of earlier ones")
    by_default = preview(search({"epochs": [1, 2]}))
    assert by_default.configurations == 10
    assert by_default.notes[0].startswith("8 of the 10 configurations are repeats")


def test_draws_that_all_differ_are_no_matter_for_a_note() -> None:
    assert preview(search({"loss.m_minus": between("uniform", 0.05, 0.2)})).notes == []
    grid = {"type": "grid", "values": [2, 7]}
    assert preview(search({"epochs": grid}, trials=1)).notes == []


def test_a_point_that_validation_missed_is_refused_at_its_path() -> None:
    """Corners and first draws may all be valid, and a later one not: here m- meets m+."""
    space = {"loss.m_minus": [0.1, 0.2], "loss.m_plus": [0.9, 0.15]}
    document = {
        "base": BASE,
        "space": {p: {"type": "choice", "values": v} for p, v in space.items()},
    }
    spec = SearchSpec.model_validate(document, context={"variants": "checked"})
    with pytest.raises(ValidationError) as refused:
        preview(spec)
    assert refused.value.errors()[0]["loc"] in {("space", "loss.m_minus"), ("space", "loss.m_plus")}


def test_a_preview_is_a_document_and_quick() -> None:
    space = {
        "epochs": between("randint", 2, 9),
        "model.class_dim": between("randint", 8, 16),
        "loss.m_minus": between("uniform", 0.05, 0.2),
    }
    spec = search(space, trials=10_000)
    started = time.process_time()
    found = preview(spec)
    assert time.process_time() - started < 1
    assert SearchPreview.model_validate_json(found.model_dump_json()) == found
    described = SearchPreview.model_json_schema()["properties"].values()
    assert all("description" in field for field in described)
