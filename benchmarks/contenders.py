"""The nets that are compared, behind one interface: ours, the textbook's, the same tuned."""

import itertools
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from benchmarks import textbook
from benchmarks.digits import load_digits
from benchmarks.stopwatch import PACES, Stopwatch
from benchmarks.torch_machine import peak_mib, torch_flags
from capsmodel import Trainer
from capsmodel.allocator import ALLOCATOR_ENVIRONMENT
from capsmodel.analysis.batches import evaluating
from capsmodel.callbacks import Callback
from capsmodel.config import MnistConfig, TrainingConfig
from capsmodel.metrics import EpochMetrics, StepMetrics
from capsmodel.precision import Precision, mixed_precision

Kind = Literal["ours", "plain", "tuned"]
Phase = Literal["inference", "training"]

PHASES: tuple[Phase, ...] = get_args(Phase)
INFERENCE_BATCHES = 8
"""Different batches that inference goes through by turns."""
MAX_EPOCHS = 10_000
"""More than any run of the benchmark gets through."""


@dataclass(frozen=True)
class Entry:
    """A contender: whose net, and in which precision."""

    kind: Kind
    precision: Precision

    def __str__(self) -> str:
        return f"{self.kind} {self.precision}"

    @property
    def allocator(self) -> Mapping[str, str]:
        """Ours has what a worker of the service has; nobody sets it who writes a textbook net."""
        return {} if self.kind == "plain" else ALLOCATOR_ENVIRONMENT


ENTRIES = (
    Entry("tuned", "fp32"),
    Entry("ours", "fp32"),
    Entry("plain", "fp32"),
    Entry("ours", "bf16"),
    Entry("tuned", "bf16"),
)
"""In the order of their turns: those that are compared follow on each other. The plain textbook
has no bf16: what is asked is how much faster one gets than with the net as one writes it down."""


class Contender(ABC):
    """A net in one precision, ready to train and to infer."""

    def __init__(self, device: str, batch_size: int, precision: Precision) -> None:
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.precision = precision
        self.dataset = load_digits()
        self.start_mib = peak_mib(self.device)
        self.watch = Stopwatch(self.device)
        count = INFERENCE_BATCHES * batch_size
        pixels = self.dataset.test_images[torch.arange(count) % len(self.dataset.test_images)]
        ready = torch.split(pixels.to(self.device).float() / 255, batch_size)
        self._ready = itertools.cycle(ready)

    def facts(self) -> dict[str, Any]:
        """Its data, the memory taken before there was a net, and torch's settings."""
        return {
            "data": self.dataset.name,
            "start_mib": self.start_mib,
            "torch_flags": torch_flags(),
        }

    def warm_up(self, phase: Phase) -> None:
        """Run a phase for the first time."""
        self._run(phase, PACES[self.device.type].warm_up)

    def turn(self, phase: Phase) -> float:
        """Run a phase for a turn; returns the seconds of a step (the median, if several)."""
        pace = PACES[self.device.type]
        return statistics.median(self._run(phase, pace.steps)[pace.uncounted :])

    def peak_mib(self) -> float:
        """The peak of memory so far."""
        return peak_mib(self.device)

    def _run(self, phase: Phase, steps: int) -> list[float]:
        if phase == "training":
            self.train(steps)
        else:
            for _ in range(steps):
                images = next(self._ready)
                self.watch.begin()
                self.infer(images)
                self.watch.end()
        return self.watch.seconds()

    @abstractmethod
    def train(self, steps: int) -> None:
        """So many training steps, noted by `watch`, with the making of their batches."""

    @abstractmethod
    def infer(self, images: Tensor) -> None:
        """Lengths and reconstructions of images `[B, C, H, W]` in [0, 1], without gradients."""


