"""What `throughput` found: as JSON with every figure, and as a table in Markdown."""

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import cpu_model
from benchmarks.machine import describe_machine as describe_host


@dataclass(frozen=True)
class Measurement:
    """One contender in one phase."""

    contender: str
    precision: str
    phase: str
    """`training` or `inference`."""
    step_s: list[float]
    """Median seconds of a step, one for each round."""
    steps: int
    """Steps counted, in all rounds together."""
    peak_mib: float
    """Most memory: the whole process on a CPU, torch's tensors on a GPU."""


@dataclass(frozen=True)
class Comparison:
    """Ours beside the textbook's in one phase and one precision."""

    phase: str
    precision: str
    ours_images_per_s: float
    textbook_images_per_s: float
    ratio: float
    """How many times as many images a second are ours: the median of the rounds' ratios."""
    lowest_ratio: float
    """Of all rounds."""
    highest_ratio: float
    ours_peak_mib: float
    textbook_peak_mib: float


@dataclass(frozen=True)
class Report:
    """A whole run."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    start_mib: float
    """Memory of a contender's process before it had a net, the smallest of all."""
    measurements: list[Measurement]

    @property
    def comparisons(self) -> list[Comparison]:
        """Ours against the textbook's, training first."""
        found = {(m.contender, m.precision, m.phase): m for m in self.measurements}
        return [
            compare(
                found["ours", precision, phase],
                found["textbook", precision, phase],
                self.settings["batch_size"],
            )
            for phase in ("training", "inference")
            for precision in self.settings["precisions"]
        ]

    def write(self, path: Path) -> None:
        """Write JSON to `path` and the table next to it, as `.md`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {**asdict(self), "comparisons": [asdict(line) for line in self.comparisons]}
        path.write_text(json.dumps(content, indent=2) + "\n")
        path.with_suffix(".md").write_text(self.markdown())

    def markdown(self) -> str:
        """The table, with what is needed to read it."""
        machine, settings = self.machine, self.settings
        lines = [
            f"# Throughput on {machine['device']}",
            "",
            f"{machine['date']}, torch {machine['torch']}, Python {machine['python']}, "
            f"{machine['threads']} CPU threads, load average {machine['load']} before the run; "
            f"batches of {settings['batch_size']} images "
            f"({settings['data']}), {settings['rounds']} rounds.",
            "",
            "| what | ours, images/s | textbook, images/s | ours / textbook (rounds) "
            "| ours, peak MiB | textbook, peak MiB |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
            *(table_row(comparison) for comparison in self.comparisons),
            "",
            self._how_to_read(),
        ]
        return "\n".join(lines) + "\n"

    def _how_to_read(self) -> str:
        memory = (
            "Peak MiB is what torch allocated on the GPU."
            if self.machine["kind"] == "cuda"
            else "Peak MiB is the resident memory of the whole process, of which "
            f"{self.start_mib:.0f} are Python, torch and the data."
        )
        return (
            "Images/s are those of the median step. The contenders took turns, each in a process "
            "of its own; the ratio, a median of the rounds', holds within this one run, while "
            f"images/s change with whatever else the machine does. {memory}"
        )


def compare(ours: Measurement, textbook: Measurement, batch_size: int) -> Comparison:
    """Two measurements of the same phase and precision."""
    ratios = [theirs / own for own, theirs in zip(ours.step_s, textbook.step_s, strict=True)]
    return Comparison(
        phase=ours.phase,
        precision=ours.precision,
        ours_images_per_s=batch_size / statistics.median(ours.step_s),
        textbook_images_per_s=batch_size / statistics.median(textbook.step_s),
        ratio=statistics.median(ratios),
        lowest_ratio=min(ratios),
        highest_ratio=max(ratios),
        ours_peak_mib=ours.peak_mib,
        textbook_peak_mib=textbook.peak_mib,
    )


def table_row(line: Comparison) -> str:
    """A comparison as a row of the table."""
    return (
        f"| {line.phase}, {line.precision} | {line.ours_images_per_s:,.0f} "
        f"| {line.textbook_images_per_s:,.0f} "
        f"| {line.ratio:.2f} ({line.lowest_ratio:.2f} to {line.highest_ratio:.2f}) "
        f"| {line.ours_peak_mib:,.0f} | {line.textbook_peak_mib:,.0f} |"
    )


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What the figures will be measured on, when, and the load average that is there already."""
    on_gpu = device.type == "cuda"
    return {
        "kind": device.type,
        **describe_host(),
        "device": torch.cuda.get_device_name(device) if on_gpu else cpu_model(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_gpu else None,
    }
