"""Images a second and memory, in training and in inference: ours, and a textbook CapsNet.

The contenders (each net in fp32 and in bf16) take turns, round after round, so that whatever else
the machine does falls on all of them alike.
"""

import argparse
import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

import torch

from benchmarks.contenders import CONTENDERS, Precision
from benchmarks.lane import PHASES, Lane
from benchmarks.machine import file_name
from benchmarks.throughput_report import Report, describe_machine

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
RESULTS = Path(__file__).with_name("results")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the results, and print the table."""
    options = parse_options(arguments)
    report = measure(options)
    path = options.output or RESULTS / f"{file_name(report.machine)}.json"
    report.write(path)
    print(f"\n{report.markdown()}\nwritten: {path} and {path.with_suffix('.md').name}")


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch-size", type=int, default=128, help="images a step")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a turn")
    parser.add_argument("--output", type=Path, help="a JSON file; by default in benchmarks/results")
    options = parser.parse_args(arguments)
    for option in ("batch_size", "rounds", "seconds"):
        value = getattr(options, option)
        if not (math.isfinite(value) and value > 0):
            parser.error(f"--{option.replace('_', '-')} is {value}, expected more than 0")
    if options.output and options.output.suffix != ".json":
        parser.error(f"--output is {options.output}, expected a name that ends in .json")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            f"--device cuda: torch {torch.__version__} finds no CUDA device; use a machine with "
            "a GPU and a CUDA build of torch, or --device cpu"
        )
    return options


def measure(options: argparse.Namespace) -> Report:
    """Start the contenders, warm them up, and let them take turns."""
    machine = describe_machine(torch.device(options.device))
    with ExitStack() as stack:
        lanes = [
            stack.enter_context(Lane(name, precision, options.device, options.batch_size))
            for precision in options.precisions
            for name in CONTENDERS
        ]
        for lane in lanes:
            lane.warm_up()
            print(f"ready: {lane}, data: {lane.data}", flush=True)
        for number in range(1, options.rounds + 1):
            play_round(lanes, options.seconds)
            print(f"round {number} of {options.rounds}, {describe_round(lanes)}", flush=True)
    settings = {
        "batch_size": options.batch_size,
        "precisions": options.precisions,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "data": lanes[0].data,
        "torch_flags": {str(lane): lane.torch_flags for lane in lanes},
    }
    return Report(
        machine=machine,
        settings=settings,
        start_mib=min(lane.start_mib for lane in lanes),
        measurements=[lane.measurement(phase) for lane in lanes for phase in PHASES],
    )


def play_round(lanes: list[Lane], seconds: float) -> None:
    """A turn for every contender in every phase; ours and the textbook's follow on each other."""
    for phase in PHASES:
        for lane in lanes:
            lane.take_turn(phase, seconds)


def describe_round(lanes: list[Lane]) -> str:
    """The medians of the round just over."""
    return "; ".join(
        f"ms a step of {phase}: "
        + ", ".join(f"{lane} {1000 * lane.step_s[phase][-1]:.1f}" for lane in lanes)
        for phase in PHASES
    )


if __name__ == "__main__":
    main()
