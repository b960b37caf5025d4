"""One worker beside two: processes that have their cores for themselves train by turns."""

import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.child import Child
from benchmarks.contenders import MAX_EPOCHS, StepTimer
from benchmarks.digits import load_digits
from benchmarks.spread import Spread, ratios
from benchmarks.stopwatch import PACES, Stopwatch
from capsmodel import Trainer
from capsmodel.allocator import ALLOCATOR_ENVIRONMENT
from capsmodel.config import CapsNetConfig, MnistConfig, TrainingConfig
from capsmodel.distributed import gradient_bytes
from capsmodel.precision import Precision

WORKERS = 2
MIN_ROUNDS = 2
EXCHANGES, VOTES = 3, 30
"""So many in one turn, of which the median counts."""
PATIENCE = timedelta(minutes=5)
"""One waits for the other; the first time, while kernels are compiled."""

ONE, SHARE, TWO, WIDE, BESIDE = (
    "one worker, one core",
    "one worker, one core, half a batch",
    "two workers, a core each",
    "one worker, two cores",
    "two alone, side by side",
)


@dataclass(frozen=True)
class Timing:
    """One way to train with one batch size."""

    name: str
    images: int
    """Of a step, of all workers together."""
    step_s: list[float]
    """Seconds of a step, one for each round; of several workers the slower one's."""


