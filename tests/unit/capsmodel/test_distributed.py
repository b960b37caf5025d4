"""Several ranks train as one process does: real processes that meet over gloo.

The ranks sum the same numbers in another order, in float32. Each sum so differs by about 1e-7 of
itself; over these short trainings losses and gradients were seen to differ by up to 3e-7.
"""

import signal
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import nn

from capsmodel import evaluation
from capsmodel.capsnet import CapsNet
from capsmodel.config import CnnConfig, Mnist5kConfig, MultiMnistConfig, OptimizerConfig
from capsmodel.distributed import RankFailedError, RanksDifferError, gradient_bytes
from support.nets import TINY_NET
from support.rank_work import (
    Actor,
    Pictures,
    Story,
    die,
    diverge,
    evaluate_by_sevens,
    fill_the_disk,
    fit_from_different_steps,
    global_generator,
    gradient_of,
    look_seldom,
    make_config,
    rank_and_size,
    rank_in_a_buffer,
    save,
    spoil,
    steps_of_a_net_with_a_spare_weight,
    stop,
    stop_when_validating,
    train,
    watch_dropout,
)
from support.ranks import Told, run_ranks

LOSSES = ("total_loss", "classification_loss", "reconstruction_loss")
PICTURES = Pictures()


class Bounds(NamedTuple):
    """How far two trainings may be apart."""

    losses: float
    """Relative."""
    gradients: float
    """Relative."""
    flips: int
    """Images that may be recognised in one of them alone."""


FP32 = Bounds(losses=3e-6, gradients=3e-6, flips=0)
"""Ten times what was seen."""
BF16 = Bounds(losses=1e-3, gradients=0.05, flips=3)
"""A difference of 1e-7 may round to another bf16, which has steps of up to 8e-3."""


def make_cnn(dropout: float) -> CnnConfig:
    return CnnConfig(channels=(3, 4), kernels=(5, 3), pool=3, hidden=(16,), dropout=dropout)


@pytest.fixture
def on_ranks(tmp_path: Path) -> Callable[..., list[Told]]:
    """Runs work on two ranks, or as many as said; tells what each returned or raised."""
    meetings = iter(range(100))

    def run(work: Callable[..., Any], *arguments: Any, size: int = 2) -> list[Told]:
        return run_ranks(work, size, tmp_path / f"meeting-{next(meetings)}", *arguments)

    return run


@pytest.fixture
def train_on_ranks(on_ranks: Callable[..., list[Told]]) -> Callable[..., list[Story]]:
    """Trains on two ranks; fails if one of them does."""

    def run(*arguments: Any, size: int = 2) -> list[Story]:
        return values(on_ranks(train, *arguments, size=size))

    return run


def values(told: list[Told]) -> list[Any]:
    for answer in told:
        if answer.error is not None:
            raise answer.error
    return [answer.value for answer in told]


def assert_close(found: Story, expected: Story, bounds: Bounds = FP32) -> None:
    """Equal up to the order of sums; in fp32 accuracies exactly."""
    assert len(found.epochs) == len(expected.epochs) > 0
    evaluations = [part for epoch in found.epochs for part in epoch] + [found.test]
    others = [part for epoch in expected.epochs for part in epoch] + [expected.test]
    for one, other in zip(evaluations, others, strict=True):
        assert one.images == other.images
        for name in LOSSES:
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=bounds.losses)
        if bounds.flips:
            assert abs(one.accuracy - other.accuracy) * one.images < bounds.flips + 0.5
        else:
            assert one.accuracy == other.accuracy
            assert one.per_digit_accuracy == other.per_digit_accuracy
    assert len(found.steps) == len(expected.steps)
    for step, other_step in zip(found.steps, expected.steps, strict=True):
        assert step[:3] == pytest.approx(other_step[:3], rel=bounds.losses)
        assert step[-1] == pytest.approx(other_step[-1], rel=bounds.gradients)


