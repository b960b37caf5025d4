"""What ranks do in the tests: no test module is imported on them, since pytest takes long to."""

import math
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from capsmodel import evaluation
from capsmodel.batch import Batch
from capsmodel.callbacks import Callback
from capsmodel.capsnet import CapsNet
from capsmodel.config import (
    CapsNetConfig,
    MarginLossConfig,
    Mnist5kConfig,
    OptimizerConfig,
    TrainingConfig,
)
from capsmodel.datasets import Dataset
from capsmodel.datasets.multimnist import Overlaid
from capsmodel.distributed import Objective, Ranks, averaged
from capsmodel.divergence import DivergedError
from capsmodel.losses import build_loss
from capsmodel.metrics import EpochMetrics, Evaluation, StepMetrics
from capsmodel.training import Trainer, TrainingOutcome
from support.nets import TINY_NET


@dataclass(frozen=True)
class Pictures:
    """A data set of random pictures."""

    train: int = 100
    """A multiple of 10."""
    test: int = 30
    overlaid: bool = False

    def dataset(self) -> Dataset:
        """The same wherever it is made."""
        generator = torch.Generator().manual_seed(1)
        shape = (self.train + self.test, 1, 28, 28)
        images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        labels = torch.arange(self.train + self.test) % 10
        # Each class has an edge of its own, so that there is something to learn.
        images[torch.arange(len(images)), 0, 2 * labels + 4] = 255
        pairs: dict[str, Any] = {}
        if self.overlaid:
            pairs = {"composition": Overlaid(4), "test_composition": Overlaid(4), "targets": 2}
        return Dataset(
            name="pictures",
            train_images=images[: self.train],
            train_labels=labels[: self.train],
            test_images=images[self.train :],
            test_labels=labels[self.train :],
            classes=10,
            **pairs,
        )


def make_config(**changes: Any) -> TrainingConfig:
    """Three epochs; 80 pictures to learn from, so the last batch of 12 holds 8."""
    settings = {
        "model": TINY_NET,
        "dataset": Mnist5kConfig(validation_fraction=0.2),
        "optimizer": OptimizerConfig(learning_rate=3e-3),
        "epochs": 3,
        "batch_size": 12,
        **changes,
    }
    return TrainingConfig(**settings)


@dataclass
class Story:
    """What a training told on one rank."""

    steps: list[list[float]] = field(default_factory=list)
    """Of each step the five measures, then the length of the gradient."""
    epochs: list[tuple[Evaluation, Evaluation | None]] = field(default_factory=list)
    """Of each epoch the means in training and in validation."""
    outcome: TrainingOutcome | None = None
    test: Evaluation | None = None
    state: dict[str, Any] = field(default_factory=dict)
    """At the end."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What a test's own callbacks wrote down."""


class Scribe(Callback):
    """Writes a story."""

    def __init__(self, story: Story) -> None:
        self.story = story

    def on_step(self, trainer: Trainer, metrics: StepMetrics) -> None:
        self.story.steps.append([*metrics.measures.tolist(), metrics.gradient_norm])

    def on_epoch(self, trainer: Trainer, metrics: EpochMetrics) -> None:
        self.story.epochs.append((metrics.train, metrics.validation))


class Actor(Callback):
    """Does something at a step on one rank, or on all; step 0 is the start."""

    def __init__(self, act: Callable[[Trainer], Any], step: int, rank: int | None = None) -> None:
        self.act = act
        self.step = step
        self.rank = rank
        self.note: Any = None

    def on_start(self, trainer: Trainer) -> None:
        if not trainer.step:  # not where a training goes on
            self._perhaps(trainer, 0)

    def on_step(self, trainer: Trainer, metrics: StepMetrics) -> None:
        self._perhaps(trainer, metrics.step)

    def _perhaps(self, trainer: Trainer, step: int) -> None:
        if step == self.step and self.rank in (None, trainer.ranks.rank):
            self.note = self.act(trainer)


def train(
    config: TrainingConfig,
    pictures: Pictures,
    actors: Sequence[Actor] = (),
    state: dict[str, Any] | None = None,
    fits: int = 1,
) -> Story:
    """Train on the CPU from a state or from the start, calling `fit` so many times; then test."""
    story = Story()
    callbacks = [Scribe(story), *actors]
    trainer = Trainer(config, pictures.dataset(), device="cpu", callbacks=callbacks)
    if state is not None:
        trainer.load_state_dict(state)
    for _ in range(fits):
        story.outcome = trainer.fit()
    story.test = trainer.evaluate("test")
    story.state = trainer.state_dict()
    story.notes = {actor.act.__name__: actor.note for actor in actors}
    return story


