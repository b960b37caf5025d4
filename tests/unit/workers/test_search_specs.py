"""Searches: what a space may hold, what it amounts to, and what is refused where."""

import json
import math
import time
from random import Random
from typing import Any

import pytest
from pydantic import ValidationError

from workers.search_space import DIMENSIONS, Grid, LogUniform, apply, corners
from workers.search_specs import TRUSTED, AshaConfig, SearchSpec

BASE = {"dataset": {"type": "mnist-5k"}, "epochs": 3}
SPACE: dict[str, Any] = {
    "model.routing.iterations": {"type": "choice", "values": [1, 2, 3, 5]},
    "loss.reconstruction_weight": {"type": "loguniform", "low": 1e-5, "high": 1e-2},
    "loss.m_minus": {"type": "uniform", "low": 0.05, "high": 0.2},
}


def search(space: dict[str, Any] = SPACE, **settings: Any) -> SearchSpec:
    document = {"base": BASE, "space": space, **settings}
    return SearchSpec.model_validate_json(json.dumps(document))


def test_a_search_is_a_document_and_back() -> None:
    spec = search(trials=12, scheduler={"type": "asha"}, algorithm={"type": "tpe"})
    assert SearchSpec.model_validate_json(spec.model_dump_json()) == spec
    assert spec.configurations == 12


@pytest.mark.parametrize("kind", DIMENSIONS.members)
def test_draws_and_corners_lie_within_the_dimension(kind: str) -> None:
    settings: dict[str, Any] = {"low": 2, "high": 8}
    if kind in ("choice", "grid"):
        settings = {"values": [2, 5, 8]}
    if kind == "quniform":
        settings["q"] = 2
    dimension = DIMENSIONS.members[kind].config.model_validate({"type": kind, **settings})
    chance = Random(1)
    drawn = [dimension.draw(chance) for _ in range(2000)]
    assert {2, 8} <= set(dimension.corners())
    assert min(drawn) >= 2
    assert max(drawn) <= 8
    if math.isfinite(dimension.size):
        assert len(set(drawn)) == dimension.size


@pytest.mark.parametrize(("kind", "mean"), [("uniform", 50.5), ("loguniform", 10.0)])
def test_logarithms_are_uniform_where_the_name_says_so(kind: str, mean: float) -> None:
    settings = {"type": kind, "low": 1.0, "high": 100.0}
    dimension = DIMENSIONS.members[kind].config.model_validate(settings)
    chance = Random(1)
    drawn = [dimension.draw(chance) for _ in range(4000)]
    measured = (
        sum(drawn) / 4000 if kind == "uniform" else math.exp(sum(map(math.log, drawn)) / 4000)
    )
    assert measured == pytest.approx(mean, rel=0.1)


def test_few_corners_are_all_combinations_and_many_are_each_once() -> None:
    found = list(corners(search().space))
    assert len(found) == 4 * 2 * 2
    wide = {f"labels.{chr(97 + k)}": {"type": "choice", "values": list("abc")} for k in range(6)}
    values = {
        path: DIMENSIONS.members["choice"].config.model_validate(each)
        for path, each in wide.items()
    }
    some = list(corners(values))
    assert len(some) == 1 + 6 * 2
    for path in wide:
        assert {corner[path] for corner in some} == set("abc")


def test_a_variant_is_the_base_with_its_values() -> None:
    spec = search(base=BASE | {"seed": 40})
    variant = spec.variant({"model.routing.iterations": 5, "loss.m_minus": 0.15}, seed=2)
    assert variant.model.routing.iterations == 5
    assert variant.loss.m_minus == 0.15
    assert variant.seed == 42
    back = {"model.routing.iterations": 3, "loss.m_minus": 0.1, "seed": 40}
    assert apply(variant.model_dump(mode="json", by_alias=True), back) == spec.base.model_dump(
        mode="json", by_alias=True
    )


