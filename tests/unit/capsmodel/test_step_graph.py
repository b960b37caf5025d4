"""Recorded steps, without a GPU: a tape stands for the CUDA graph.

Like one, the tape does nothing while it records, and afterwards does the same operations on the
same tensors with the same numbers. So what a recorded step must not keep shows here too: the number
of a step, a learning rate, a tensor that was replaced.
"""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from capsmodel import step_graph, training
from capsmodel.batch import Batch
from capsmodel.callbacks import Callback
from capsmodel.channels_last import follow_weights, put_channels_last
from capsmodel.config import (
    CosineScheduleConfig,
    MultiMnistConfig,
    OptimizerConfig,
    TrainingConfig,
)
from capsmodel.datasets import Dataset
from capsmodel.divergence import DivergedError, DivergenceGuard
from capsmodel.kernels import force_kernels
from capsmodel.losses import LossTerms
from capsmodel.metrics import StepMetrics
from capsmodel.step_graph import VARIABLE, WARM_UP, StepGraph, graphs_wanted
from capsmodel.step_scalars import StepScalars
from capsmodel.training import Trainer
from support.killable import overlapping_digits


class Tape(TorchDispatchMode):
    """What a CUDA graph is, made of PyTorch's operations on a CPU."""

    made: ClassVar[list["Tape"]] = []

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        self.own: set[int] = set()
        self.replays = 0
        Tape.made.append(self)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a value was asked for while a step was recorded")
        kwargs = kwargs or {}
        for given in tensors((args, kwargs)):
            place = given.untyped_storage().data_ptr()
            if place not in self.own and place not in self.before:
                self.before[place] = given, given.clone()
        made = func(*args, **kwargs)
        self.own |= {t.untyped_storage().data_ptr() for t in tensors(made)} - self.before.keys()
        self.calls.append((func, args, kwargs, made))
        return made

    def reset(self) -> None:
        self.calls.clear()

    @torch.no_grad()
    def undo(self) -> None:
        """What was recorded was not done."""
        for given, value in self.before.values():
            given.copy_(value)

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, made in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tensors(made), tensors(again), strict=True):
                if old is not new:
                    old.copy_(new)


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


@contextmanager
def recorded_by(tape: Tape, **settings: Any) -> Iterator[None]:
    try:
        with tape:
            yield
    finally:
        tape.undo()


