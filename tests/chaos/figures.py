"""How long things took from death to life again."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.kills import Hit, Kill
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


def measure(kills: list[Kill], events: Mapping[str, Sequence[Any]], storage: Path) -> Times:
    """The times of all kills that nothing else disturbed.

    Args:
        kills: All of the storm.
        events: The queue's, by job.
        storage: Where the attempts' folders are.
    """
    times = Times()
    for kill in kills:
        if kill.kind == "control plane":
            if kill.serving_again_s is not None:
                times.seconds[SERVING].append(kill.serving_again_s)
            continue
        for hit in kill.hits:
            if hit.workers == 0 or not hit.training:
                continue  # a search's driver has no step of its own
            seconds = _training_again(kill, hit, kills, events[hit.job], storage)
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
    kill: Kill, hit: Hit, kills: list[Kill], events: Sequence[Any], storage: Path
) -> float | None:
    """Seconds until the job trains again; None where more than this kill kept it from that."""
    again = _trains_at(hit, events, storage)
    if again is None:
        return None
    if any(kill.at < other.at < again and _disturbs(other, hit) for other in kills):
        return None
    between = [event for event in events if kill.at - 5 < event.at < again]
    if any(event.type.endswith("-requested") or _backs_off(event, hit) for event in between):
        return None
    return again - kill.at


def _trains_at(hit: Hit, events: Sequence[Any], storage: Path) -> float | None:
    """When the first later attempt that trains did its first step; those before were lost too."""
    for event in events:
        if event.type == "started" and event.attempt > hit.attempt:
            progress = AttemptFolder(storage, hit.job, event.attempt).read_progress()
            if progress is not None and progress.first_step_at is not None:
                return progress.first_step_at
    return None


def _disturbs(kill: Kill, hit: Hit) -> bool:
    """Whether a later kill keeps this job from being mended: any but that of another job."""
    return kill.kind not in ("worker", "together") or hit.job in {h.job for h in kill.hits}


def _backs_off(event: Any, hit: Hit) -> bool:
    """Whether the queue waits on purpose: the attempt was not the first to be killed for nothing.

    Where it waits since a later attempt was lost by itself, that is part of the time.
    """
    mine = event.type == "requeued" and event.attempt == hit.attempt
    return mine and bool(json.loads(event.data).get("delay_s"))


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
