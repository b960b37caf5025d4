"""A contender's process: the half that lives there, and `Lane`, the half that asks it."""

import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, ParamSpec, Self, TypeVar, get_args

import torch

from benchmarks.contenders import (
    CONTENDERS,
    Contender,
    Phase,
    Precision,
    Turn,
    load_digits,
    peak_mib,
)
from benchmarks.throughput_report import Measurement

P = ParamSpec("P")
R = TypeVar("R")

PHASES: tuple[Phase, ...] = get_args(Phase)
"""Inference first: a process's peak of memory only rises, and training's is the higher."""
WARM_UP_STEPS = {"cpu": 2, "cuda": 50}
"""Before the first round, in each phase: kernels are chosen, buffers allocated."""
UNCOUNTED_STEPS = {"cpu": 1, "cuda": 5}
"""At the beginning of every turn: caches and clocks come back."""
MIN_STEPS = 2
"""Steps that a turn counts at least, where one takes longer than the turn should."""

_contender: Contender
"""The one that lives in this process; there is none in the process that asks."""


def set_up(name: str, precision: Precision, device: str, batch_size: int) -> tuple[str, float]:
    """Make the contender; returns the name of its data and the memory taken before it was made."""
    global _contender
    dataset = load_digits()
    start_mib = peak_mib(torch.device(device))
    _contender = CONTENDERS[name](dataset, torch.device(device), batch_size, precision)
    return dataset.name, start_mib


def warm_up(phase: Phase) -> float:
    """Run a phase for the first time; returns the peak of memory in MiB."""
    device = _contender.device
    _contender.run(phase, Turn(device, steps=WARM_UP_STEPS[device.type]))
    if device.type == "cuda":
        torch.cuda.synchronize()  # nothing of ours runs on into another's turn
    return peak_mib(device)


def take_turn(phase: Phase, seconds: float) -> list[float]:
    """Run a phase for about so many seconds; returns those of each step."""
    device = _contender.device
    uncounted = UNCOUNTED_STEPS[device.type]
    turn = Turn(device, steps=MIN_STEPS, seconds=seconds, uncounted=uncounted)
    _contender.run(phase, turn)
    return turn.seconds_per_step()


def torch_flags() -> dict[str, Any]:
    """Settings of torch that a library may have changed for its whole process."""
    return {
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "threads": torch.get_num_threads(),
    }


class Lane:
    """A contender in a process of its own, and what was measured there."""

    def __init__(self, name: str, precision: Precision, device: str, batch_size: int) -> None:
        self.name = name
        self.precision = precision
        self.data = ""
        self.start_mib = 0.0
        self.torch_flags: dict[str, Any] = {}
        self.step_s: dict[Phase, list[float]] = {phase: [] for phase in PHASES}
        self._steps = dict.fromkeys(PHASES, 0)
        self._peak_mib: dict[Phase, float] = {}
        self._process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        self._ready = self._process.submit(set_up, name, precision, device, batch_size)

    def __str__(self) -> str:
        return f"{self.name} {self.precision}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.shutdown()

    def warm_up(self) -> None:
        """Wait until the contender is made, and run it for a little; notes its memory."""
        self.data, self.start_mib = self._ready.result()
        for phase in PHASES:
            self._peak_mib[phase] = self._there(warm_up, phase)
        self.torch_flags = self._there(torch_flags)

    def take_turn(self, phase: Phase, seconds: float) -> None:
        """Let the contender run for about so many seconds."""
        times = self._there(take_turn, phase, seconds)
        self.step_s[phase].append(statistics.median(times))
        self._steps[phase] += len(times)

    def measurement(self, phase: Phase) -> Measurement:
        """What all turns of a phase gave."""
        return Measurement(
            contender=self.name,
            precision=self.precision,
            phase=phase,
            step_s=self.step_s[phase],
            steps=self._steps[phase],
            peak_mib=self._peak_mib[phase],
        )

    def _there(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return self._process.submit(function, *args, **kwargs).result()