def one_hot(target: Tensor, classes: int) -> Tensor:
    """As on a GPU, where PyTorch's does not look at the values."""
    zeros = torch.zeros(*target.shape, classes, dtype=torch.int64)
    return zeros.scatter(-1, target.unsqueeze(-1), 1)


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tape]]:
    """All tapes made; `torch.cuda`, as far as steps are recorded by it, is one that makes tapes."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    plenty = 1 << 40
    fakes = {
        "CUDAGraph": Tape,
        "graph": recorded_by,
        "Stream": lambda device: stream,
        "current_stream": lambda device: stream,
        "stream": lambda stream: nullcontext(),
        "device": lambda device: nullcontext(),
        "current_device": lambda: 0,
        "graph_pool_handle": lambda: (0, 1),
        "default_generators": [torch.Generator()],
        "mem_get_info": lambda device: (plenty, plenty),
        "get_per_process_memory_fraction": lambda device: 1.0,
        "memory_reserved": lambda device: 0,
        "max_memory_allocated": lambda device: 1 << 30,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(nn.functional, "one_hot", one_hot)
    monkeypatch.setattr(step_graph, "_broken", [])
    Tape.made = []
    with force_kernels("torch"):  # the tape knows PyTorch's own operations
        yield Tape.made


def as_on_a_gpu(trainer: Trainer, graph: bool = True) -> Trainer:
    """Numbers in tensors, and steps recorded."""
    trainer._scalars = StepScalars(trainer.device)
    if graph:
        trainer._graph = StepGraph(trainer.optimizer, trainer.device)
    return trainer


@pytest.fixture
def pair(
    tiny_config: Callable[..., TrainingConfig], tiny_dataset: Dataset
) -> Callable[..., tuple[Trainer, Trainer]]:
    """Two trainings of the same settings, of which the second records its steps."""

    def make(**changes: Any) -> tuple[Trainer, Trainer]:
        data = changes.pop("data", tiny_dataset)
        config = tiny_config(**changes)
        trainers = [Trainer(config, data, device="cpu") for _ in range(2)]
        return as_on_a_gpu(trainers[0], graph=False), as_on_a_gpu(trainers[1])

    return make


def assert_same(one: Any, other: Any) -> None:
    """All of two states, to the bit."""
    ours, theirs = tree_flatten(one)[0], tree_flatten(other)[0]
    assert len(ours) == len(theirs)
    for mine, yours in zip(ours, theirs, strict=True):
        same = torch.equal(mine, yours) if isinstance(mine, Tensor) else mine == yours
        assert same


CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped": {"optimizer": OptimizerConfig(learning_rate=3e-3, max_gradient_norm=0.05)},
    "schedule": {"schedule": CosineScheduleConfig(warmup_steps=4)},
    "two digits": {
        "data": overlapping_digits(),
        "dataset": MultiMnistConfig(validation_fraction=0.2),
        "batch_size": 5,
    },
}


@pytest.mark.parametrize("name", CHANGES)
def test_recorded_steps_are_the_steps(
    tapes: list[Tape], pair: Callable[..., tuple[Trainer, Trainer]], name: str
) -> None:
    plain, recorded = pair(**CHANGES[name])
    metrics: list[list[StepMetrics]] = [[], []]
    for trainer, seen in zip((plain, recorded), metrics, strict=True):
        trainer.callbacks.append(Listen(seen))
        trainer.fit()
    assert_same(plain.state_dict(), recorded.state_dict())
    assert len(tapes) == 1
    assert tapes[0].replays > len(metrics[0]) // 2
    for ours, theirs in zip(*metrics, strict=True):  # read late: each step's own
        assert torch.equal(ours.measures, theirs.measures)
        assert ours.gradient_norm == theirs.gradient_norm


class Listen(Callback):
    def __init__(self, seen: list[StepMetrics]) -> None:
        self.seen = seen

    def on_step(self, trainer: Trainer, metrics: StepMetrics) -> None:
        self.seen.append(metrics)


def train(trainer: Trainer, images: int, steps: int) -> None:
    batch = trainer.examples("train", images).as_pixels()
    for _ in range(steps):
        trainer.train_on(batch)


def test_gradients_are_those_of_the_last_step(
    tapes: list[Tape], pair: Callable[..., tuple[Trainer, Trainer]]
) -> None:
    """Recorded or not: a batch of another size leaves the recorded gradients aside."""
    plain, recorded = pair()
    for images, steps in ((12, WARM_UP + 2), (8, 1), (12, 1)):
        for trainer in (plain, recorded):
            train(trainer, images, steps)
        for ours, theirs in zip(plain.model.parameters(), recorded.model.parameters(), strict=True):
            assert torch.equal(ours.grad, theirs.grad)
    assert [tape.replays for tape in tapes] == [2]


def test_a_loaded_state_is_recorded_anew(
    tapes: list[Tape], pair: Callable[..., tuple[Trainer, Trainer]]
) -> None:
    plain, recorded = pair()
    train(plain, 12, 2)
    early = plain.state_dict()
    train(recorded, 12, WARM_UP + 3)
    for trainer in (plain, recorded):
        trainer.load_state_dict(early)
        train(trainer, 12, WARM_UP + 2)
    assert_same(plain.state_dict(), recorded.state_dict())
    assert [tape.replays for tape in tapes] == [2, 2]


def test_states_hold_plain_settings(
    tapes: list[Tape], pair: Callable[..., tuple[Trainer, Trainer]]
) -> None:
    """Those that states always held, so that any release and device goes on from them."""
    _, recorded = pair()
    train(recorded, 12, WARM_UP + 2)
    (group,) = recorded.state_dict()["optimizer"]["param_groups"]
    assert group["lr"] == recorded.config.optimizer.learning_rate
    assert type(group["lr"]) is float
    assert group["capturable"] is False


def test_sizes_that_never_come_in_a_row_are_not_recorded(
    tapes: list[Tape], pair: Callable[..., tuple[Trainer, Trainer]]
) -> None:
    _, trainer = pair()
    for _ in range(3):
        train(trainer, 12, WARM_UP)
        train(trainer, 8, 1)
    assert not tapes


def test_a_step_that_cannot_be_recorded_is_done_all_the_same(
    tapes: list[Tape],
    pair: Callable[..., tuple[Trainer, Trainer]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log says why, once; what failed halfway leaves no trace."""
    plain, recorded = pair()
    for trainer in (plain, recorded):
        trainer.model.class_caps.register_forward_hook(lambda *call: call[2].sum().item() and None)
    with caplog.at_level(logging.WARNING):
        for trainer in (plain, recorded):
            train(trainer, 12, WARM_UP + 4)
    (told,) = caplog.messages
    assert "not recorded as a CUDA graph" in told
    assert "RuntimeError: a value was asked for" in told
    assert len(tapes) == 1
    assert_same(plain.state_dict(), recorded.state_dict())


