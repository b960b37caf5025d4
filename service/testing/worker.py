"""A worker that is played: it keeps an attempt's folder as a real one does, and trains nothing."""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from service.testing.checkpoints import PlayedCheckpoints, newest_of
from service.testing.clock import FakeClock
from service.testing.ray import KILLED
from workers.attempt import (
    AttemptFolder,
    Outcome,
    ProcessRecord,
    Progress,
    Reason,
    Result,
    Resumed,
)
from workers.crash import crashing
from workers.sentinel import LEAVE_WITHIN_S
from workers.spool import Spool

TERMINATED = -15


@dataclass(frozen=True)
class Commit:
    """What a worker left behind for good."""

    job: str
    attempt: int
    pid: int
    step: int
    what: str
    """`checkpoint`, or the outcome of a result."""
    superseded: bool
    """Whether a later attempt was there already."""


@dataclass(frozen=True)
class Start:
    """Where an attempt began, and where it could have."""

    job: str
    attempt: int
    step: int
    left: int
    """The highest step of a whole checkpoint that earlier attempts had left by then."""


@dataclass
class Fakes:
    """All played processes of a test, and what they committed."""

    clock: FakeClock
    storage: Path
    here: str = "here"
    """The host whose processes the control plane sees."""
    workers: "list[FakeWorker]" = field(default_factory=list)
    ledger: list[Commit] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    left: dict[str, int] = field(default_factory=dict)
    """By job, the highest step of a whole checkpoint. Nothing but `damage` may lower it."""
    gains: set[tuple[str, int]] = field(default_factory=set)
    """Job and number of the attempts that left a checkpoint newer than where they began."""
    _living: "list[FakeWorker]" = field(default_factory=list)

    def start(self, job: str, attempt: int, host: str, **habits: object) -> "FakeWorker":
        """Start the process of an attempt; `habits` are the worker's fields."""
        pid = 1000 + len(self.workers)
        folder = AttemptFolder(self.storage, job, attempt)
        worker = FakeWorker(self, folder, job, attempt, host, pid, **habits)  # type: ignore[arg-type]
        self.workers.append(worker)
        self._living.append(worker)
        return worker

    def living_workers(self) -> "list[FakeWorker]":
        """Those that run."""
        self._living = [worker for worker in self._living if worker.lives]
        return self._living

    def damage(self, job: str) -> bool:
        """Spoil the newest checkpoint of a job; False where it has none."""
        nobody = AttemptFolder(self.storage, job, 1_000_000)
        found = newest_of(nobody.earlier())
        newest = found.newest() if found else None
        if newest is None:
            return False
        newest.write_bytes(b"spoilt")
        found = newest_of(nobody.earlier())
        self.left[job] = (found.newest_step() if found else None) or 0
        return True

    # What `workers.liveness` tells of real processes.

    def living(self, records: Iterable[ProcessRecord]) -> list[ProcessRecord]:
        """Those of the control plane's host that still run."""
        return [r for r in records if r.host == self.here and self._of(r).lives]

    def elsewhere(self, records: Iterable[ProcessRecord]) -> list[ProcessRecord]:
        """Those of other hosts."""
        return [r for r in records if r.host != self.here]

    def kill(self, record: ProcessRecord) -> bool:
        """SIGKILL; False where it was gone."""
        if record.host != self.here:
            raise ValueError(f"process {record.pid} is of host {record.host}")
        worker = self._of(record)
        lived = worker.lives
        worker.kill()
        return lived

    def _of(self, record: ProcessRecord) -> "FakeWorker":
        return self.workers[record.pid - 1000]


