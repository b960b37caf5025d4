"""Who is killed, and what it did at the time."""

import contextlib
import random
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

import psutil

from service.stack.processes import tagged
from support.stack import Stack
from workers.attempt import AttemptFolder
from workers.liveness import living

Kind = Literal["worker", "together", "control plane", "gcs", "head", "up"]

PLAN: dict[Kind, int] = {
    "worker": 12,
    "together": 6,
    "control plane": 6,
    "gcs": 2,
    "head": 3,
    "up": 2,
}
"""Kills of each kind on each database."""
PAUSE_S: dict[Kind, tuple[float, float]] = {
    "worker": (1.0, 16.0),
    "together": (1.0, 22.0),
    "control plane": (0.2, 9.0),
    "gcs": (12.0, 50.0),
    "head": (12.0, 50.0),
    "up": (0.5, 12.0),
}
"""How long to wait after each, between these: now and then the next blow falls while the last is
being mended, mostly after."""
ANY_TIME = 0.15
"""The share of kills that spare nobody. The others wait until there is a checkpoint: three deaths
without one make a poison job."""
DAEMONS = ("/gcs_server", "/raylet/raylet", "ray start", "/dashboard/dashboard.py")


@dataclass(frozen=True)
class Hit:
    """An attempt that a kill has hit."""

    job: str
    attempt: int
    workers: int
    training: bool
    """Whether it had begun to train, and not begun to evaluate."""
    saved: bool
    """Whether it had left a checkpoint."""


@dataclass
class Kill:
    """One SIGKILL, or several at once."""

    kind: Kind
    at: float
    pids: list[int]
    hits: list[Hit] = field(default_factory=list)
    serving_again_s: float | None = None
    """Of a control plane: until it answered."""


def plan(
    chance: random.Random, share: float = 1.0, only: Collection[Kind] = tuple(PLAN)
) -> list[Kind]:
    """An order of kills; `share` of them all, at least one of each kind in `only`."""
    kinds: list[Kind] = []
    for kind in only:
        kinds += [kind] * max(1, round(PLAN[kind] * share))
    chance.shuffle(kinds)
    return kinds


class Killer:
    """Finds victims in a stack and kills them."""

    def __init__(self, stack: Stack, chance: random.Random) -> None:
        self._stack = stack
        self._chance = chance
        self.kills: list[Kill] = []

    def strike(self, kind: Kind, spare: bool = False) -> Kill | None:
        """Kill; None where there is nobody of this kind just now.

        Args:
            kind: Whom.
            spare: Only such processes of jobs whose attempt has left a checkpoint.
        """
        victims = self._victims(kind, spare)
        if not victims:
            return None
        hits = self._hits(kind, victims)
        kill = Kill(kind, time.time(), [victim.pid for victim in victims], hits)
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        self.kills.append(kill)
        return kill

    def training(self) -> set[tuple[str, int]]:
        """Jobs and attempts that live, train, and have left a checkpoint."""
        return {(hit.job, hit.attempt) for _, hit in self._of_jobs() if hit.training and hit.saved}

    def _victims(self, kind: Kind, spare: bool) -> list[psutil.Process]:
        match kind:
            case "worker" | "together":
                return self._one_of_a_job(kind == "together", spare)
            case "control plane":
                return tagged(self._stack.home, "api")
            case "gcs":
                return self._daemons(DAEMONS[:1])
            case "head":
                return self._daemons(DAEMONS)
            case "up":
                return [psutil.Process(self._stack.process.pid)]

    def _one_of_a_job(self, together: bool, spare: bool) -> list[psutil.Process]:
        running = self._of_jobs()
        found = [p for p, hit in running if (hit.workers != 1) == together]
        if spare:
            saved = {p.pid for p, hit in running if hit.saved}
            found = [p for p in found if p.pid in saved]
        return [self._chance.choice(found)] if found else []

    def _daemons(self, names: tuple[str, ...]) -> list[psutil.Process]:
        """Ray's own; what runs for jobs is left to see for itself that they are gone."""
        found = []
        for process in tagged(self._stack.home, "ray"):
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if any(name in line for name in names):
                    found.append(process)
        return found

    def _of_jobs(self) -> list[tuple[psutil.Process, Hit]]:
        """Every living process that some current attempt has registered."""
        found = []
        for folder in current_attempts(self._stack):
            hit = look(folder)
            if hit is None:
                continue
            for record in living(folder.processes()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    found.append((psutil.Process(record.pid), hit))
        return found

    def _hits(self, kind: Kind, victims: list[psutil.Process]) -> list[Hit]:
        running = self._of_jobs()
        if kind in ("gcs", "head"):
            return list({hit.job: hit for _, hit in running}.values())
        pids = {victim.pid for victim in victims}
        return [hit for process, hit in running if process.pid in pids]


def current_attempts(stack: Stack) -> list[AttemptFolder]:
    """The newest attempt's folder of every job that has one."""
    found = []
    for place in (stack.home / "storage" / "jobs").glob("*"):
        numbers = [int(path.name) for path in place.iterdir() if path.name.isdecimal()]
        if numbers:
            found.append(AttemptFolder(stack.home / "storage", place.name, max(numbers)))
    return found


def look(folder: AttemptFolder) -> Hit | None:
    """What an attempt is about; None while its orders are being written."""
    try:
        attempt, progress = folder.read_attempt(), folder.read_progress()
    except FileNotFoundError:
        return None
    workers = 0 if attempt.kind == "search" else attempt.spec.resources.workers
    training = progress is not None and progress.phase == "training"
    begun = training and progress is not None and progress.first_step_at is not None
    of_trials = folder.path.parent.glob(f"trials/*/{attempt.attempt}/checkpoints/step-*.json")
    saved = any(folder.checkpoints.glob("step-*.json")) or any(of_trials)
    return Hit(attempt.job, attempt.attempt, workers, begun, saved)
