"""What `throughput` found: as JSON with every figure, and as tables in Markdown."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import throughput_tables as tables
from benchmarks.parts import PartsFound
from benchmarks.race import Race
from benchmarks.sweeps import Sweep, growth


@dataclass(frozen=True)
class Report:
    """A whole run; what was left out of it is empty."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    races: list[Race]
    parts: list[PartsFound]
    sweeps: list[Sweep]

    def write(self, path: Path) -> None:
        """Write JSON to `path` and the tables next to it, as `.md`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.content(), indent=1) + "\n")
        path.with_suffix(".md").write_text(self.markdown())

    def content(self) -> dict[str, Any]:
        """Every figure, and what follows from them."""
        return {
            "machine": self.machine,
            "settings": self.settings,
            "races": [_race(race) for race in self.races],
            "parts": [_parts(parts) for parts in self.parts],
            "sweeps": [_sweep(sweep) for sweep in self.sweeps],
        }

    def markdown(self) -> str:
        """The tables, with what is needed to read them."""
        lines = tables.heading(self.machine)
        for race in self.races:
            lines += tables.race_section(race, self.machine)
        if self.parts:
            lines += tables.parts_section(self.parts)
        for sweep in self.sweeps:
            lines += tables.sweep_section(sweep)
        return "\n".join(lines) + "\n"


def _race(race: Race) -> dict[str, Any]:
    measurements = [{**asdict(m), "images_per_s": race.images_per_s(m)} for m in race.measurements]
    return {
        **asdict(race),
        "measurements": measurements,
        "comparisons": [asdict(comparison) for comparison in race.comparisons],
        "shares": [asdict(share) for share in race.shares],
    }


def _parts(parts: PartsFound) -> dict[str, Any]:
    return {
        **asdict(parts),
        "median_s": parts.median_s,
        "shares": parts.shares,
        "routing_ratio": asdict(parts.routing_ratio),
        "routing_share": asdict(parts.routing_share),
    }


def _sweep(sweep: Sweep) -> dict[str, Any]:
    return {
        "name": sweep.name,
        "growth": asdict(growth(sweep)),
        "lines": [{**asdict(line), "images_per_s": line.images_per_s} for line in sweep.lines],
    }
