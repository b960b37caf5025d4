"""Search algorithms: random and grid follow the numbers, TPE learns, and none forgets."""

import math
from statistics import fmean
from typing import Any

import pytest

from support.search_books import RATE, make_spec
from workers.search.algorithms import Algorithm, GridSearch, RandomSearch
from workers.search.distributions import decoded, distributions, encoded
from workers.search.tpe import Tpe
from workers.search_specs import ALGORITHMS, SearchSpec
from workers.trials import Standing, Trial, TrialState, standings

ROUTING = "model.routing"
WIDE: dict[str, Any] = {
    RATE: {"type": "loguniform", "low": 1e-4, "high": 1e-1},
    "loss.reconstruction_weight": {"type": "quniform", "low": 0.0, "high": 0.9, "q": 0.1},
    "batch_size": {"type": "quniform", "low": 8, "high": 64, "q": 8},
    "model.class_dim": {"type": "randint", "low": 2, "high": 9},
    "model.conv_channels": {"type": "lograndint", "low": 1, "high": 64},
    "optimizer.beta1": {"type": "uniform", "low": 0.5, "high": 0.99},
    "optimizer.max_gradient_norm": {"type": "choice", "values": [None, 1.0, 5]},
    ROUTING: {
        "type": "choice",
        "values": [{"type": "dynamic", "iterations": 2}, {"type": "uniform"}],
    },
}
"""A dimension of each kind that TPE takes."""


def a_standing(
    configuration: int,
    values: dict[str, Any],
    score: float | None,
    state: TrialState = TrialState.SUCCEEDED,
) -> Standing:
    trial = Trial(
        number=configuration,
        configuration=configuration,
        seed=0,
        values=values,
        score=score,
        state=state,
        epoch=1,
    )
    return standings([trial], "max")[0]


def tpe_spec(space: dict[str, Any] | None = None, startup: int = 10, **changes: Any) -> SearchSpec:
    algorithm = {"type": "tpe", "startup_trials": startup}
    return make_spec(space=space or WIDE, algorithm=algorithm, **{"trials": 400, **changes})


def goodness(values: dict[str, Any]) -> float:
    """At most 0; best at a learning rate of 0.003, class_dim 6 and uniform routing."""
    rate = (math.log10(values[RATE]) - math.log10(0.003)) ** 2
    width = ((values["model.class_dim"] - 6) / 4) ** 2
    return -rate - width - (values[ROUTING]["type"] != "uniform")


def goodness_of_rate(values: dict[str, Any]) -> float:
    return -abs(math.log10(values[RATE]) + 2)


def search(algorithm: Algorithm, first: int, last: int) -> list[dict[str, Any]]:
    """Ask and tell in turn."""
    chosen = []
    for configuration in range(first, last):
        values = algorithm.ask(configuration)
        chosen.append(values)
        algorithm.tell(a_standing(configuration, values, goodness(values)))
    return chosen


@pytest.mark.parametrize("name", ["random", "grid"])
def test_what_is_drawn_is_what_the_preview_showed(name: str) -> None:
    grids = {
        "batch_size": {"type": "grid", "values": [16, 32]},
        "epochs": {"type": "grid", "values": [2, 3, 4]},
    }
    rate = {RATE: {"type": "loguniform", "low": 1e-4, "high": 1e-2}} if name == "random" else {}
    trials = 2 if name == "random" else None
    spec = make_spec(space=grids | rate, algorithm={"type": name}, trials=trials)
    implementation = ALGORITHMS.implementation(name)
    assert implementation is {"random": RandomSearch, "grid": GridSearch}[name]
    algorithm = implementation(spec)
    chosen = [algorithm.ask(number) for number in range(spec.configurations)]
    assert chosen == [spec.configuration(number) for number in range(spec.configurations)]
    pairs = {(values["batch_size"], values["epochs"]) for values in chosen}
    assert len(pairs) == 6
    assert implementation(spec).ask(5) == chosen[5], "its number alone decides"
    assert len({values.get(RATE) for values in chosen}) == (2 if name == "random" else 1)


# --------------------------------------------------------------------------- distributions


@pytest.mark.parametrize("path", WIDE)
def test_values_go_to_optuna_and_come_back(path: str) -> None:
    space = tpe_spec().space
    for corner in space[path].corners():
        there = encoded({path: space[path]}, {path: corner})
        distribution = distributions({path: space[path]})[path]
        assert distribution._contains(distribution.to_internal_repr(there[path]))
        back = decoded({path: space[path]}, there)[path]
        assert (back, type(back)) == (corner, type(corner))