def stop(trainer: Trainer) -> None:
    trainer.request_stop()


def stop_when_validating(trainer: Trainer) -> None:
    validate = trainer._validate

    def and_stop() -> Evaluation | None:
        trainer.request_stop()
        trainer._validate = validate
        return validate()

    trainer._validate = and_stop


def spoil(trainer: Trainer) -> None:
    trainer.model.primary_caps.register_forward_hook(lambda *call: call[2] * math.inf)


def look_seldom(trainer: Trainer) -> None:
    """As on a GPU."""
    trainer._guard_is_due = lambda batch: False


def save(trainer: Trainer) -> None:
    trainer.state_dict()


def fill_the_disk(trainer: Trainer) -> None:
    raise OSError("no space left")


def die(trainer: Trainer) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def watch_dropout(trainer: Trainer) -> list[tuple[Tensor, Tensor]]:
    """Of each step: what went into the dropout, and what came out."""
    dropout = next(m for m in trainer.model.modules() if isinstance(m, nn.Dropout))
    seen: list[tuple[Tensor, Tensor]] = []

    def look(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if module.training:
            seen.append((inputs[0].detach().clone(), output.detach().clone()))

    dropout.register_forward_hook(look)
    return seen


def global_generator(trainer: Trainer) -> Tensor:
    return torch.get_rng_state()


def gradient_of(images: int) -> dict[str, Tensor]:
    """The gradient of a batch of so many images, in float64."""
    trainer = Trainer(make_config(), Pictures().dataset(), device="cpu")
    trainer.model.double()
    batch = trainer.examples("train", 12).as_pixels()
    trainer.train_on(Batch(batch.images[:images].double(), batch.labels[:images]))
    return {name: weight.grad for name, weight in trainer.model.named_parameters()}


class Spare(CapsNet):
    """Has a weight that takes no part in anything."""

    def __init__(self, config: CapsNetConfig) -> None:
        super().__init__(config)
        self.spare = nn.Parameter(torch.ones(3))
        self.register_buffer("mark", torch.zeros(()))


def steps_of_a_net_with_a_spare_weight() -> list[dict[str, Tensor | None]]:
    torch.manual_seed(0)
    model = Spare(TINY_NET)
    objective = Objective(model, build_loss(MarginLossConfig()), "fp32")
    batch = Batch(torch.linspace(0, 1, 4 * 784).view(4, 1, 28, 28), torch.arange(4))
    ranks = Ranks.current()
    net = objective if ranks.alone else averaged(objective, batch)
    found = []
    for _ in range(2):
        model.zero_grad()
        net(ranks.share(batch).batch)[0].total.backward()
        found.append({name: weight.grad for name, weight in model.named_parameters()})
    return found


def rank_in_a_buffer() -> float:
    model, ranks = Spare(TINY_NET), Ranks.current()
    model.mark.fill_(ranks.rank + 5)
    ranks.same_buffers(model)
    return float(model.mark)


def evaluate_by_sevens(images: int) -> tuple[Evaluation, int]:
    """The test's result, and how many images this rank looked at."""
    evaluation.BATCH_SIZE = 7
    trainer = Trainer(make_config(), Pictures(test=images).dataset(), device="cpu")
    seen = []
    trainer.model.conv.register_forward_hook(lambda *call: seen.append(len(call[2])))
    return trainer.evaluate("test"), sum(seen)


def diverge(*actors: Actor) -> tuple[str, int, str | None, int, Tensor]:
    """What a training tells that diverges, and the weights that it leaves."""
    trainer = Trainer(make_config(), Pictures().dataset(), device="cpu", callbacks=actors)
    try:
        trainer.fit()
    except DivergedError as error:
        weights = nn.utils.parameters_to_vector(trainer.model.parameters()).detach()
        return error.term, error.step, error.culprit, trainer.step, weights
    raise AssertionError("it did not diverge")


def fit_from_different_steps() -> None:
    """As if rank 1 alone went on from a state."""
    trainer = Trainer(make_config(), Pictures().dataset(), device="cpu")
    if trainer.ranks.rank == 1:
        trainer.step = 7
    trainer.fit()


def rank_and_size() -> tuple[int, int]:
    ranks = Ranks.current()
    return ranks.rank, ranks.size