@dataclass(frozen=True)
class Scaling:
    """All rounds in one precision."""

    precision: Precision
    batch_size: int
    rounds: int
    data: str
    gradient_bytes: int
    sent_bytes: list[int]
    """That each worker wrote to the others in one training step, as Linux counts them."""
    timings: list[Timing]
    exchange_s: list[float]
    """Round by round: all-reduce of as many bytes as the gradient has, and nothing else."""
    vote_s: list[float]
    """Round by round: an all-reduce of one number."""

    def find(self, name: str, images: int) -> Timing:
        """How one way did."""
        return next(t for t in self.timings if (t.name, t.images) == (name, images))

    def efficiency(self, images: int, other: str = ONE) -> Spread:
        """Images/s of two workers as a share of another way's, of one worker's twice.

        Args:
            images: Of the two workers' step: the batch size, or twice as many.
            other: One worker on one core, with the batch size itself or half of it, or a way that
                had as many images.
        """
        alone = {ONE: self.batch_size, SHARE: self.batch_size // WORKERS}.get(other)
        base = self.find(other, alone or images)
        share = base.images * (WORKERS if alone else 1) / images
        own = [share * seconds for seconds in self.find(TWO, images).step_s]
        return ratios(base.step_s, own)

    def exchange_share(self, images: int) -> Spread:
        """The exchange alone, as a share of the two workers' step."""
        return ratios(self.exchange_s, self.find(TWO, images).step_s)


class Worker:
    """One process: a training for each batch size, with others if it is given where to meet."""

    def __init__(
        self,
        precision: Precision,
        batch_sizes: Sequence[int],
        net: CapsNetConfig,
        rank: int = 0,
        meeting: str | None = None,
    ) -> None:
        if meeting:
            _meet(meeting, rank)
        torch.manual_seed(0)  # where there are no digits, all draw the same noise
        self.dataset = load_digits()
        self._watch = Stopwatch(torch.device("cpu"))
        self._timer = StepTimer(self._watch)
        self._trainers = {size: self._trainer(precision, size, net) for size in batch_sizes}
        self._gradient = torch.zeros(self.gradient_bytes() // 4)

    def warm_up(self) -> str:
        """Run everything for the first time; the name of the data."""
        for _ in range(PACES["cpu"].warm_up):
            for size in self._trainers:
                self.turn(size)
            if dist.is_initialized():
                self.exchange()
        return self.dataset.name

    def turn(self, batch_size: int) -> float:
        """Seconds of a training step, with everything that a `Trainer` does."""
        self._timer.steps_left = PACES["cpu"].steps
        self._trainers[batch_size].fit()
        return statistics.median(self._watch.seconds())

    def exchange(self) -> float:
        """Seconds of an all-reduce of as many bytes as the gradient has."""
        return self._exchange(self._gradient, EXCHANGES)

    def vote(self) -> float:
        """Seconds of an all-reduce of one number."""
        return self._exchange(torch.zeros((), dtype=torch.int64), VOTES)

    def gradient_bytes(self) -> int:
        """Of the net."""
        return gradient_bytes(next(iter(self._trainers.values())).model)

    def sent_bytes(self, batch_size: int) -> int:
        """What this process writes in a training step; gloo's sockets are all it writes to.

        Two steps in one call of `fit`, less one: that leaves out what a call costs.
        """
        written = []
        for steps in (1, 2):
            before = _written_bytes()
            self._timer.steps_left = steps
            self._trainers[batch_size].fit()
            written.append(_written_bytes() - before)
        self._watch.seconds()
        return written[1] - written[0]

    def _trainer(self, precision: Precision, batch_size: int, net: CapsNetConfig) -> Trainer:
        config = TrainingConfig(
            model=net,
            dataset=MnistConfig(validation_fraction=0),
            epochs=MAX_EPOCHS,
            batch_size=batch_size,
            precision=precision,
        )
        return Trainer(config, self.dataset, device="cpu", callbacks=[self._timer])

    def _exchange(self, values: torch.Tensor, times: int) -> float:
        dist.barrier()
        for _ in range(times):
            self._watch.time(lambda: dist.all_reduce(values))
        return statistics.median(self._watch.seconds())


class Team:
    """Processes that do the same at the same time."""

    def __init__(self, members: Sequence[Child[Worker]]) -> None:
        self._members = members

    def ask(self, method: Callable[..., Any], *arguments: object) -> list[Any]:
        """What each of them answers."""
        with ThreadPoolExecutor(len(self._members)) as pool:
            return list(pool.map(lambda child: child.ask(method, *arguments), self._members))


@contextmanager
def placed(cores: Sequence[int]) -> Iterator[None]:
    """Context in which a process that is started has these cores, and as many threads."""
    variable = "OMP_NUM_THREADS"
    before, threads = os.sched_getaffinity(0), os.environ.get(variable)
    os.sched_setaffinity(0, cores)
    os.environ[variable] = str(len(set(cores)))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
        del os.environ[variable]
        if threads is not None:
            os.environ[variable] = threads


def run_scaling(
    cores: tuple[int, int],
    precision: Precision,
    batch_size: int,
    seconds: float,
    net: CapsNetConfig,
) -> Scaling:
    """Start all, warm up, and go round after round until the time is over.

    Args:
        cores: Numbers of the two that are divided.
        precision: Of all.
        batch_size: Images of a step, and with two workers also twice as many.
        seconds: Of start and rounds together; at least `MIN_ROUNDS` are gone.
        net: What is trained.
    """
    until = time.perf_counter() + seconds
    share, sizes = batch_size // WORKERS, (batch_size, WORKERS * batch_size)
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory())

        def start(own: Sequence[int], given: Sequence[int], *role: object) -> Child[Worker]:
            with placed(own):
                name = f"the worker on {own}"
                child = Child(name, ALLOCATOR_ENVIRONMENT, Worker, precision, given, net, *role)
            return stack.enter_context(child)

        alone = [start([core], (share, batch_size)) for core in cores]
        meeting = str(Path(folder) / "meeting")
        ranks = [start([core], sizes, rank, meeting) for rank, core in enumerate(cores)]
        runner = _Runner(Team(alone[:1]), Team(alone), Team(ranks), Team([start(cores, sizes)]))
        return runner.run(precision, batch_size, until)


class _Runner:
    """Lets the teams take turns."""

    def __init__(self, one: Team, beside: Team, two: Team, wide: Team) -> None:
        self._teams = {ONE: one, SHARE: one, BESIDE: beside, TWO: two, WIDE: wide}

    def run(self, precision: Precision, batch_size: int, until: float) -> Scaling:
        """Warm up, play until then by the clock, and tell."""
        names = [self._teams[name].ask(Worker.warm_up) for name in (BESIDE, TWO, WIDE)]
        double = WORKERS * batch_size
        timings = [
            Timing(SHARE, batch_size // WORKERS, []),
            Timing(TWO, batch_size, []),
            Timing(ONE, batch_size, []),
            Timing(TWO, double, []),
            Timing(WIDE, double, []),
            Timing(WIDE, batch_size, []),
            Timing(BESIDE, double, []),
        ]
        exchange_s: list[float] = []
        vote_s: list[float] = []
        while len(exchange_s) < MIN_ROUNDS or time.perf_counter() < until:
            # Every other round runs backwards, to be fair to all.
            for timing in timings if len(exchange_s) % 2 else reversed(timings):
                timing.step_s.append(self._turn(timing))
            exchange_s.append(max(self._teams[TWO].ask(Worker.exchange)))
            vote_s.append(max(self._teams[TWO].ask(Worker.vote)))
        return Scaling(
            precision=precision,
            batch_size=batch_size,
            rounds=len(exchange_s),
            data=names[0][0],
            gradient_bytes=self._teams[ONE].ask(Worker.gradient_bytes)[0],
            sent_bytes=self._teams[TWO].ask(Worker.sent_bytes, batch_size),
            timings=timings,
            exchange_s=exchange_s,
            vote_s=vote_s,
        )

    def _turn(self, timing: Timing) -> float:
        if timing.name == BESIDE:  # each has its own step, of its part of the images
            return statistics.harmonic_mean(
                self._teams[BESIDE].ask(Worker.turn, timing.images // WORKERS)
            )
        return max(self._teams[timing.name].ask(Worker.turn, timing.images))


def _meet(meeting: str, rank: int) -> None:
    """Join the process group; the machine's own name may lead nowhere."""
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=WORKERS, timeout=PATIENCE
    )


def _written_bytes() -> int:
    """By this process so far, to whatever it was.

    Raises:
        RuntimeError: Another system than Linux.
    """
    counted = Path("/proc/self/io")
    found = re.search(r"^wchar:\s*(\d+)$", counted.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{counted} has no line wchar: the benchmark runs on Linux alone")
    return int(found[1])
