"""How a training scales over workers: one and two of them on two cores that they divide fairly.

Strong scaling: two workers share a batch. Weak scaling: each has as many images as one alone. With
--arithmetic nothing is measured: it prints what follows for clusters of GPUs (docs/scaling.md).
"""

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch

from benchmarks import scaling_arithmetic
from benchmarks.machine import describe_machine, file_name
from benchmarks.scaling_race import WORKERS, run_scaling
from benchmarks.scaling_report import ScalingReport
from capsmodel.config import CapsNetConfig
from capsmodel.precision import Precision

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
RESULTS = Path(__file__).with_name("results")
BATCH_SIZE = 128
SECONDS = 75.0
QUICK = 0.1
"""By so much a quick run is shorter."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the results and print the tables; or print the arithmetic."""
    options = parse_options(arguments)
    if options.arithmetic:
        print(scaling_arithmetic.markdown(), end="")
        return
    report = measure(options, CapsNetConfig())
    path = options.output or RESULTS / f"scaling-{file_name(report.machine)}.json"
    report.write(path)
    print(f"\n{report.markdown()}\nwritten: {path}, {path.with_suffix('.md').name}")


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--arithmetic", action="store_true", help="print it, measure nothing")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help="default %(default)s")
    parser.add_argument(
        "--cores", type=int, nargs=WORKERS, help="numbers of the cores that are divided; by "
        "default the first two that this process may use"
    )  # fmt: skip
    parser.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        help="of each precision, its start included; by default %(default)g",
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the seconds")
    parser.add_argument(
        "--output", type=Path, help="a JSON file; by default in benchmarks/results"
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if not (math.isfinite(options.seconds) and options.seconds > 0):
        parser.error(f"--seconds: {options.seconds}, expected more than 0")
    if options.batch_size < WORKERS:
        parser.error(f"--batch-size: {options.batch_size}, expected at least an image a worker: 2")
    if options.output and options.output.suffix != ".json":
        parser.error(f"--output is {options.output}, expected a name that ends in .json")
    if not options.arithmetic:
        _choose_cores(parser, options)
    if options.quick:
        options.seconds *= QUICK
    return options


def measure(options: argparse.Namespace, net: CapsNetConfig) -> ScalingReport:
    """One precision after the other."""
    first, second = options.cores
    machine = {**describe_machine(), "torch": torch.__version__, "cores": options.cores}
    found = []
    for precision in options.precisions:
        print(f"{precision}: about {options.seconds:g} s", flush=True)
        found.append(
            run_scaling((first, second), precision, options.batch_size, options.seconds, net)
        )
    settings = {"batch_size": options.batch_size, "seconds": options.seconds}
    return ScalingReport(machine, settings, found)


def _choose_cores(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Two different ones, so that neither worker takes from the other."""
    usable = sorted(os.sched_getaffinity(0))
    chosen = options.cores or usable[:WORKERS]
    if len(set(chosen)) < WORKERS or not set(chosen) <= set(usable):
        given = f"--cores: {options.cores}" if options.cores else "there is one core"
        parser.error(
            f"{given}, expected two different ones of those that this process may use: "
            f"{', '.join(map(str, usable))}"
        )
    options.cores = chosen


if __name__ == "__main__":
    main()
