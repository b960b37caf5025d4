"""How fast and in how much memory: ours, a textbook CapsNet, the same tuned, and the machine.

Three sections. `race`: all contenders step by step in turn, beside the machine's measured limit.
`parts`: where our training step's time goes. `sweeps`: how the cost grows with the batch, the
routing's passes, primary capsules and classes.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch

from benchmarks.machine import file_name
from benchmarks.parts import run_parts
from benchmarks.plots import draw
from benchmarks.race import run_race
from benchmarks.sweeps import BATCH_SIZE, VALUES, run_sweeps
from benchmarks.throughput_report import Report
from benchmarks.torch_machine import describe_machine
from capsmodel.config import CapsNetConfig
from capsmodel.precision import Precision

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
SECTIONS = ("race", "parts", "sweeps")
RESULTS = Path(__file__).with_name("results")
PICTURES = Path(__file__).parents[1] / "docs" / "images"
BATCH_SIZES = {"cpu": [128], "cuda": [128, 1024]}
RACE_SECONDS = 210.0
PARTS_SHARE, SWEEP_SHARE = 0.15, 0.1
"""Of the race's seconds, for the parts in one precision and for one sweep."""
QUICK = 0.1
"""By so much a quick run is shorter."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the results, draw them, and print the tables."""
    options = parse_options(arguments)
    report = measure(options)
    path = options.output or RESULTS / f"{file_name(report.machine)}.json"
    report.write(path)
    pictures = draw(report.content(), path.parent if options.output else PICTURES, path.stem)
    print(f"\n{report.markdown()}\nwritten: {path}, {path.with_suffix('.md').name}")
    print(f"drawn: {', '.join(map(str, pictures)) or 'nothing, matplotlib is not installed'}")


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--device", choices=list(BATCH_SIZES), default="cpu")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", help="images a step, of each race; by default 128, "
        "on a GPU also 1024"
    )  # fmt: skip
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--sweeps", nargs="+", choices=list(VALUES), default=list(VALUES))
    parser.add_argument(
        "--seconds", type=float, default=RACE_SECONDS, help="of a race; parts and sweeps get a "
        "share of it on top"
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a tenth of the seconds")
    parser.add_argument(
        "--output", type=Path, help="a JSON file, pictures next to it; by default in "
        "benchmarks/results and docs/images"
    )  # fmt: skip
    options = parser.parse_args(arguments)
    options.batch_sizes = options.batch_sizes or BATCH_SIZES[options.device]
    for name, values in (("batch-sizes", options.batch_sizes), ("seconds", [options.seconds])):
        for value in values:
            if not (math.isfinite(value) and value > 0):
                parser.error(f"--{name}: {value}, expected more than 0")
    if options.output and options.output.suffix != ".json":
        parser.error(f"--output is {options.output}, expected a name that ends in .json")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            f"--device cuda: torch {torch.__version__} finds no CUDA device; use a machine with "
            "a GPU and a CUDA build of torch, or --device cpu"
        )
    if options.quick:
        options.seconds *= QUICK
    return options


def measure(options: argparse.Namespace) -> Report:
    """The sections that are asked for, one after another."""
    machine = describe_machine(torch.device(options.device))
    on_gpu, seconds = options.device == "cuda", options.seconds
    races = [
        run_race(options.device, batch_size, options.precisions, seconds, epoch=on_gpu)
        for batch_size in (options.batch_sizes if "race" in options.sections else [])
    ]
    net, batch_size = CapsNetConfig(), options.batch_sizes[0]
    parts = [
        run_parts(options.device, batch_size, precision, PARTS_SHARE * seconds, net)
        for precision in (options.precisions if "parts" in options.sections else [])
    ]
    sweeps = run_sweeps(
        options.device,
        SWEEP_SHARE * seconds,
        options.sweeps if "sweeps" in options.sections else [],
        net,
        BATCH_SIZE,
    )
    settings = {
        "sections": options.sections,
        "batch_sizes": options.batch_sizes,
        "precisions": options.precisions,
        "seconds": seconds,
    }
    return Report(machine, settings, races, parts, sweeps)


if __name__ == "__main__":
    main()