def test_after_a_failure_nothing_is_recorded_in_this_process(
    tapes: list[Tape], pair: Callable[..., tuple[Trainer, Trainer]]
) -> None:
    _, earlier = pair()
    train(earlier, 12, WARM_UP + 2)
    _, first = pair()
    first.model.class_caps.register_forward_hook(lambda *call: call[2].sum().item() and None)
    train(first, 12, WARM_UP + 2)
    _, second = pair()
    for trainer in (earlier, second):
        train(trainer, 12, WARM_UP + 2)
    assert [tape.replays for tape in tapes] == [1, 0]


def test_a_replay_that_fails_is_done_plainly(
    tapes: list[Tape],
    pair: Callable[..., tuple[Trainer, Trainer]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain, recorded = pair()
    train(plain, 12, WARM_UP + 5)
    train(recorded, 12, WARM_UP + 2)

    def fail() -> None:
        raise RuntimeError("launch failed")

    monkeypatch.setattr(tapes[0], "replay", fail)
    train(recorded, 12, 3)
    assert ["launch failed" in message for message in caplog.messages] == [True]
    assert_same(plain.state_dict(), recorded.state_dict())


@pytest.mark.parametrize("short", ["free", "fraction"])
def test_where_memory_is_short_nothing_is_recorded(
    tapes: list[Tape],
    pair: Callable[..., tuple[Trainer, Trainer]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    short: str,
) -> None:
    total = 4 << 30
    free, fraction = (1 << 30, 1.0) if short == "free" else (total, 0.25)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, total))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: fraction)
    _, trainer = pair()
    train(trainer, 12, WARM_UP + 2)
    assert not tapes
    assert "may need 2048 MiB of the GPU's memory, and there are 1024" in caplog.text


