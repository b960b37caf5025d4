"""Where a training step's time goes, and the routing beside the textbook's."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import textbook
from benchmarks.child import Child
from benchmarks.spread import Spread, ratios
from benchmarks.stopwatch import PACES, Stopwatch
from capsmodel import Batch, CapsNet, Trainer, TrainingConfig
from capsmodel.allocator import ALLOCATOR_ENVIRONMENT
from capsmodel.config import CapsNetConfig, MnistConfig
from capsmodel.datasets import Dataset
from capsmodel.functional import lengths, squash
from capsmodel.losses import build_loss
from capsmodel.model import ModelOutput
from capsmodel.precision import Precision, exact_fp32, mixed_precision

PARTS = (
    "convolutions, forward",
    "convolutions, backward",
    "routing, forward",
    "routing, backward",
    "decoder and loss, forward",
    "decoder and loss, backward",
    "optimizer",
)
"""In the order in which they are timed; what they leave of a whole step is the rest."""
ROUTING = ("routing, forward", "routing, backward")
STEP = "step"
MIN_ROUNDS = 3
WARM_UP_TURNS = 2

Times = dict[str, float]
"""Seconds by part."""


@dataclass(frozen=True)
class PartsFound:
    """All rounds in one precision."""

    batch_size: int
    precision: Precision
    seconds: dict[str, list[float]]
    """Of each part and of a whole step, round by round."""
    textbook_routing_s: list[float]
    """Of the plain textbook's routing, forward and backward."""

    @property
    def median_s(self) -> Times:
        """Each part's, the rest and the whole step."""
        medians = {name: statistics.median(self.seconds[name]) for name in (*PARTS, STEP)}
        rest = medians[STEP] - sum(medians[name] for name in PARTS)
        return {**{name: medians[name] for name in PARTS}, "rest": rest, STEP: medians[STEP]}

    @property
    def shares(self) -> Times:
        """Of the whole step. A part alone may be slower than within it: the rest may be below 0."""
        medians = self.median_s
        return {name: value / medians[STEP] for name, value in medians.items() if name != STEP}

    @property
    def routing_ratio(self) -> Spread:
        """How many times as fast our routing is, forward and backward together."""
        ours = [sum(pair) for pair in zip(*(self.seconds[name] for name in ROUTING), strict=True)]
        return ratios(self.textbook_routing_s, ours)

    @property
    def routing_share(self) -> Spread:
        """Our routing's share of a step."""
        ours = [sum(pair) for pair in zip(*(self.seconds[name] for name in ROUTING), strict=True)]
        return ratios(ours, self.seconds[STEP])


def run_parts(
    device: str, batch_size: int, precision: Precision, seconds: float, net: CapsNetConfig
) -> PartsFound:
    """Time the parts in turns with the textbook's routing, until the time is over."""
    with (
        Child("parts", ALLOCATOR_ENVIRONMENT, StepParts, device, batch_size, precision, net) as own,
        Child("textbook's routing", {}, TextbookRouting, device, batch_size, net) as other,
    ):
        own.ask(StepParts.warm_up)
        other.ask(TextbookRouting.warm_up)
        found: dict[str, list[float]] = {name: [] for name in (*PARTS, STEP)}
        eager: list[float] = []
        until = time.perf_counter() + seconds
        while len(eager) < MIN_ROUNDS or time.perf_counter() < until:
            for name, value in own.ask(StepParts.turn).items():
                found[name].append(value)
            eager.append(other.ask(TextbookRouting.turn))
    return PartsFound(batch_size, precision, found, eager)


