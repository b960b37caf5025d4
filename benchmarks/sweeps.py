"""How the cost grows: with the batch, the passes of the routing, primary capsules and classes."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import textbook
from benchmarks.child import Child
from benchmarks.contenders import PHASES, Phase
from benchmarks.spread import Spread, spread
from benchmarks.stopwatch import time_turn
from capsmodel.allocator import ALLOCATOR_ENVIRONMENT
from capsmodel.bench import inference_step, training_step
from capsmodel.config import CapsNetConfig, DynamicRoutingConfig

MIN_ROUNDS = 3
TEXTBOOK_ROUNDS = 2
"""It takes seconds where ours takes milliseconds, and only gives the order of magnitude."""
LARGEST_VOTES = {"cpu": 100_000_000, "cuda": 400_000_000}
"""Votes of a batch, in numbers, beyond which the textbook is not run: it keeps some ten times as
many for the way back, and takes as long."""
BATCH_SIZE = 128
ITERATIONS = "routing iterations"
VALUES: dict[str, tuple[int, ...]] = {
    "batch size": (1, 8, 32, 128, 512),
    ITERATIONS: (1, 2, 3, 4, 5),
    "primary types": (8, 16, 32, 64),
    "classes": (2, 10, 50, 100),
}

Steps = dict[Phase, Callable[[], object]]


@dataclass(frozen=True)
class Point:
    """One value of a sweep, everything else being the paper's."""

    value: int
    batch_size: int
    net: CapsNetConfig

    @property
    def votes(self) -> int:
        """Numbers in the votes of a batch."""
        net = self.net
        return self.batch_size * net.primary_capsules * net.classes * net.class_dim


@dataclass(frozen=True)
class Line:
    """One contender at one point in one phase."""

    contender: str
    phase: Phase
    value: int
    batch_size: int
    step_s: list[float]
    """One for each round."""

    @property
    def images_per_s(self) -> float:
        """Those of the median step."""
        return self.batch_size / spread(self.step_s).median


@dataclass(frozen=True)
class Sweep:
    """All rounds of one sweep."""

    name: str
    lines: list[Line]

    def of(self, contender: str, phase: Phase) -> list[Line]:
        """A contender's lines in one phase, ascending."""
        wanted = (contender, phase)
        lines = [line for line in self.lines if (line.contender, line.phase) == wanted]
        return sorted(lines, key=lambda line: line.value)


@dataclass(frozen=True)
class Growth:
    """How much longer 128 of our training images take at a sweep's last value than at its first."""

    ms: Spread
    """Round by round."""
    share: Spread
    """Of the time at the first value."""


def growth(sweep: Sweep) -> Growth:
    """From the first value of a sweep to the last."""
    lines = sweep.of("ours", "training")
    first, last = (
        [1000 * seconds * BATCH_SIZE / line.batch_size for seconds in line.step_s]
        for line in (lines[0], lines[-1])
    )
    pairs = list(zip(first, last, strict=True))
    return Growth(
        ms=spread([late - early for early, late in pairs]),
        share=spread([late / early - 1 for early, late in pairs]),
    )


def points_of(name: str, base: CapsNetConfig, batch_size: int) -> list[Point]:
    """The points of a sweep, by its name in `VALUES`, around the net `base`."""
    return [_point(name, value, base, batch_size) for value in VALUES[name]]


def _point(name: str, value: int, base: CapsNetConfig, batch_size: int) -> Point:
    if name == "batch size":
        return Point(value, value, base)
    change: dict[str, Any]
    if name == ITERATIONS:
        change = {"routing": DynamicRoutingConfig(iterations=value)}
    else:
        change = {name.replace(" ", "_"): value}
    return Point(value, batch_size, base.model_copy(update=change))