def assert_same_bits(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equal weights, and equal memory of Adam."""
    assert found["step"] == expected["step"]
    for name, weight in expected["model"].items():
        assert torch.equal(found["model"][name], weight), name
    for number, memory in expected["optimizer"]["state"].items():
        for name, value in memory.items():
            assert torch.equal(found["optimizer"]["state"][number][name], value), name


CASES = {
    "unshifted": make_config(dataset=Mnist5kConfig(validation_fraction=0.2, max_shift=0)),
    "shifted": make_config(),
    "odd batches, last of 3": make_config(batch_size=11),
    "last batch of one image": make_config(batch_size=79, epochs=4),
    "overlaid": make_config(dataset=MultiMnistConfig(validation_fraction=0.2)),
    "cnn": make_config(model=make_cnn(dropout=0)),
    "clipped, deterministic": make_config(
        optimizer=OptimizerConfig(learning_rate=3e-3, max_gradient_norm=1e-3), deterministic=True
    ),
    "bf16": make_config(precision="bf16"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.slow
def test_two_ranks_train_as_one_process_does(
    train_on_ranks: Callable[..., list[Story]], name: str
) -> None:
    config = CASES[name]
    pictures = Pictures(overlaid=config.dataset.type == "multimnist")
    first, second = train_on_ranks(config, pictures)
    assert_close(first, train(config, pictures), BF16 if name == "bf16" else FP32)
    assert first.steps == second.steps
    assert first.epochs == second.epochs
    assert_same_bits(second.state, first.state)


@pytest.mark.slow
def test_three_ranks_train_as_one_process_does(train_on_ranks: Callable[..., list[Story]]) -> None:
    """Shares of 27, 26 and 26 images, then of 1, 0 and 0."""
    config = make_config(batch_size=79)
    first, *others = train_on_ranks(config, PICTURES, size=3)
    assert_close(first, train(config, PICTURES))
    for other in others:
        assert_same_bits(other.state, first.state)


@pytest.mark.slow
@pytest.mark.parametrize(("images", "size"), [(5, 2), (1, 2), (8, 3)])
def test_the_gradient_is_the_mean_over_all_images(
    on_ranks: Callable[..., list[Told]], images: int, size: int
) -> None:
    expected = gradient_of(images)
    for found in values(on_ranks(gradient_of, images, size=size)):
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-15)


def test_a_weight_that_is_not_used_is_left_alone(on_ranks: Callable[..., list[Told]]) -> None:
    expected = steps_of_a_net_with_a_spare_weight()
    for found in values(on_ranks(steps_of_a_net_with_a_spare_weight)):
        for step, other in zip(found, expected, strict=True):
            assert step.pop("spare") is other["spare"] is None
            for name, gradient in step.items():
                torch.testing.assert_close(gradient, other[name], rtol=1e-4, atol=1e-7)


def test_running_means_are_those_of_the_first_rank(on_ranks: Callable[..., list[Told]]) -> None:
    assert values(on_ranks(rank_in_a_buffer)) == [5, 5]


@pytest.mark.parametrize("images", [30, 29])  # 29: the second rank's third batch is empty
def test_evaluation_is_divided(
    on_ranks: Callable[..., list[Told]], monkeypatch: pytest.MonkeyPatch, images: int
) -> None:
    monkeypatch.setattr(evaluation, "BATCH_SIZE", 250)  # set back afterwards
    expected, _ = evaluate_by_sevens(images)
    (first, mine), (second, other) = values(on_ranks(evaluate_by_sevens, images))
    assert first == second
    assert (mine, other) == ((images + 1) // 2, images // 2)
    assert first.images == images
    assert first.accuracy == expected.accuracy
    assert first.total_loss == pytest.approx(expected.total_loss, rel=FP32.losses)


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 3, 7])  # 7 ends an epoch that is not yet evaluated
def test_one_rank_stops_all_after_the_same_step(
    train_on_ranks: Callable[..., list[Story]], step: int
) -> None:
    actors = [Actor(stop, step, rank=1)]
    for story in train_on_ranks(make_config(), PICTURES, actors):
        outcome = story.outcome
        assert (outcome.stopped, outcome.epoch, outcome.step) == ("requested", 0, step)


def test_after_a_stop_all_go_on(train_on_ranks: Callable[..., list[Story]]) -> None:
    actors = [Actor(stop, 3, rank=1), Actor(stop, 9, rank=0)]
    whole, _ = train_on_ranks(make_config(), PICTURES)
    for story in train_on_ranks(make_config(), PICTURES, actors, None, 3):
        assert story.outcome.stopped == "completed"
        assert_same_bits(story.state, whole.state)


def test_one_rank_interrupts_the_evaluation_of_all(
    train_on_ranks: Callable[..., list[Story]],
) -> None:
    actors = [Actor(stop_when_validating, 0, rank=1)]
    for story in train_on_ranks(make_config(), PICTURES, actors):
        outcome = story.outcome
        assert (outcome.stopped, outcome.epoch, outcome.step) == ("requested", 0, 7)


def test_all_diverge_where_one_does(
    on_ranks: Callable[..., list[Told]], train_on_ranks: Callable[..., list[Story]]
) -> None:
    first, second = values(on_ranks(diverge, Actor(spoil, 3, rank=1)))
    expected = ("classification loss", 4, "the output of primary_caps", 4)
    assert first[:4] == second[:4] == expected
    good, _ = train_on_ranks(make_config(), PICTURES, [Actor(stop, 3)])
    model = CapsNet(TINY_NET)
    model.load_state_dict(good.state["model"])
    last_good = nn.utils.parameters_to_vector(model.parameters()).detach()
    assert torch.equal(first[4], last_good)
    assert torch.equal(second[4], last_good)


def test_all_hear_of_a_divergence_that_one_finds(on_ranks: Callable[..., list[Told]]) -> None:
    """Where the guard is asked seldom, it may be found when a rank alone saves."""
    actors = [Actor(look_seldom, 0), Actor(spoil, 3, rank=1), Actor(save, 5, rank=0)]
    first, second = values(on_ranks(diverge, *actors))
    assert first[:2] == second[:2] == ("classification loss", 4)
    assert first[3] == second[3] == 5
    assert second[2] == "the output of primary_caps"


@pytest.mark.parametrize("step", [0, 2, 21])  # 21 is the last
def test_a_callback_that_fails_on_one_rank_ends_all(
    on_ranks: Callable[..., list[Told]], step: int
) -> None:
    first, second = on_ranks(train, make_config(), PICTURES, [Actor(fill_the_disk, step, rank=0)])
    assert isinstance(first.error, OSError)
    assert isinstance(second.error, RankFailedError)


def test_no_rank_waits_for_one_that_was_killed(on_ranks: Callable[..., list[Told]]) -> None:
    begun = time.monotonic()
    first, second = on_ranks(train, make_config(), PICTURES, [Actor(die, 3, rank=1)])
    assert second.exitcode == -signal.SIGKILL
    assert isinstance(first.error, RuntimeError)
    assert time.monotonic() - begun < 20


def test_a_state_goes_on_with_any_number_of_ranks(
    train_on_ranks: Callable[..., list[Story]],
) -> None:
    config = make_config(dataset=MultiMnistConfig(validation_fraction=0.2))
    pictures = Pictures(overlaid=True)
    alone = train(config, pictures, [Actor(stop, 5)])
    together, _ = train_on_ranks(config, pictures, [Actor(stop, 12)], alone.state)
    assert together.outcome.step == 12
    rest = train(config, pictures, [], together.state)
    whole = train(config, pictures)
    rest.steps = [*alone.steps, *together.steps, *rest.steps]
    rest.epochs = [*together.epochs, *rest.epochs]
    assert_close(rest, whole)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "step"), [(2, 7), (3, 10)])
def test_with_as_many_ranks_as_before_the_bits_are_the_same(
    train_on_ranks: Callable[..., list[Story]], size: int, step: int
) -> None:
    """With dropout, too, though a state has the generator of the first rank alone."""
    config = make_config(model=make_cnn(dropout=0.5))
    whole, *_ = train_on_ranks(config, PICTURES, size=size)
    part, *_ = train_on_ranks(config, PICTURES, [Actor(stop, step)], size=size)
    rest, *_ = train_on_ranks(config, PICTURES, [], part.state, size=size)
    assert [*part.steps, *rest.steps] == whole.steps
    assert_same_bits(rest.state, whole.state)


def test_each_rank_drops_other_units(train_on_ranks: Callable[..., list[Story]]) -> None:
    config = make_config(model=make_cnn(dropout=0.5), epochs=1)
    actors = [Actor(watch_dropout, 0), Actor(global_generator, 0)]
    first, second = train_on_ranks(config, PICTURES, actors)
    assert torch.equal(
        first.notes["global_generator"], train(config, PICTURES, actors).notes["global_generator"]
    )
    mine, others = first.notes["watch_dropout"], second.notes["watch_dropout"]
    assert len(mine) == len(others) == 7
    for one, other in [*zip(mine, others, strict=True), *pairwise(others[:6])]:
        assert units_dropped_in_one_alone(one, other) >= 5


def units_dropped_in_one_alone(
    one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]
) -> int:
    """Of those units that had a value before the dropout in both calls."""
    had_value = (one[0] != 0) & (other[0] != 0)
    return int(((one[1] == 0) != (other[1] == 0))[had_value].sum())


def test_ranks_that_differ_are_told_apart(on_ranks: Callable[..., list[Told]]) -> None:
    for told in on_ranks(fit_from_different_steps):
        assert isinstance(told.error, RanksDifferError)
        assert "the step is 0 on rank 0 and 7 on rank 1" in str(told.error)


def test_the_ranks_are_those_of_the_process_group(on_ranks: Callable[..., list[Told]]) -> None:
    assert not dist.is_initialized()
    assert rank_and_size() == (0, 1)
    assert values(on_ranks(rank_and_size)) == [(0, 2), (1, 2)]


def test_bytes_of_the_papers_gradient() -> None:
    net = CapsNet()
    assert gradient_bytes(net) == 4 * 8_215_568
    net.decoder.requires_grad_(False)
    assert gradient_bytes(net) == 4 * (8_215_568 - 1_411_344)