def test_whole_objects_and_data_sets_may_vary() -> None:
    spec = search(
        {
            "model.routing": {
                "type": "grid",
                "values": [{"type": "uniform"}, {"type": "dynamic", "iterations": 5}],
            },
            "dataset": {"type": "grid", "values": [{"type": "mnist-5k"}, {"type": "multimnist"}]},
            "early_stopping.patience": {"type": "grid", "values": [1, 2, 3]},
        },
        algorithm={"type": "grid"},
    )
    assert spec.configurations == 12
    variant = spec.variant({"dataset": {"type": "multimnist"}, "early_stopping.patience": 2})
    assert variant.model.image_shape == (1, 36, 36)
    assert variant.early_stopping is not None
    assert variant.early_stopping.patience == 2


def test_a_new_type_leaves_the_other_types_settings_behind() -> None:
    document = {"loss": {"type": "margin", "m_plus": 0.8}}
    assert apply(document, {"loss.type": "cross-entropy"}) == {"loss": {"type": "cross-entropy"}}
    assert apply(document, {"loss.type": "margin"}) == document
    assert document["loss"]["m_plus"] == 0.8


def test_grids_are_crossed_with_draws() -> None:
    grid = {"type": "grid", "values": [1, 3]}
    assert search(SPACE | {"model.routing.iterations": grid}, trials=5).configurations == 10


@pytest.mark.parametrize(
    ("metric", "mode"), [("val/accuracy", "max"), ("val/classification_loss", "min")]
)
def test_the_mode_follows_the_metric(metric: str, mode: str) -> None:
    assert search(metric=metric).mode == mode


def listed(space: dict[str, Any]) -> dict[str, Any]:
    """A space in which a bare list stands for a choice."""
    return {
        path: {"type": "choice", "values": each} if isinstance(each, list) else each
        for path, each in space.items()
    }


def refusal(space: dict[str, Any], **settings: Any) -> tuple[tuple[int | str, ...], str]:
    """Where a search is refused, and why."""
    with pytest.raises(ValidationError) as refused:
        search(listed(space), **settings)
    error = refused.value.errors()[0]
    return error["loc"], error["msg"]


def between(kind: str, low: float, high: float, **settings: float) -> dict[str, Any]:
    return {"type": kind, "low": low, "high": high, **settings}


ITERATIONS = "model.routing.iterations"
RATE = "optimizer.learning_rate"