def test_what_tpe_asks_for_are_the_spaces_own_values() -> None:
    spec = tpe_spec(startup=5)
    chosen = search(Tpe(spec), 0, 40)
    tenths = {spec.space["loss.reconstruction_weight"].nearest(n / 10) for n in range(10)}
    seen = {values["loss.reconstruction_weight"] for values in chosen}
    assert seen <= tenths
    assert len(seen) > 3
    for values in chosen:
        assert list(values) == list(spec.space)
        assert values["batch_size"] in range(8, 65, 8)
        assert type(values["batch_size"]) is int
        assert values[ROUTING] in spec.space[ROUTING].corners()
        assert values["optimizer.max_gradient_norm"] in (None, 1.0, 5)
        spec.variant(values)


# ------------------------------------------------------------------------------------- TPE


def test_tpe_comes_nearer_to_the_best_than_random_draws() -> None:
    space = {path: WIDE[path] for path in (RATE, "model.class_dim", ROUTING)}
    for seed in (1, 2, 3):
        base = {"seed": seed}
        learned = late_mean(Tpe(tpe_spec(space, base=base)))
        drawn = late_mean(RandomSearch(make_spec(space=space, trials=60, base=base)))
        assert learned > 0.6 * drawn, f"seed {seed}: {learned:.3f} against {drawn:.3f} at random"


def late_mean(algorithm: Algorithm) -> float:
    return fmean(map(goodness, search(algorithm, 0, 60)[-20:]))


def test_of_a_loss_tpe_seeks_the_smallest() -> None:
    space = {RATE: WIDE[RATE]}
    algorithm = Tpe(tpe_spec(space, metric="val/total_loss"))
    distances = []
    for configuration in range(50):
        values = algorithm.ask(configuration)
        distances.append(-goodness_of_rate(values))
        algorithm.tell(a_standing(configuration, values, distances[-1]))
    assert fmean(distances[-20:]) < 0.5, "at random it is 0.83"


@pytest.mark.parametrize("asked", [3, 25], ids=["at random", "estimated"])
def test_a_resumed_search_chooses_as_one_that_was_never_cut_off(asked: int) -> None:
    spec = tpe_spec()
    whole = Tpe(spec)
    chosen = search(whole, 0, asked)
    resumed = Tpe(spec)
    for configuration, values in enumerate(chosen):
        resumed.known(configuration, values)
        resumed.tell(a_standing(configuration, values, goodness(values)))
    for known, original in zip(told(resumed), told(whole), strict=True):
        assert known == pytest.approx(original)
    following = [whole.ask(asked), whole.ask(asked + 1)]
    for number, values in enumerate(following, start=asked):
        plain = pytest.approx(encoded(spec.space, values))
        assert encoded(spec.space, resumed.ask(number)) == plain
    assert following[0] != following[1]
    assert all(values not in chosen for values in following)


def told(algorithm: Tpe) -> list[dict[str, Any]]:
    return [{**trial.params, "score": trial.value} for trial in algorithm._study.trials]


def test_configurations_that_run_again_are_known_and_told_later() -> None:
    spec = tpe_spec(startup=2)
    chosen = search(Tpe(spec), 0, 4)
    algorithm = Tpe(spec)
    for configuration, values in enumerate(chosen):
        algorithm.known(configuration, values)
    new = algorithm.ask(4)
    assert new not in chosen
    for configuration, values in enumerate([*chosen, new]):
        algorithm.tell(a_standing(configuration, values, 0.1 * configuration))
    assert [trial.value for trial in algorithm._study.trials] == pytest.approx(
        [0, 0.1, 0.2, 0.3, 0.4]
    )


@pytest.mark.parametrize(
    ("score", "state", "expected"),
    [
        (0.5, TrialState.SUCCEEDED, ("COMPLETE", 0.5)),
        (0.5, TrialState.PRUNED, ("PRUNED", 0.5)),
        (None, TrialState.FAILED, ("FAIL", None)),
        (0.5, TrialState.FAILED, ("FAIL", None)),
    ],
)
def test_tpe_hears_how_it_went(
    score: float | None, state: TrialState, expected: tuple[str, float | None]
) -> None:
    algorithm = Tpe(tpe_spec())
    values = algorithm.ask(0)
    standing = a_standing(0, values, score, state)
    algorithm.tell(standing)
    algorithm.tell(standing)
    algorithm.tell(a_standing(7, values, 0.9))  # never asked for
    (trial,) = algorithm._study.trials
    value = trial.intermediate_values.get(1) if trial.state.name == "PRUNED" else trial.value
    assert (trial.state.name, value) == expected


def test_workers_that_ask_at_once_get_different_points() -> None:
    algorithm = Tpe(tpe_spec({RATE: WIDE[RATE]}, startup=3))
    for configuration in range(10):
        values = algorithm.ask(configuration)
        algorithm.tell(a_standing(configuration, values, -values[RATE]))
    rates = [algorithm.ask(number)[RATE] for number in range(10, 18)]
    assert len(set(rates)) == 8


def test_the_bases_seed_decides() -> None:
    def first(seed: int) -> dict[str, Any]:
        return Tpe(tpe_spec(base={"seed": seed})).ask(0)

    assert first(1) == first(1) != first(2)
