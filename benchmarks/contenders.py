"""The nets that `throughput` times, behind one interface, and the timing of a turn's steps.

Each contender lives alone in a process of its own: none meets another's memory, caches or global
settings of torch, and its peak of memory is its own.
"""

import itertools
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks import textbook
from capsmodel import Trainer
from capsmodel.callbacks import Callback
from capsmodel.config import MnistConfig, TrainingConfig
from capsmodel.datasets import DataMissingError, Dataset, load_dataset
from capsmodel.datasets.download import OFFLINE_VARIABLE
from capsmodel.metrics import StepMetrics
from capsmodel.precision import Precision, exact_fp32

Phase = Literal["inference", "training"]

INFERENCE_BATCHES = 8
"""Different batches that inference goes through by turns."""
MAX_EPOCHS = 10_000
"""More than any run of the benchmark gets through."""


class Turn:
    """Times the steps of one turn, on a GPU by its own clock.

    The first steps are run but not counted; a turn ends when both `steps` more are done and
    `seconds` have passed.
    """

    def __init__(
        self, device: torch.device, *, steps: int, seconds: float = 0, uncounted: int = 0
    ) -> None:
        self._on_gpu = device.type == "cuda"
        self._steps_left = uncounted + steps
        self._uncounted = uncounted
        self._until = time.perf_counter() + seconds
        self._stretches: list[list[Any]] = []
        self.resume()

    @property
    def over(self) -> bool:
        """Whether the turn has lasted long enough."""
        return self._steps_left <= 0 and time.perf_counter() >= self._until

    def resume(self) -> None:
        """Begin a stretch of steps: what passed since the last step is nobody's."""
        self._stretches.append([self._now()])

    def step_done(self) -> None:
        """Note the end of a step. Does not wait for a GPU."""
        self._stretches[-1].append(self._now())
        self._steps_left -= 1

    def seconds_per_step(self) -> list[float]:
        """How long each counted step took; waits for the GPU."""
        if self._on_gpu:
            torch.cuda.synchronize()
        spans = [
            self._seconds(begin, end)
            for stretch in self._stretches
            for begin, end in itertools.pairwise(stretch)
        ]
        return spans[self._uncounted :]

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _seconds(self, begin: Any, end: Any) -> float:
        return float(begin.elapsed_time(end) / 1000 if self._on_gpu else end - begin)


class Contender(ABC):
    """A net in one precision, ready to train and to infer."""

    def __init__(
        self, dataset: Dataset, device: torch.device, batch_size: int, precision: Precision
    ) -> None:
        self.dataset = dataset
        self.device = device
        self.batch_size = batch_size
        self.precision = precision
        count = INFERENCE_BATCHES * batch_size
        pixels = dataset.test_images[torch.arange(count) % len(dataset.test_images)]
        self._ready = itertools.cycle(torch.split(pixels.to(device).float() / 255, batch_size))

    def run(self, phase: Phase, turn: Turn) -> None:
        """Steps of training, or batches of inference, until the turn is over."""
        if phase == "training":
            with exact_fp32(self.device, self.precision):  # as our Trainer does: for both alike
                self.train(turn)
            return
        with torch.no_grad(), exact_fp32(self.device, self.precision):
            while not turn.over:
                self.infer(next(self._ready))
                turn.step_done()

    @abstractmethod
    def train(self, turn: Turn) -> None:
        """Training steps until the turn is over."""

    @abstractmethod
    def infer(self, images: Tensor) -> None:
        """Lengths and reconstructions of images `[B, C, H, W]` in [0, 1], without gradients."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Plain autocast, off in fp32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


class Ours(Contender):
    """capsmodel's net, trained by its `Trainer`: with shifts, metrics, and watch for divergence."""

    def __init__(
        self, dataset: Dataset, device: torch.device, batch_size: int, precision: Precision
    ) -> None:
        super().__init__(dataset, device, batch_size, precision)
        config = TrainingConfig(
            dataset=MnistConfig(validation_fraction=0),
            epochs=MAX_EPOCHS,
            batch_size=batch_size,
            precision=precision,
        )
        self._timer = StepTimer()
        self.trainer = Trainer(config, dataset, device=device, callbacks=[self._timer])

    def train(self, turn: Turn) -> None:
        """Go on with `Trainer.fit`, which is asked to stop when the turn is over."""
        self.trainer.model.train()
        self._timer.turn = turn
        self.trainer.fit()

    def infer(self, images: Tensor) -> None:
        """As a caller infers who knows that the images are in order."""
        self.trainer.model.eval()
        with self.autocast():
            self.trainer.model.compute(images)


class StepTimer(Callback):
    """Marks the end of each of the `Trainer`'s steps; an epoch's end is left out."""

    turn: Turn

    def on_step(self, trainer: Trainer, metrics: StepMetrics) -> None:
        """Note the step, and stop the training when the turn is over."""
        self.turn.step_done()
        if self.turn.over:
            trainer.request_stop()

    def on_epoch(self, trainer: Trainer, metrics: Any) -> None:
        """Time between epochs is not a step's."""
        self.turn.resume()


class Textbook(Contender):
    """The textbook's net; its batches are cut from bytes on the device, and nothing is measured."""

    def __init__(
        self, dataset: Dataset, device: torch.device, batch_size: int, precision: Precision
    ) -> None:
        super().__init__(dataset, device, batch_size, precision)
        torch.manual_seed(0)
        self.net = textbook.TextbookCapsNet().to(device)
        self.optimizer = textbook.make_optimizer(self.net)
        self._images = dataset.train_images.to(device)
        self._labels = dataset.train_labels.to(device)
        self._batches = self._shuffled_batches()

    def train(self, turn: Turn) -> None:
        """One `textbook.train_step` after another."""
        self.net.train()
        bf16 = self.precision == "bf16"
        while not turn.over:
            images, labels = next(self._batches)
            textbook.train_step(self.net, self.optimizer, images, labels, bf16)
            turn.step_done()

    def infer(self, images: Tensor) -> None:
        """The forward pass alone."""
        self.net.eval()
        with self.autocast():
            self.net(images)

    def _shuffled_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            order = torch.randperm(len(self._labels), device=self.device)
            for indices in torch.split(order, self.batch_size):
                yield self._images[indices].float() / 255, self._labels[indices]


CONTENDERS: dict[str, type[Contender]] = {"ours": Ours, "textbook": Textbook}


def load_digits() -> Dataset:
    """MNIST where CAPS_DATA_DIR has it, else noise of the same shape: speed is the same."""
    try:
        with _offline():
            return load_dataset(MnistConfig())
    except DataMissingError:
        noise = torch.randint(256, (10_000, 1, 28, 28), dtype=torch.uint8)
        labels = torch.arange(len(noise)) % 10
        return Dataset("synthetic", noise, labels, noise[:1000], labels[:1000], classes=10)


def peak_mib(device: torch.device) -> float:
    """Most memory so far: torch's tensors on a GPU, else what Linux says of the whole process.

    Raises:
        RuntimeError: Another system than Linux.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    # getrusage would begin with the peak of the process that started this one.
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{status} has no line VmHWM: the benchmark runs on Linux alone")
    return int(found[1]) / 2**10


@contextmanager
def _offline() -> Iterator[None]:
    """A stopwatch downloads nothing."""
    before = os.environ.get(OFFLINE_VARIABLE)
    os.environ[OFFLINE_VARIABLE] = "1"
    try:
        yield
    finally:
        del os.environ[OFFLINE_VARIABLE]
        if before is not None:
            os.environ[OFFLINE_VARIABLE] = before