def test_a_recorded_divergence_keeps_the_last_good_weights(
    tapes: list[Tape],
    pair: Callable[..., tuple[Trainer, Trainer]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "GUARD_STEPS", 4)
    _, trainer = pair()
    trainer._glances = True
    train(trainer, 12, WARM_UP + 2)
    bad = trainer.examples("train", 12).as_pixels()
    bad.images[3] = float("nan")
    good = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(DivergedError) as error:
        train_with_one_bad_batch(trainer, bad)
    assert (error.value.term, error.value.step) == ("classification loss", WARM_UP + 3)
    assert error.value.culprit == "the images"
    assert_same(good, dict(trainer.model.state_dict()))


def train_with_one_bad_batch(trainer: Trainer, bad: Batch) -> None:
    trainer.train_on(bad)
    train(trainer, 12, 8)


@pytest.mark.parametrize("steps", range(7))
def test_who_looks_for_certain_sees_the_latest_step(
    tiny_config: Callable[..., TrainingConfig], tiny_dataset: Dataset, steps: int
) -> None:
    """A state, and the end of fit: late glances hide nothing from them."""
    trainer = Trainer(tiny_config(), tiny_dataset, device="cpu")
    trainer._glances = True
    trainer.callbacks.append(StopAndSpoil(steps))
    with pytest.raises(DivergedError, match=f"at step {steps + 1}"):
        trainer.fit()
    with pytest.raises(DivergedError):
        trainer.state_dict()


class StopAndSpoil(Callback):
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_start(self, trainer: Trainer) -> None:
        if not self.steps:
            self.spoil(trainer)

    def on_step(self, trainer: Trainer, metrics: StepMetrics) -> None:
        if metrics.step == self.steps:
            self.spoil(trainer)
        if metrics.step == self.steps + 1:
            trainer.request_stop()

    def spoil(self, trainer: Trainer) -> None:
        with torch.no_grad():
            trainer.model.class_caps.weight.fill_(float("nan"))


def watch(guard: DivergenceGuard, loss: float, step: int) -> None:
    value = torch.tensor(loss)
    guard.watch(LossTerms(value, value, value), torch.tensor(1.0), torch.tensor(step))


@pytest.mark.parametrize("limit", ["steps", "bytes"])
def test_batches_are_kept_for_two_glances(
    tiny_config: Callable[..., TrainingConfig],
    tiny_dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
) -> None:
    """A glance hears of what was before the last one: till then a culprit is found in them."""
    trainer = Trainer(tiny_config(), tiny_dataset, device="cpu")
    trainer._glances = True
    batch = trainer.examples("train", 12).as_pixels()
    if limit == "steps":
        monkeypatch.setattr(training, "GUARD_STEPS", 3)
    else:
        monkeypatch.setattr(
            training, "GUARD_BYTES", 6 * (batch.images.nbytes + batch.labels.nbytes)
        )
    kept = []
    for _ in range(9):
        trainer.train_on(batch)
        kept.append([step for step, _ in trainer._unchecked])
    assert kept[2:6] == [[1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5], [4, 5, 6]]
    assert kept[8] == [7, 8, 9]


def test_a_glance_tells_what_was_at_the_last_one() -> None:
    guard, nan = DivergenceGuard(torch.device("cpu")), float("nan")
    watch(guard, 1.0, 1)
    assert guard.glance() is None
    watch(guard, nan, 2)
    assert guard.glance() is None
    watch(guard, nan, 3)
    assert guard.glance() == ("classification loss", 2)
    assert guard.find() == ("classification loss", 2)
    guard.reset()
    assert guard.find() is None
    assert guard.glance() is None
    assert guard.tripped == 0


@pytest.mark.parametrize(
    ("choice", "wanted"), [(None, True), ("", True), ("1", True), ("0", False)]
)
def test_graphs_can_be_forbidden(
    monkeypatch: pytest.MonkeyPatch, choice: str | None, wanted: bool
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if choice is not None:
        monkeypatch.setenv(VARIABLE, choice)
    assert graphs_wanted() is wanted


def test_a_mistyped_choice_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    with pytest.raises(ValueError, match=r"CAPS_CUDA_GRAPH is 'off', expected 1 .* or 0"):
        graphs_wanted()


def test_a_cpu_records_nothing(
    tiny_config: Callable[..., TrainingConfig], tiny_dataset: Dataset
) -> None:
    trainer = Trainer(tiny_config(), tiny_dataset, device="cpu")
    assert trainer._graph is None
    assert trainer._scalars is None


def with_channels_last(trainer: Trainer) -> Trainer:
    put_channels_last(trainer.model)
    follow_weights(trainer.optimizer)
    return trainer


def test_states_do_not_tell_how_weights_lie(
    tiny_config: Callable[..., TrainingConfig], tiny_dataset: Dataset
) -> None:
    """They go to and fro between a training with channels last and one without."""
    trainers = [Trainer(tiny_config(), tiny_dataset, device="cpu") for _ in range(2)]
    usual, other = trainers[0], with_channels_last(trainers[1])
    assert other.model.primary_caps.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert not other.model.primary_caps.conv.weight.is_contiguous()
    assert other.model.class_caps.weight.is_contiguous()
    train(usual, 12, 2)
    before = usual.state_dict()
    other.load_state_dict(before)
    for memory in other.optimizer.state.values():
        assert all(
            value.is_contiguous(memory_format=torch.channels_last)
            for value in memory.values()
            if value.dim() == 4 and value.shape[1:3] == (4, 5)
        )
    after = other.state_dict()
    assert_same(before, after)
    for ours, theirs in zip(tensors(before), tensors(after), strict=True):
        assert ours.stride() == theirs.stride()


def test_steps_with_channels_last_are_the_steps(
    tiny_config: Callable[..., TrainingConfig], tiny_dataset: Dataset
) -> None:
    """After a state was loaded too: Adam must not mix up where weights and memory lie."""
    trainers = [Trainer(tiny_config(), tiny_dataset, device="cpu") for _ in range(2)]
    usual, other = trainers[0], with_channels_last(trainers[1])
    with force_kernels("torch"):
        train(usual, 12, 2)
        other.load_state_dict(usual.state_dict())
        for trainer in trainers:
            train(trainer, 12, 3)
    for (name, ours), theirs in zip(
        usual.model.state_dict().items(), other.model.state_dict().values(), strict=True
    ):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6), name


def test_a_copied_model_gives_contiguous_states_too() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3))
    put_channels_last(model)
    for net in (model, copy.deepcopy(model)):
        assert all(value.is_contiguous() for value in net.state_dict().values())
        assert not net[0].weight.is_contiguous()


def test_one_channel_lies_like_any_contiguous_tensor() -> None:
    """`is_contiguous` does not look at an axis of one; others may."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3))
    put_channels_last(model)
    assert model[0].weight.stride() != (9, 9, 3, 1)
    assert model.state_dict()["0.weight"].stride() == (9, 9, 3, 1)