@dataclass
class FakeWorker:
    """One process. Nothing happens but by `act` and by what befalls it."""

    fakes: Fakes = field(repr=False)
    folder: AttemptFolder = field(repr=False)
    job: str
    attempt: int
    host: str
    pid: int
    steps: int = 6
    """Steps of the whole job."""
    checkpoint_every: int = 2
    deaf: bool = False
    """Hangs in its training: hears no flag and no SIGTERM. Its sentinel looks on."""
    frozen: bool = False
    """Does nothing at all, as after SIGSTOP."""
    starts_at: float = 0.0
    """When it has loaded its libraries and does its first act, by `FakeClock.passed`."""
    lingers: bool = False
    """Stays when its result is written, until it is told to go."""
    fails_at: int | None = None
    """The step at which the training meets an error."""
    dies_at: int | None = None
    """The step at which the process dies without a word."""
    spools: bool = False
    """Leaves a metric point a step, and sends none."""
    together: bool = False
    """Leaves the outcome that one of several workers leaves for their driver."""
    exit_code: int | None = None
    done: bool = False
    step: int = 0
    begun: bool = False
    terminated: bool = False
    superseded_since: float | None = None
    resumed: Resumed | None = None
    began_at: int = 0
    """The step from which it went on."""

    @property
    def lives(self) -> bool:
        """Whether it still runs."""
        return self.exit_code is None

    @property
    def superseded(self) -> bool:
        """Whether a later attempt exists."""
        return self.folder.superseded()

    @property
    def checkpoints(self) -> PlayedCheckpoints:
        """Those of this attempt."""
        return PlayedCheckpoints(self.folder)

    def terminate(self) -> None:
        """SIGTERM: a flag that it looks at."""
        self.terminated = True

    def kill(self) -> None:
        """SIGKILL."""
        self.end(KILLED)

    def end(self, exit_code: int) -> None:
        """Be gone."""
        if self.exit_code is None:
            self.exit_code = exit_code

    # ------------------------------------------------------------------------- by itself

    def act(self) -> None:
        """Do the next little thing: begin, look at the flags, train a step."""
        if not self.lives or self.frozen or self.fakes.clock.passed() < self.starts_at:
            return
        if not self.begun:
            self._begin()
        if not self.lives or self._killed_by_sentinel():
            return
        if self.deaf or (self.done and not self.terminated):
            return
        if self.done:
            self.end(0)
            return
        if self._leaves():
            return
        if self.step < self.steps:  # a resumed training may have come to its end before
            self._train()
        if self.lives and not self.done and self.step >= self.steps:
            self._finish()

    def _train(self) -> None:
        self.step += 1
        if self.spools:
            self._spool_point()
        if self.step == self.dies_at:
            self.kill()
            return
        if self.step == self.fails_at:
            self.leave("failed", Reason.ERROR, f"an error at step {self.step}")
            return
        if self.step % self.checkpoint_every == 0:
            self._checkpoint()
        self._tell("training")

    def _finish(self) -> None:
        """Keep what is to stay, of this attempt alone, and say so."""
        if self.checkpoints.newest_step() != self.step:
            self._checkpoint()
        self.checkpoints.prune()
        for earlier in self.folder.earlier():
            shutil.rmtree(earlier.checkpoints, ignore_errors=True)
        self.leave("succeeded", Reason.COMPLETED)

    def leave(self, outcome: Outcome, reason: Reason, evidence: str = "") -> None:
        """Write the result, and go. A superseded worker leaves none."""
        if not self.lives or self.done:
            return
        if self.superseded:
            self.end(1)
            return
        numbers = {"attempt": float(self.attempt), "pid": float(self.pid)}
        evidence = evidence or f"{outcome} at step {self.step} of {self.steps}"
        result = Result(
            outcome=outcome,
            reason=reason,
            evidence=evidence,
            metrics=numbers,
            checkpoints={} if outcome == "failed" else self.checkpoints.references(),
            step=self.step,
        )
        if self.together:
            self.folder.write_outcome(0, result)
        self._commit(outcome)
        self.folder.write_result(result)
        self._date(self.folder.path / "result.json")
        self.done = True
        if not self.lingers:
            self.end(1 if outcome == "failed" else 0)

    def _begin(self) -> None:
        record = ProcessRecord(host=self.host, pid=self.pid, created=float(self.pid))
        self.folder.register(record)
        if self.superseded:
            self.kill()
            return
        self.folder.accept_attempt()
        self.begun = True
        self._resume()
        self._tell("starting")

    def _resume(self) -> None:
        """Go on from the newest whole checkpoint, and take the best one over."""
        left = self.fakes.left.get(self.job, 0)
        found = newest_of([self.folder, *self.folder.earlier()])
        if found is not None:
            self.step = found.newest_step() or 0
            self.resumed = Resumed(attempt=int(found.folder.path.name), step=self.step)
            self.checkpoints.take_best(found)
        self.began_at = self.step
        self.fakes.starts.append(Start(self.job, self.attempt, self.step, left))

    def _killed_by_sentinel(self) -> bool:
        now = self.fakes.clock.passed()
        if self.superseded and self.superseded_since is None:
            self.superseded_since = now
        late = self.superseded_since is not None and now - self.superseded_since > LEAVE_WITHIN_S
        if self.folder.kill_requested() or late:
            self.kill()
        return not self.lives

    def _leaves(self) -> bool:
        if self.superseded:
            self.end(1)
        elif (asked := self.folder.stop_requested()) is not None:
            self._checkpoint()
            if asked == "pause":
                self.leave("paused", Reason.PAUSED)
            else:
                self.leave("cancelled", Reason.CANCELLED)
        elif self.terminated:
            self._checkpoint()
            self.leave("interrupted", Reason.INTERRUPTED, "SIGTERM")
        return self.done or not self.lives

    def _checkpoint(self) -> None:
        self._commit("checkpoint")
        with crashing("worker.checkpoint"):
            self.checkpoints.save(self.step)
            self.fakes.left[self.job] = max(self.step, self.fakes.left.get(self.job, 0))
            if self.step > self.began_at:
                self.fakes.gains.add((self.job, self.attempt))

    def _spool_point(self) -> None:
        earlier = [folder.metrics for folder in self.folder.earlier()]
        spool = Spool(self.folder.metrics, earlier)
        spool.append({"loss": 1.0 / self.step}, self.step)
        spool.close()

    def _tell(self, phase: str) -> None:
        progress = Progress(
            phase="starting" if phase == "starting" else "training",
            step=self.step,
            steps=self.steps,
            resumed=self.resumed,
        )
        self.folder.write_progress(progress)
        self._date(self.folder.path / "progress.json")

    def _commit(self, what: str) -> None:
        self.fakes.ledger.append(
            Commit(self.job, self.attempt, self.pid, self.step, what, self.superseded)
        )

    def _date(self, file: Path) -> None:
        """A file's time is that of the test's clock."""
        now = self.fakes.clock.wall()
        os.utime(file, (now, now))
