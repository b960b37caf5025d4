"""What `scaling` found: as JSON with every figure, and as tables in Markdown."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.scaling_race import BESIDE, ONE, SHARE, TWO, WIDE, WORKERS, Scaling
from benchmarks.spread import spread


@dataclass(frozen=True)
class ScalingReport:
    """A whole run."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    found: list[Scaling]

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
            "found": [asdict(found) | _derived(found) for found in self.found],
        }

    def markdown(self) -> str:
        """The tables, with what is needed to read them."""
        machine = self.machine
        lines = [
            f"# One worker and two on {machine['device']}",
            "",
            f"{machine['date']}, torch {machine['torch']}, Python {machine['python']}, cores "
            f"{' and '.join(map(str, machine['cores']))} of {machine['threads']}, load average "
            f"{machine['load']} before the run. Medians; in brackets the quartiles. Efficiencies "
            "were taken within each round of one alternating run and hold; images/s change with "
            "whatever else the machine does.",
        ]
        for found in self.found:
            lines += _section(found)
        return "\n".join(lines) + "\n"


def _derived(found: Scaling) -> dict[str, Any]:
    return {
        "efficiency": {
            str(images): {
                other: asdict(found.efficiency(images, other)) for other in _others(found, images)
            }
            for images in _sizes(found)
        },
        "exchange_share": {
            str(images): asdict(found.exchange_share(images)) for images in _sizes(found)
        },
    }


def _section(found: Scaling) -> list[str]:
    return ["", *_speeds(found), "", *_shares(found), "", _about_exchange(found)]


def _speeds(found: Scaling) -> Iterator[str]:
    batches = f"batches of {found.batch_size} ({found.data}), {found.rounds} rounds"
    yield f"## {found.precision}: {batches}"
    yield ""
    yield "| workers | images a step | ms a step | images/s |"
    yield "| --- | ---: | ---: | ---: |"
    order = [SHARE, ONE, WIDE, TWO, BESIDE]
    for timing in sorted(found.timings, key=lambda t: (order.index(t.name), t.images)):
        step = spread([1000 * seconds for seconds in timing.step_s])
        rate = timing.images / step.median * 1000
        yield f"| {timing.name} | {timing.images} | {step:.1f} | {rate:,.0f} |"


def _shares(found: Scaling) -> Iterator[str]:
    small, large = _sizes(found)
    yield (
        f"| images/s of two workers, as a share of | {small} images in all "
        f"| {found.batch_size} a worker |"
    )
    yield "| --- | ---: | ---: |"
    names = {
        ONE: f"twice one worker on one core ({found.batch_size}): the efficiency",
        SHARE: f"the same with half a batch ({found.batch_size // WORKERS}), a worker's share",
        WIDE: "one worker on both cores, of as many images",
        BESIDE: "two on a core each that know nothing of each other",
    }
    for other, name in names.items():
        cells = [
            f"{found.efficiency(images, other):.1%}" if other in _others(found, images) else ""
            for images in (small, large)
        ]
        yield f"| {name} | {' | '.join(cells)} |"


def _about_exchange(found: Scaling) -> str:
    small, large = (found.exchange_share(images) for images in _sizes(found))
    milliseconds = spread([1000 * seconds for seconds in found.exchange_s])
    vote = spread([1e6 * seconds for seconds in found.vote_s])
    return (
        f"The gradient has {found.gradient_bytes:,} bytes. Exchanged alone, over gloo, it takes "
        f"{milliseconds:.1f} ms: as much as {small:.1%} of a step of {found.batch_size} images, "
        f"{large:.1%} of one of {WORKERS * found.batch_size}. In a step the workers send "
        f"{' and '.join(f'{sent:,}' for sent in found.sent_bytes)} bytes, as Linux counts them. "
        f"A vote takes {vote:.0f} µs."
    )


def _sizes(found: Scaling) -> tuple[int, int]:
    return found.batch_size, WORKERS * found.batch_size


def _others(found: Scaling, images: int) -> list[str]:
    """Ways that two workers with so many images are compared with."""
    same = {ONE} | {t.name for t in found.timings if t.images == images}
    if images == found.batch_size:
        same.add(SHARE)
    return [other for other in (ONE, SHARE, WIDE, BESIDE) if other in same]