class PointSteps(ABC):
    """A contender at all points of a sweep at once, so that they can take turns."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self._steps: list[Steps] = []

    def prepare(self, points: Sequence[Point]) -> None:
        """Make the nets of a sweep, in place of the last one's, and run each for the first time."""
        self._steps.clear()
        for point in points:
            shape = (point.batch_size, *point.net.image_shape)
            images = torch.rand(shape, device=self.device)
            labels = torch.arange(point.batch_size, device=self.device) % point.net.classes
            self._steps.append(self.make(point, images, labels))
            for phase in PHASES:
                self.turn(len(self._steps) - 1, phase)

    def turn(self, number: int, phase: Phase) -> float:
        """Seconds of a step at one point."""
        return time_turn(self._steps[number][phase], self.device)

    @abstractmethod
    def make(self, point: Point, images: torch.Tensor, labels: torch.Tensor) -> Steps:
        """The two steps at a point."""


class OurSteps(PointSteps):
    """Ours in bf16, as `capsmodel.bench` has it."""

    def make(self, point: Point, images: torch.Tensor, labels: torch.Tensor) -> Steps:
        """The two steps at a point."""
        return {
            "inference": inference_step(images, point.net),
            "training": training_step(images, labels, point.net),
        }


class TextbookSteps(PointSteps):
    """The plain textbook, in fp32."""

    def make(self, point: Point, images: torch.Tensor, labels: torch.Tensor) -> Steps:
        """The two steps at a point."""
        given = point.net
        assert isinstance(given.routing, DynamicRoutingConfig)
        net = textbook.TextbookCapsNet(
            image_shape=given.image_shape,
            classes=given.classes,
            channels=given.conv_channels,
            types=given.primary_types,
            primary_dim=given.primary_dim,
            digit_dim=given.class_dim,
            iterations=given.routing.iterations,
        ).to(self.device)
        optimizer = textbook.make_optimizer(net)

        def infer() -> None:
            with torch.no_grad():
                net(images)

        return {
            "inference": infer,
            "training": lambda: textbook.train_step(net, optimizer, images, labels),
        }


class Turns:
    """A contender's turns at the points of one sweep."""

    def __init__(
        self, contender: str, child: Child[Any], points: list[Point], most: float = math.inf
    ) -> None:
        """`most` limits the rounds in which it takes part."""
        self.contender = contender
        self._child = child
        self._points = points
        self._most = most
        self._step_s: dict[Phase, list[list[float]]] = {
            phase: [[] for _ in points] for phase in PHASES
        }
        child.ask(PointSteps.prepare, points)

    def play(self, phase: Phase) -> None:
        """A turn at each point."""
        for number, taken in enumerate(self._step_s[phase]):
            if len(taken) < self._most:
                taken.append(self._child.ask(PointSteps.turn, number, phase))

    @property
    def lines(self) -> list[Line]:
        """What was found."""
        return [
            Line(self.contender, phase, point.value, point.batch_size, step_s)
            for phase in PHASES
            for point, step_s in zip(self._points, self._step_s[phase], strict=True)
        ]


def run_sweeps(
    device: str, seconds: float, names: Sequence[str], base: CapsNetConfig, batch_size: int
) -> list[Sweep]:
    """One sweep after another, each for so many seconds (the textbook's part comes on top)."""
    with (
        Child("ours in sweeps", ALLOCATOR_ENVIRONMENT, OurSteps, device) as ours,
        Child("textbook in sweeps", {}, TextbookSteps, device) as eager,
    ):
        most = LARGEST_VOTES[torch.device(device).type]
        return [
            run_sweep(name, points_of(name, base, batch_size), ours, eager, seconds, most)
            for name in names
        ]


def run_sweep(
    name: str,
    points: list[Point],
    ours: Child[OurSteps],
    eager: Child[TextbookSteps],
    seconds: float,
    most_votes: int,
) -> Sweep:
    """All points in turn, round after round; the textbook where it has not too many votes."""
    print(f"sweep over {name}", flush=True)
    affordable = [point for point in points if point.votes <= most_votes]
    contenders = [
        Turns("ours", ours, points),
        Turns("plain", eager, affordable, most=TEXTBOOK_ROUNDS),
    ]
    rounds, until = 0, time.perf_counter() + seconds
    while rounds < MIN_ROUNDS or time.perf_counter() < until:
        for phase in PHASES:
            for contender in contenders:
                contender.play(phase)
        rounds += 1
    return Sweep(name, [line for contender in contenders for line in contender.lines])
