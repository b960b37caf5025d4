"""What `benchmarks.queue` found: JSON with every figure, a table in Markdown, and a plot."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PERCENTILES = (50, 90, 99, 99.9, 100)
COLOURS = {"postgresql": "#336791", "sqlite": "#e07b39"}


@dataclass(frozen=True)
class Line:
    """One kind of operation on one database."""

    database: str
    name: str
    clients: int
    latencies_s: list[float]
    goal_s: float | None
    """At most so much at the 99th percentile, of those on PostgreSQL."""
    seconds: float
    """From the first to the last of them."""

    def percentile(self, share: float) -> float:
        """Milliseconds that so many percent did not exceed."""
        ordered = sorted(self.latencies_s)
        return 1000 * ordered[max(0, math.ceil(len(ordered) * share / 100) - 1)]

    @property
    def rate(self) -> float:
        """Operations a second."""
        return len(self.latencies_s) / self.seconds

    def summary(self) -> dict[str, Any]:
        """Without each single latency."""
        kept = {k: v for k, v in asdict(self).items() if k != "latencies_s"}
        found = {f"p{share:g}_ms": round(self.percentile(share), 2) for share in PERCENTILES}
        return {**kept, "count": len(self.latencies_s), "rate": round(self.rate, 1), **found}


@dataclass
class Report:
    """A whole run."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    lines: list[Line] = field(default_factory=list)
    memory: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """By database: seconds, and MiB of the API's process."""
    marks: dict[str, dict[str, float]] = field(default_factory=dict)
    """By database: when the lists began, the submissions, and the end."""

    def write(self, path: Path) -> None:
        """Write JSON to `path`, the table and the plot next to it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "machine": self.machine,
            "settings": self.settings,
            "lines": [line.summary() for line in self.lines],
            "memory_mib": {name: self.levels(name) for name in self.memory},
        }
        path.write_text(json.dumps(content, indent=2) + "\n")
        path.with_suffix(".md").write_text(self.markdown())
        self.plot(path.with_suffix(".png"))

    def levels(self, database: str) -> dict[str, float]:
        """MiB of the API when the lists began, the submissions, and at the end."""
        samples = self.memory[database]
        return {
            mark: max((s for s in samples if s[0] <= at), default=samples[0])[1]
            for mark, at in self.marks[database].items()
        }

    def markdown(self) -> str:
        """The table, with what is needed to read it."""
        machine = self.machine
        lines = [
            f"# A queue of {self.settings['jobs']:,} jobs on {machine['device']}",
            "",
            f"{machine['date']}, Python {machine['python']}, {machine['threads']} CPU threads, "
            f"load average {machine['load']} before the run. Milliseconds.",
            "",
            "| what | clients | database | p50 | p99 | p99.9 | longest | a second | goal, p99 |",
            "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
            *(table_row(line) for line in self.lines),
            "",
            *(self._memory_line(database) for database in self.memory),
        ]
        return "\n".join(lines) + "\n"

    def _memory_line(self, database: str) -> str:
        levels = self.levels(database)
        return (
            f"Memory of the API on {database}: {levels['lists']:.0f} MiB after the warm-up, "
            f"{levels['submits']:.0f} after the lists, {levels['end']:.0f} after the submissions."
        )

    def plot(self, path: Path) -> None:
        """Percentiles of the three promises, and the API's memory over time."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(1, 4, figsize=(16, 4))
        titles = ("claim", "list of 50", "submit, again")
        for axis, begins in zip(axes, titles, strict=False):
            self._plot_latencies(
                axis, [line for line in self.lines if line.name.startswith(begins)]
            )
            axis.set_title(begins.partition(",")[0])
        axes[2].set_title("submit, 100 clients, again when answered")
        self._plot_memory(axes[3])
        figure.suptitle(f"{self.settings['jobs']:,} queued jobs, {self.machine['device']}")
        figure.tight_layout()
        figure.savefig(path, dpi=80)
        pyplot.close(figure)

    def _plot_latencies(self, axis: Any, lines: list[Line]) -> None:
        for database, colour in COLOURS.items():
            named = f"{database}"
            for line in lines:
                if line.database == database:
                    shares = [
                        100 * (n + 1) / len(line.latencies_s) for n in range(len(line.latencies_s))
                    ]
                    axis.plot(
                        [1000 * s for s in sorted(line.latencies_s)], shares, color=colour,
                        label=named, linewidth=1,
                    )  # fmt: skip
                    named = "_" + database
        for goal in {line.goal_s for line in lines if line.goal_s is not None}:
            axis.plot(1000 * goal, 99, "v", color="#333333", label="goal, p99")
        axis.set_xscale("log")
        axis.set_xlabel("ms")
        axis.set_ylabel("% that took no longer")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)

    def _plot_memory(self, axis: Any) -> None:
        for database, samples in self.memory.items():
            axis.plot(*zip(*samples, strict=True), color=COLOURS[database], label=database)
            for at in self.marks[database].values():
                axis.axvline(at, color=COLOURS[database], linewidth=0.5, linestyle=":")
        axis.set_ylim(bottom=0)
        axis.set_title("memory of the API")
        axis.set_xlabel("s; dotted: lists, submissions, end")
        axis.set_ylabel("MiB")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)


def table_row(line: Line) -> str:
    """A line of the table."""
    goal = f"{1000 * line.goal_s:.0f}" if line.goal_s is not None else ""
    figures = " | ".join(f"{line.percentile(share):,.1f}" for share in (50, 99, 99.9, 100))
    place = f"{line.name} | {line.clients} | {line.database}"
    return f"| {place} | {figures} | {line.rate:,.0f} | {goal} |"