@pytest.mark.parametrize(
    ("space", "path", "words"),
    [
        (
            {"model.ruting.iterations": [1, 2]},
            "model.ruting.iterations",
            ["no field", "stands at model.routing.iterations"],
        ),
        ({"iterations": [1]}, "iterations", ["stands at model.routing.iterations"]),
        ({"loss.m_pluss": [0.9]}, "loss.m_pluss", ["did you mean 'loss.m_plus'?"]),
        ({"loss.lambda_": [0.5]}, "loss.lambda_", ["did you mean 'loss.lambda'?"]),
        (
            {"early_stopping.patienc": [1]},
            "early_stopping.patienc",
            ["did you mean 'early_stopping.patience'?"],
        ),
        ({"keep_top": [1, 2]}, "keep_top", ["no field", "epochs, batch_size"]),
        ({ITERATIONS: [1, 20]}, ITERATIONS, ["20 does not fit", "a whole number, 1 to 10"]),
        ({"precision": ["fp16"]}, "precision", ["'fp16'", "one of fp32, bf16"]),
        (
            {"optimizer.beta1": between("uniform", 0.1, 2)},
            "optimizer.beta1",
            ["2.0 does not fit", "a number, at least 0 and less than 1"],
        ),
        ({"epochs.x": [1]}, "epochs.x", ["leads through a value that has no fields", "'epochs'"]),
        (
            {"model.decoder.hidden.2": [8]},
            "model.decoder.hidden.2",
            ["leads through", "did you mean 'model.decoder.hidden'?"],
        ),
        ({"seed": [1]}, "seed", ["nothing that a search varies", "`seeds`"]),
        ({"resources.workers": [1, 2]}, "resources.workers", ["base.resources"]),
        ({"init_from": [None]}, "init_from", ["base.init_from"]),
        ({"labels.a": ["b"]}, "labels.a", ["nothing that a search varies"]),
        (
            {"epochs": between("uniform", 1, 3)},
            "epochs",
            ["draws numbers such as 1.0", "a whole number, 1 to 10000", "`randint`"],
        ),
        (
            {"epochs": between("quniform", 1, 3, q=0.5)},
            "epochs",
            ["draws numbers such as 1.0", "with whole low, high and q"],
        ),
        (
            {"loss.m_minus": between("uniform", 0.3, 0.1)},
            "loss.m_minus",
            ["low 0.3 is larger than high 0.1", "exchange"],
        ),
        ({"epochs": between("randint", 5, 2)}, "epochs", ["low 5 is larger than high 2"]),
        ({"epochs": between("randint", 5, 5)}, "epochs", ["both 5", "widen"]),
        ({"loss.m_minus": between("uniform", 0.1, 0.95)}, "loss.m_minus", ["m_plus 0.9"]),
        (
            {RATE: between("loguniform", 0, 1)},
            RATE,
            ["low 0 of loguniform", "more than 0", "`uniform`"],
        ),
        ({RATE: between("loguniform", -1, 1)}, RATE, ["low -1", "more than 0"]),
        ({"epochs": between("lograndint", 0, 4)}, "epochs", ["low 0", "`randint`"]),
        (
            {"loss.m_minus": between("quniform", 0.05, 0.32, q=0.05)},
            "loss.m_minus",
            ["high 0.32 is no multiple of q 0.05", "nearest is 0.3"],
        ),
        (
            {"loss.m_minus": between("quniform", 0, 0.5, q=1e-320)},
            "loss.m_minus",
            ["too fine", "`uniform`"],
        ),
        ({"epochs": [2, 2]}, "epochs", ["2 stands twice"]),
        ({"epochs": []}, "epochs", ["empty", "1 to 100"]),
        ({"model.routing": [{"type": "dynamic", "iters": 4}]}, "model.routing", ["'iters'"]),
        ({"model.routing": [{"type": "dinamic"}]}, "model.routing", ["'dinamic'", "'uniform'"]),
        ({"dataset": [{"type": "huggingface"}]}, "dataset", ["needs the field 'path'"]),
        ({"model.classes": [10, 11]}, "model.classes", ["11", "leave it out"]),
        ({"dataset.per_class": [10, 999]}, "dataset.per_class", ["up to 360", "999"]),
        (
            {"model.routing.type": ["uniform", "dynamic"], ITERATIONS: [1, 2]},
            ITERATIONS,
            ["beside model.routing.type = 'uniform'", "model.routing has the fields type"],
        ),
        (
            {"model.routing": [{"type": "dynamic"}, {"type": "uniform"}], ITERATIONS: [1]},
            ITERATIONS,
            ["beside model.routing = {'type': 'uniform'}"],
        ),
        (
            {"model.routing": [{"type": "dynamic", "iterations": 4}], ITERATIONS: [1, 2]},
            ITERATIONS,
            ["set here, and by", "'iterations': 4", "state 'iterations' in one of them"],
        ),
        (
            {
                "epochs": [2, 3],
                "dataset": [
                    {"type": "mnist"},
                    {"type": "huggingface", "path": "x", "image_shape": [1, 8, 8], "classes": 3},
                ],
            },
            "dataset",
            ["image of 8x8 pixels is too small"],
        ),
        ({"dataset.validation_fraction": [0.1, 0]}, "dataset.validation_fraction", ["try 0.1"]),
        (
            {"dataset.validation_fraction": between("uniform", 0, 0.1)},
            "dataset.validation_fraction",
            ["0.0 does not fit", "holds out no image"],
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_bad_space_is_refused_at_the_path(
    space: dict[str, Any], path: str, words: list[str]
) -> None:
    location, message = refusal(space)
    assert location == ("space", path)
    for word in words:
        assert word in message


@pytest.mark.parametrize("bound", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400])
def test_bounds_that_are_no_numbers_are_refused_at_the_path(bound: str) -> None:
    for kind in ("uniform", "loguniform", "randint", "lograndint", "quniform"):
        step = ', "q": 1' if kind == "quniform" else ""
        dimension = f'{{"type": "{kind}", "low": 1, "high": {bound}{step}}}'
        with pytest.raises(ValidationError) as refused:
            SearchSpec.model_validate_json(f'{{"space": {{"epochs": {dimension}}}}}')
        assert refused.value.errors()[0]["loc"] == ("space", "epochs", "high")


@pytest.mark.parametrize("value", ["NaN", "Infinity"])
def test_values_that_are_no_numbers_are_refused_at_the_path(value: str) -> None:
    text = f'{{"space": {{"loss.m_minus": {{"type": "choice", "values": [0.1, {value}]}}}}}}'
    with pytest.raises(ValidationError, match="no number to compute with") as refused:
        SearchSpec.model_validate_json(text)
    assert refused.value.errors()[0]["loc"] == ("space", "loss.m_minus")


def test_a_long_value_is_cut_in_the_message() -> None:
    _, message = refusal({"model.decoder.hidden": [[8] * 5000]})
    assert len(message) < 400


ONE_EPOCH = BASE | {"epochs": 1}
UNTRIED = {"dataset": {"type": "mnist-5k", "validation_fraction": 0}}
DRAWLESS = BASE | {"model": {"decoder": None}}
STARTED = BASE | {"init_from": {"job": "earlier"}}
MANY = {"type": "grid", "values": list(range(20, 120))}


@pytest.mark.parametrize(
    ("space", "settings", "location", "words"),
    [
        (
            {"epochs": [2]},
            {"algorithm": {"type": "tpe"}, "metric": "test/accuracy"},
            ("metric",),
            [],
        ),
        ({}, {}, ("space",), ["at least 1"]),
        (
            SPACE,
            {"algorithm": {"type": "grid"}},
            ("space", "loss.reconstruction_weight"),
            ["'loguniform' lists no values", "`random`"],
        ),
        (
            {"epochs": {"type": "grid", "values": [2, 3]}},
            {"algorithm": {"type": "tpe"}},
            ("space", "epochs"),
            ["write `choice`"],
        ),
        (
            {"epochs": [1, 2]},
            {"algorithm": {"type": "grid"}, "trials": 3},
            ("trials",),
            ["as many as its values combine to, 2"],
        ),
        (
            {"epochs": MANY, "batch_size": MANY},
            {"algorithm": {"type": "grid"}, "seeds": 2},
            ("space",),
            ["10,000 x seeds 2 = 20,000 trials", "up to 10,000"],
        ),
        ({"epochs": MANY, "batch_size": MANY}, {"trials": 2}, ("space",), ["20,000 trials"]),
        ({"epochs": [2]}, {"trials": 10_000, "seeds": 20}, ("trials",), ["200,000 trials"]),
        (
            {"epochs": [2]},
            {"base": BASE | {"seed": 2**31 - 2}, "seeds": 3},
            ("seeds",),
            ["2,147,483,648", "lower base.seed"],
        ),
        (
            {"epochs": [2]},
            {"base": UNTRIED},
            ("base", "dataset", "validation_fraction"),
            ["'val/accuracy' is measured on the validation part", "try 0.1"],
        ),
        (
            {"epochs": [2]},
            {"base": {"dataset": {"type": "mnist-5k", "validation_fraction": 0.001}}},
            ("base", "dataset", "validation_fraction"),
            ["0.001 holds out no image"],
        ),
        (
            {"epochs": [2]},
            {"metric": "val/per_digit_accuracy"},
            ("base", "dataset"),
            ["'mnist-5k' has one", "'val/accuracy'"],
        ),
        (
            {"dataset": [{"type": "multimnist"}, {"type": "mnist"}]},
            {"metric": "val/per_digit_accuracy"},
            ("space", "dataset"),
            ["{'type': 'mnist'} does not fit"],
        ),
        (
            {"epochs": [2]},
            {"base": DRAWLESS, "metric": "val/reconstruction_loss"},
            ("base", "model", "decoder"),
            ["needs a decoder"],
        ),
        (
            {"model.decoder": [{"hidden": [8]}, None]},
            {"metric": "val/reconstruction_loss"},
            ("space", "model.decoder"),
            ["None does not fit", "needs a decoder"],
        ),
        (
            {"model": [{"type": "capsnet"}, {"type": "cnn"}]},
            {"metric": "val/reconstruction_loss"},
            ("space", "model"),
            ["{'type': 'cnn'} does not fit"],
        ),
        (
            {"model.conv_channels": [64, 128]},
            {"base": STARTED},
            ("space", "model.conv_channels"),
            ["init_from", "leave init_from out"],
        ),
        (
            {"dataset": [{"type": "mnist"}, {"type": "multimnist"}]},
            {"base": STARTED},
            ("space", "dataset"),
            ["model.image_shape makes others"],
        ),
        (
            {"model.routing": [{"type": "uniform"}, {"type": "self-attention"}]},
            {"base": STARTED},
            ("space", "model.routing"),
            ["{'type': 'self-attention'} does not fit"],
        ),
        (
            {"loss.m_minus": [0.1, 0.2]},
            {"base": ONE_EPOCH, "scheduler": {"type": "asha"}},
            ("scheduler", "grace_epochs"),
            ["nothing to end early", "raise base.epochs", "`none`"],
        ),
        (
            {"epochs": [2, 5]},
            {"scheduler": {"type": "median", "grace_epochs": 5}},
            ("scheduler", "grace_epochs"),
            ["no trial has more than 5 epochs", "up to 4"],
        ),
        (
            {"epochs": [2, 5], "batch_size": between("quniform", 32, 128, q=32)},
            {"trials": 9},
            ("trials",),
            ["trials 9", "different draws from this space, 8:", "accepted is 1 to 8", "`grid`"],
        ),
        (
            {"epochs": {"type": "grid", "values": [2, 5]}},
            {"trials": 2},
            ("trials",),
            ["1, each with all 2 combinations of the grids: accepted is 1 to 1;"],
        ),
    ],
    ids=str,
)
def test_a_search_that_can_not_be_is_refused(
    space: dict[str, Any],
    settings: dict[str, Any],
    location: tuple[int | str, ...],
    words: list[str],
) -> None:
    where, message = refusal(space, **settings)
    assert where == location
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("space", "settings"),
    [
        ({"epochs": MANY, "batch_size": MANY}, {"algorithm": {"type": "grid"}}),
        ({"epochs": [2, 5]}, {"scheduler": {"type": "asha", "grace_epochs": 3}}),
        ({"dataset.validation_fraction": [0.1, 0.2]}, {"base": UNTRIED}),
        ({"model.decoder": [{"hidden": [8]}]}, {"base": DRAWLESS, "metric": "val/total_loss"}),
        ({ITERATIONS: [1, 3], "loss.m_minus": [0.1, 0.2]}, {"base": STARTED}),
        ({"model.routing": [{"type": "uniform"}, {"type": "dynamic"}]}, {"base": STARTED}),
        ({"epochs": [2, 3]}, {"base": BASE | {"resources": {"workers": 2}}, "keep_top": 100}),
        ({"epochs": [2, 3]}, {"base": BASE | {"early_stopping": {"patience": 2}}}),
        ({"model.routing": [{"type": "dynamic", "leaky": True}], ITERATIONS: [1, 2]}, {}),
        ({"model.decoder.hidden.0": [8, 16], "model.decoder.hidden.1": [4]}, {}),
        ({"dataset": [{"type": "multimnist"}]}, {"metric": "val/per_digit_accuracy"}),
        ({"epochs": [2, 5], "batch_size": [32, 64]}, {"trials": 4}),
        ({"epochs": [2, 5]}, {"trials": 3, "algorithm": {"type": "tpe"}}),
        ({"epochs": [2, 5], "loss.m_minus": between("uniform", 0, 0.1)}, {"trials": 50}),
    ],
    ids=str,
)
def test_what_looks_odd_but_makes_sense_is_taken(
    space: dict[str, Any], settings: dict[str, Any]
) -> None:
    assert search(listed(space), **settings).configurations >= 2


def test_a_type_is_set_before_what_stands_beside_it_and_parents_before_children() -> None:
    base = BASE | {"model": {"routing": {"type": "uniform"}}}
    spec = search(listed({ITERATIONS: [1, 2], "model.routing.type": ["dynamic"]}), base=base)
    variant = spec.variant({ITERATIONS: 2, "model.routing.type": "dynamic"})
    assert variant.model.routing.iterations == 2
    spec = search(listed({"loss.m_plus": [0.8], "loss": [{"type": "margin", "m_minus": 0.05}]}))
    loss = spec.variant({"loss.m_plus": 0.8, "loss": {"type": "margin", "m_minus": 0.05}}).loss
    assert (loss.m_plus, loss.m_minus) == (0.8, 0.05)


def test_an_item_of_a_list_may_vary() -> None:
    spec = search(listed({"model.decoder.hidden.1": [32, 64]}))
    assert spec.variant({"model.decoder.hidden.1": 64}).model.decoder.hidden == (512, 64)


# --------------------------------------------------------------------------------- configurations


def test_steps_of_whole_numbers_are_whole_and_others_free_of_roundings() -> None:
    spec = search(
        {
            "epochs": between("quniform", 2, 8, q=2),
            "loss.m_minus": between("quniform", 0, 0.7, q=0.1),
            "optimizer.learning_rate": between("uniform", 0.001, 0.002),
        },
        trials=100,
    )
    found = [spec.configuration(number) for number in range(100)]
    assert {repr(values["epochs"]) for values in found} == {"2", "4", "6", "8"}
    tenths = {"0.0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7"}
    assert {repr(values["loss.m_minus"]) for values in found} == tenths
    assert all(isinstance(spec.variant(values).epochs, int) for values in found)


def test_a_random_searchs_configurations_never_change() -> None:
    """A resumed search must draw them again, on any machine and with any Python."""
    first = search(trials=3).configuration(0)
    recorded = {
        "model.routing.iterations": 5,
        "loss.reconstruction_weight": 0.0003144291463855126,
        "loss.m_minus": 0.06462704190739486,
    }
    assert first == pytest.approx(recorded, rel=1e-12)
    other = search(trials=3, base=BASE | {"seed": 1}).configuration(0)
    assert other["loss.m_minus"] != first["loss.m_minus"]


def test_draws_follow_from_seed_number_and_path_alone() -> None:
    spec = search(trials=20)
    backwards = search(dict(reversed(SPACE.items())), trials=20)
    wider = search(SPACE | {"epochs": between("randint", 2, 9)}, trials=50)
    for number in range(20):
        values = spec.configuration(number)
        assert backwards.configuration(number) == values
        assert values.items() < wider.configuration(number).items()
    assert len({values["loss.m_minus"] for values in map(spec.configuration, range(20))}) == 20


def test_a_grid_goes_through_its_product_the_last_path_of_the_alphabet_fastest() -> None:
    space = {"epochs": [4, 2], "batch_size": [8, 16, 32], "precision": ["fp32", "bf16"]}
    spec = search(listed(space), algorithm={"type": "grid"})
    found = [tuple(spec.configuration(n).values()) for n in range(spec.configurations)]
    expected = [
        (epochs, batch, precision)
        for batch in (8, 16, 32)
        for epochs in (4, 2)
        for precision in ("fp32", "bf16")
    ]
    assert found == expected


def test_each_draw_meets_every_combination_of_the_grids() -> None:
    grids = {
        "epochs": {"type": "grid", "values": [2, 3, 5]},
        "precision": {"type": "grid", "values": ["fp32", "bf16"]},
    }
    spec = search(grids | {"loss.m_minus": between("uniform", 0.05, 0.2)}, trials=4)
    assert spec.configurations == 24
    found = [spec.configuration(number) for number in range(24)]
    for turn in range(4):
        together = found[6 * turn : 6 * turn + 6]
        assert len({values["loss.m_minus"] for values in together}) == 1
        assert {(values["epochs"], values["precision"]) for values in together} == {
            (epochs, precision) for epochs in (2, 3, 5) for precision in ("fp32", "bf16")
        }
    assert len({values["loss.m_minus"] for values in found}) == 4


@pytest.mark.parametrize("number", [-1, 3])
def test_a_configuration_that_is_not_there_is_an_error(number: int) -> None:
    with pytest.raises(IndexError, match="expected 0 to 2"):
        search(trials=3).configuration(number)


# ------------------------------------------------------------------------------- speed and schema


WIDE = {
    ITERATIONS: {"type": "choice", "values": [1, 2, 3, 5]},
    "model.class_dim": between("randint", 8, 16),
    "model.conv_channels": between("quniform", 32, 256, q=32),
    "loss.reconstruction_weight": between("loguniform", 1e-5, 1e-2),
    "loss.m_minus": between("uniform", 0.05, 0.2),
    "loss.m_plus": between("uniform", 0.8, 0.95),
    "loss.lambda": between("uniform", 0.3, 0.8),
    RATE: between("loguniform", 1e-4, 1e-2),
    "batch_size": {"type": "choice", "values": [32, 64, 128]},
    "epochs": between("lograndint", 2, 20),
}


@pytest.mark.parametrize("algorithm", ["random", "tpe"])
def test_ten_dimensions_are_validated_quickly(algorithm: str) -> None:
    """About 0.05 s; the bound leaves room for a machine that is busy."""
    document = {"base": BASE, "space": WIDE, "trials": 1000, "algorithm": {"type": algorithm}}
    SearchSpec.model_validate_json(json.dumps(document))
    started = time.process_time()
    SearchSpec.model_validate_json(json.dumps(document))
    assert time.process_time() - started < 0.3


def test_a_trusted_document_is_not_tried_again() -> None:
    document = {"base": BASE, "space": listed({ITERATIONS: [1, 20]})}
    spec = SearchSpec.model_validate_json(json.dumps(document), context=TRUSTED)
    assert spec.configurations == 10
    with pytest.raises(ValidationError):
        SearchSpec.model_validate_json(json.dumps(document))


def test_a_queued_search_that_draws_too_often_is_still_read() -> None:
    document = {"base": BASE, "space": listed({ITERATIONS: [1, 3]}), "trials": 12}
    spec = SearchSpec.model_validate_json(json.dumps(document), context=TRUSTED)
    assert spec.configurations == 12


def test_the_schema_says_what_a_search_is() -> None:
    schema = SearchSpec.model_json_schema()
    kinds = schema["$defs"]
    assert "Fields of the training" in schema["properties"]["space"]["description"]
    assert "uniform" in kinds["LogUniform"]["description"]
    assert kinds["QUniform"]["properties"]["q"]["description"].startswith("Distance")
    assert kinds["LogUniform"]["properties"]["low"]["exclusiveMinimum"] == 0
    undescribed = {
        name
        for name, field in schema["properties"].items()
        if "description" not in field and "default" not in field
    }
    assert undescribed == set()
    assert all("description" in kinds[kind.__name__] for kind in (LogUniform, Grid, AshaConfig))


def test_a_wrong_path_is_told_before_too_many_trials() -> None:
    space = {"model.ruting": {"type": "choice", "values": [1]}}
    with pytest.raises(ValidationError) as refused:
        search(space, trials=5)
    assert refused.value.errors()[0]["loc"][:2] == ("space", "model.ruting")