class StepParts:
    """The parts of our step one by one, on what the parts before them really gave."""

    def __init__(
        self, device: str, batch_size: int, precision: Precision, net: CapsNetConfig
    ) -> None:
        self.device = torch.device(device)
        self.precision = precision
        config = TrainingConfig(dataset=MnistConfig(validation_fraction=0), precision=precision)
        config = config.model_copy(update={"model": net})
        stored = torch.randint(256, (batch_size, *net.image_shape), dtype=torch.uint8)
        labels = torch.arange(batch_size) % net.classes
        dataset = Dataset("noise", stored, labels, stored, labels, classes=net.classes)
        self.trainer = Trainer(config, dataset, device=self.device)
        self.loss = build_loss(config.loss)
        self.batch = Batch(stored.to(self.device), labels.to(self.device)).as_pixels()

    def warm_up(self) -> None:
        """Everything for the first time."""
        for _ in range(WARM_UP_TURNS):
            self.turn()

    def turn(self) -> Times:
        """A step, and each of its parts once; on a GPU the medians of several."""
        pace = PACES[self.device.type]
        watch = Stopwatch(self.device)
        for _ in range(pace.steps):
            watch.time(lambda: self.trainer.train_on(self.batch))
            with exact_fp32(self.device, self.precision):
                self._time_parts(watch)
        spans = watch.seconds()
        names = (STEP, *PARTS)
        each = [spans[number :: len(names)][pace.uncounted :] for number in range(len(names))]
        return {name: statistics.median(part) for name, part in zip(names, each, strict=True)}

    def _time_parts(self, watch: Stopwatch) -> None:
        """In the order of `PARTS`; each starts at leaves, so that no way back goes beyond it."""
        net = self.trainer.model
        assert isinstance(net, CapsNet)
        convolutions, routing = [net.conv, net.primary_caps], [net.class_caps]
        capsules = watch.time(self._mixed(lambda: net.primary_caps(net.conv(self.batch.images))))
        leading = capsules.detach().requires_grad_()
        _time_backward(watch, capsules, convolutions, [])
        poses = watch.time(self._mixed(lambda: net.class_caps(leading)))
        found = poses.detach().requires_grad_()
        _time_backward(watch, poses, routing, [leading])
        loss = watch.time(lambda: self._total_loss(net, found))
        _time_backward(watch, loss, [net.decoder] if net.decoder else [], [found])
        watch.time(self.trainer.optimizer.step)

    def _mixed(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def within() -> Tensor:
            with mixed_precision(self.device, self.precision):
                return function()

        return within

    def _total_loss(self, net: CapsNet, poses: Tensor) -> Tensor:
        with mixed_precision(self.device, self.precision):
            drawn = net.reconstruct(poses, self.batch.labels)
        output = ModelOutput(lengths(poses), poses, drawn)
        return self.loss(output, self.batch).total


def _time_backward(
    watch: Stopwatch, output: Tensor, modules: list[Any], leaves: list[Tensor]
) -> None:
    weights = [weight for module in modules for weight in module.parameters()]
    gradient = torch.ones_like(output)
    watch.time(lambda: torch.autograd.grad(output, [*leaves, *weights], gradient))


class TextbookRouting:
    """The textbook's votes and routing, on capsules of the net's shape."""

    def __init__(self, device: str, batch_size: int, net: CapsNetConfig) -> None:
        self.device = torch.device(device)
        torch.manual_seed(0)
        self.digits = textbook.DigitCapsules(
            net.primary_capsules, net.primary_dim, net.classes, net.class_dim
        ).to(self.device)
        shape = (batch_size, net.primary_capsules, net.primary_dim)
        self.capsules = squash(torch.randn(shape, device=self.device)).requires_grad_()

    def warm_up(self) -> None:
        """For the first time."""
        for _ in range(WARM_UP_TURNS):
            self.turn()

    def turn(self) -> float:
        """Seconds forward and backward."""
        pace = PACES[self.device.type]
        watch = Stopwatch(self.device)
        for _ in range(pace.steps):
            watch.time(self._forward_and_backward)
        return statistics.median(watch.seconds()[pace.uncounted :])

    def _forward_and_backward(self) -> None:
        poses = self.digits(self.capsules)
        torch.autograd.grad(
            poses, [self.capsules, *self.digits.parameters()], torch.ones_like(poses)
        )
