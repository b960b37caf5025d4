"""How long things took from death to life again."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Row

from chaos.kills import Hit, Kill
from chaos.verdict import Books
from workers.attempt import AttemptFolder

ONE = "one worker killed -> training again"
SEVERAL = "one of several processes killed -> training again"
HEAD = "Ray's head killed -> training again"
SERVING = "control plane killed -> serving again"
GOALS_S = {ONE: 15.0, SEVERAL: 45.0, HEAD: 60.0, SERVING: 3.0}


@dataclass
class Times:
    """Seconds, by what was killed."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {what: [] for what in GOALS_S})
    left_out: int = 0
    """Hits whose mending a later kill or the user disturbed, so that their time says nothing."""

    def add(self, other: "Times") -> None:
        """Take in another storm's."""
        for what, seconds in other.seconds.items():
            self.seconds[what] += seconds
        self.left_out += other.left_out

    def rows(self) -> list[dict[str, Any]]:
        """Percentiles beside their goals."""
        return [
            {
                "what": what,
                "n": len(seconds),
                "p50_s": _percentile(seconds, 50),
                "p99_s": _percentile(seconds, 99),
                "goal_s": GOALS_S[what],
            }
            for what, seconds in self.seconds.items()
        ]


def measure(kills: list[Kill], books: Books, storage: Path) -> Times:
    """The times of all kills that nothing else disturbed."""
    times = Times()
    for kill in kills:
        if kill.kind == "control plane":
            if kill.serving_again_s is not None:
                times.seconds[SERVING].append(kill.serving_again_s)
            continue
        for hit in kill.hits:
            if hit.workers == 0 or not hit.training:
                continue  # a search's driver has no step of its own
            seconds = _training_again(kill, hit, kills, books, storage)
            if seconds is None:
                times.left_out += 1
            else:
                times.seconds[_row(kill, hit)].append(seconds)
    return times


def _row(kill: Kill, hit: Hit) -> str:
    if kill.kind in ("gcs", "head"):
        return HEAD
    return ONE if hit.workers == 1 else SEVERAL


def _training_again(
    kill: Kill, hit: Hit, kills: list[Kill], books: Books, storage: Path
) -> float | None:
    progress = AttemptFolder(storage, hit.job, hit.attempt + 1).read_progress()
    if progress is None or progress.first_step_at is None:
        return None
    again = progress.first_step_at
    if any(kill.at < other.at < again and _disturbs(other, hit) for other in kills):
        return None
    between = [event for event in books.events[hit.job] if kill.at - 5 < event.at < again]
    if any(event.type.endswith("-requested") or _backs_off(event) for event in between):
        return None
    return again - kill.at


def _disturbs(kill: Kill, hit: Hit) -> bool:
    """Whether a later kill keeps this job from being mended: any but that of another job."""
    return kill.kind not in ("worker", "together") or hit.job in {h.job for h in kill.hits}


def _backs_off(event: Row[Any]) -> bool:
    """Whether the queue waits on purpose: the attempt was not the first to be lost for nothing."""
    return event.type == "requeued" and bool(json.loads(event.data).get("delay_s"))


def _percentile(seconds: list[float], percent: int) -> float | None:
    """The smallest time that so many percent of all do not exceed."""
    if not seconds:
        return None
    place = math.ceil(len(seconds) * percent / 100) - 1
    return round(sorted(seconds)[max(0, place)], 2)


def table(rows: Iterable[dict[str, Any]]) -> str:
    """The rows for people."""
    lines = ["| | n | p50 | p99 | goal |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        p50, p99 = (
            "-" if row[name] is None else f"{row[name]:.1f} s" for name in ("p50_s", "p99_s")
        )
        lines.append(f"| {row['what']} | {row['n']} | {p50} | {p99} | {row['goal_s']:.0f} s |")
    return "\n".join(lines)