class Ours(Contender):
    """capsmodel's net, trained by its `Trainer`: with shifts, metrics, and watch for divergence."""

    def __init__(self, device: str, batch_size: int, precision: Precision) -> None:
        super().__init__(device, batch_size, precision)
        config = TrainingConfig(
            dataset=MnistConfig(validation_fraction=0),
            epochs=MAX_EPOCHS,
            batch_size=batch_size,
            precision=precision,
        )
        self._timer = StepTimer(self.watch)
        self.trainer = Trainer(config, self.dataset, device=self.device, callbacks=[self._timer])

    def train(self, steps: int) -> None:
        """Go on with `Trainer.fit`, which is asked to stop after so many."""
        self._timer.steps_left = steps
        self.trainer.fit()

    def infer(self, images: Tensor) -> None:
        """What `capsmodel.analysis.predict` computes, the images being in order."""
        model = self.trainer.model
        with evaluating(model), mixed_precision(self.device, self.precision):
            model.compute(images)

    def epoch_seconds(self) -> float:
        """A whole epoch of the training set, its end included."""
        clock = EpochClock()
        self.trainer.callbacks[:] = [clock]
        try:
            self.trainer.fit()
        finally:
            self.trainer.callbacks[:] = [self._timer]
        begun, ended = clock.epochs
        return ended - begun


class StepTimer(Callback):
    """Notes each of the `Trainer`'s steps; an epoch's end is nobody's."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch
        self.steps_left = 0

    def on_start(self, trainer: Trainer) -> None:
        """The first step begins, or the end of an epoch."""
        self.watch.begin()

    def on_step(self, trainer: Trainer, metrics: StepMetrics) -> None:
        """Note the step, and stop the training when there are enough."""
        self.watch.end()
        self.steps_left -= 1
        if self.steps_left <= 0:
            trainer.request_stop()
        self.watch.begin()

    def on_epoch(self, trainer: Trainer, metrics: EpochMetrics) -> None:
        """Begin anew, so that the time since the last step does not count."""
        self.watch.begin()


class EpochClock(Callback):
    """When epochs were over, by the clock; stops the training after two of them."""

    def __init__(self) -> None:
        self.epochs: list[float] = []

    def on_epoch(self, trainer: Trainer, metrics: EpochMetrics) -> None:
        """Note the epoch, whose measures were waited for."""
        self.epochs.append(time.perf_counter())
        if len(self.epochs) == 2:
            trainer.request_stop()


class Textbook(Contender):
    """The textbook's net; its batches are cut from bytes on the device, and nothing is measured."""

    def __init__(self, device: str, batch_size: int, precision: Precision, tuned: bool) -> None:
        super().__init__(device, batch_size, precision)
        torch.manual_seed(0)
        self.net = textbook.TextbookCapsNet().to(self.device)
        self.optimizer = textbook.make_optimizer(self.net, fused=tuned)
        self._images = self.dataset.train_images.to(self.device)
        self._labels = self.dataset.train_labels.to(self.device)
        self._batches = self._shuffled_batches()

    def train(self, steps: int) -> None:
        """One `textbook.train_step` after another."""
        self.net.train()
        bf16 = self.precision == "bf16"
        for _ in range(steps):
            self.watch.begin()
            images, labels = next(self._batches)
            textbook.train_step(self.net, self.optimizer, images, labels, bf16)
            self.watch.end()

    def infer(self, images: Tensor) -> None:
        """The forward pass alone."""
        self.net.eval()
        with torch.no_grad(), mixed_precision(self.device, self.precision):
            self.net(images)

    def _shuffled_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            order = torch.randperm(len(self._labels), device=self.device)
            for indices in torch.split(order, self.batch_size):
                yield self._images[indices].float() / 255, self._labels[indices]


def make_contender(entry: Entry, device: str, batch_size: int) -> Contender:
    """The contender of an entry."""
    if entry.kind == "ours":
        return Ours(device, batch_size, entry.precision)
    return Textbook(device, batch_size, entry.precision, tuned=entry.kind == "tuned")
