"""What must hold after every step, looked up by SQL and compared with what was there before."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Row, text

from proofs.work import Achieving, Head, Work
from service.queue.job import State
from service.queue.store import Store
from service.testing.mlflow import FakeMlflow
from service.testing.worker import Commit

STATE_AFTER = {
    "submitted": "QUEUED",
    "started": "RUNNING",
    "requeued": "QUEUED",
    "unpaused": "QUEUED",
    "retry-requested": "QUEUED",
    "retry-failed": "QUEUED",
    "paused": "PAUSED",
    "succeeded": "SUCCEEDED",
    "failed": "FAILED",
    "cancelled": "CANCELLED",
}
"""Events that change a job's state."""
DESIRED_AFTER = {
    "submitted": "run",
    "retry-requested": "run",
    "retry-failed": "run",
    "resume-requested": "run",
    "pause-requested": "pause",
    "cancel-requested": "cancel",
    "delete-requested": "delete",
}
"""Events that change what the user wants."""
REUSED = 300
"""SQLite gives the newest events' ids again when their job is deleted: so far back is looked."""
TERMINAL = {state.value for state in State if state.terminal}
REOPENED = {"retry-requested", "retry-failed"}
AFTER_THE_END = REOPENED | {"delete-requested"}
"""What alone may happen to a job that has ended."""


class Worker(Protocol):
    """A process of an attempt."""

    job: str
    attempt: int
    done: bool


class Workers(Achieving, Protocol):
    """All that were started, and what they committed."""

    ledger: list[Commit]
    storage: Path

    def living_workers(self) -> Sequence[Worker]:
        """Those that run."""


@dataclass
class Entry:
    """A job, as its history tells of it."""

    state: str = ""
    desired: str = ""
    attempt: int = 0
    ends: int = 0
    retries: int = 0
    deleted: bool = False
    had_folder: bool = False
    """Whether there were files of it when it was deleted, or later."""
    forgotten: bool = False
    """It was deleted, and nothing of it is left."""
    frozen: tuple[Any, ...] | None = None
    """The row as it was when the job ended."""
    result: str | None = None


@dataclass
class Books:
    """The record of all accepted jobs; `check` compares it with the database."""

    store: Store
    workers: Workers
    mlflow: FakeMlflow
    ray: Head
    jobs: dict[str, Entry] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    """Breaches of the promise, by kind; and what was done."""
    last_event: int = 0
    replayed: set[tuple[int, str]] = field(default_factory=set)
    strict: bool = True
    """Whether no process may live on beside its successor, or after its job's end. Otherwise,
    where a replica slept, such a process must at least be fenced."""

    def __post_init__(self) -> None:
        self.work = Work(self.workers, self.ray, self._breach)

    def lose_head(self) -> None:
        """The head dies now."""
        self.check()
        running = [(id, e.attempt) for id, e in self.jobs.items() if e.state == "RUNNING"]
        self.work.orphans.update(running)

    def accept(self, job_id: str, key: str | None) -> None:
        """A job was accepted, or found by its key."""
        self.jobs.setdefault(job_id, Entry())
        if key is not None:
            known = self.keys.setdefault(key, job_id)
            self._breach("twice accepted", known != job_id, f"{key}: {known} and {job_id}")

    def check(self) -> None:
        """Raises AssertionError at the first breach."""
        with self.store.engine.connect() as connection:
            events = connection.execute(
                text(
                    "SELECT id, job_id, attempt, type, message, data FROM events "
                    "WHERE id > :last ORDER BY id"
                ),
                {"last": self.last_event - REUSED},
            ).all()
            rows = connection.execute(
                text(
                    "SELECT id, kind, state, desired, attempt, version, reason, evidence, result, "
                    "losses, finished_at, "
                    "(SELECT count(*) FROM attempts WHERE job_id = jobs.id) AS made, "
                    "(SELECT max(number) FROM attempts WHERE job_id = jobs.id) AS newest, "
                    "(SELECT count(*) FROM attempts WHERE job_id = jobs.id AND ended_at IS NULL) "
                    "AS open_attempts FROM jobs"
                )
            ).all()
        self.work.check_starts()
        for event in events:
            if (event.id, event.job_id) not in self.replayed:
                self._replay(event)
        found = {row.id for row in rows}
        for job_id, entry in self.jobs.items():
            lost = job_id not in found and not entry.deleted
            self._breach("lost", lost, f"job {job_id} is not in the database any more")
            if entry.deleted and not entry.forgotten:
                self._check_deleted(job_id, entry, job_id in found)
        for row in rows:
            self._check_row(row)
        self._check_processes({row.id: row for row in rows})

    def _replay(self, event: Row[Any]) -> None:
        self.last_event = event.id
        self.replayed.add((event.id, event.job_id))
        entry = self.jobs.setdefault(event.job_id, Entry())
        what = f"job {event.job_id}: event {event.type} of attempt {event.attempt}"
        ended = entry.state in TERMINAL and event.type not in AFTER_THE_END
        self._breach("changed after its end", ended, what)
        if event.type == "started":
            entry.attempt += 1
        self._breach("stale change", event.attempt != entry.attempt, f"{what}, not {entry.attempt}")
        entry.state = STATE_AFTER.get(event.type, entry.state)
        entry.desired = DESIRED_AFTER.get(event.type, entry.desired)
        entry.ends += event.type in ("succeeded", "failed", "cancelled")
        if event.type in REOPENED:
            entry.retries += 1
            entry.frozen = None
        entry.deleted = entry.deleted or event.type == "delete-requested"
        self.work.replay(event)

    def _check_deleted(self, job_id: str, entry: Entry, has_row: bool) -> None:
        """MLflow has heard of its end before anything of it is gone."""
        has_folder = (self.workers.storage / "jobs" / job_id).exists()
        entry.had_folder = entry.had_folder or has_folder
        entry.forgotten = not (has_row or has_folder)
        vanishes = not has_row or (entry.had_folder and not has_folder)
        runs = self.runs_of(job_id)
        left_open = bool(runs) and all(status == "RUNNING" for status in runs)
        what = f"job {job_id} was deleted, and its run is RUNNING"
        self._breach("run left open", vanishes and left_open, what)

    def runs_of(self, job_id: str) -> list[str]:
        """The statuses of a job's runs in MLflow: of one, unless two replicas made it at once."""
        runs = self.mlflow.runs.values()
        return [run.status for run in runs if run.tags["caps.job"] == job_id]

    def _check_row(self, row: Row[Any]) -> None:
        entry = self.jobs[row.id]
        what = f"job {row.id} ({row.state}, attempt {row.attempt})"
        told = (entry.state, entry.desired, entry.attempt)
        silent = (row.state, row.desired, row.attempt) != told
        self._breach("change without an event", silent, f"{what}: its events tell {told}")
        gap = row.made != row.attempt or (row.newest or 0) != row.attempt
        self._breach("gap", gap, f"{what} has {row.made} attempts up to {row.newest}")
        open_ones = row.open_attempts != (row.state == "RUNNING")
        self._breach("open attempt", open_ones, f"{what}: {row.open_attempts} have not ended")
        terminal = row.state in TERMINAL
        twice = entry.ends - entry.retries != terminal
        self._breach("double commit", twice, f"{what}: {entry.ends} ends, {entry.retries} retries")
        self._check_result(row, entry, what)
        if not terminal:
            if row.kind == "train":  # what a played search gains is in no trial's folder
                self.work.check_losses(row)
            return
        now = (row.state, row.reason, row.evidence, row.result, row.attempt, row.finished_at)
        entry.frozen = entry.frozen or now
        self._breach(
            "changed after its end", entry.frozen != now, f"{what}: {entry.frozen}, then {now}"
        )

    def _check_result(self, row: Row[Any], entry: Entry, what: str) -> None:
        """A result that is new is the current attempt's, which had the right to write it."""
        if row.result == entry.result:
            stale = row.state == "SUCCEEDED" and row.result is None
            self._breach("stale commit", stale, f"{what} has no result")
            return
        entry.result = row.result
        numbers = json.loads(row.result)["metrics"]
        of_another = numbers["attempt"] != row.attempt
        self._breach("stale commit", of_another, f"{what} has the result of {numbers}")
        outcome = json.loads(row.result)["outcome"]
        commits = [
            commit
            for commit in self.workers.ledger
            if (commit.job, commit.attempt, commit.what) == (row.id, row.attempt, outcome)
        ]
        late = any(c.superseded for c in commits)
        self._breach("stale commit", late or not commits, f"{what}: committed by {commits}")
        self._breach("double commit", len(commits) > 1, f"{what}: committed by {commits}")

    def _check_processes(self, rows: dict[str, Row[Any]]) -> None:
        living: dict[str, list[Worker]] = {}
        for worker in self.workers.living_workers():
            if worker.done:  # it has said its last word: what stays of it can commit nothing
                continue
            living.setdefault(worker.job, []).append(worker)
        for job_id, workers in living.items():
            row = rows.get(job_id)
            what = f"job {job_id} ({row.state if row else 'deleted'}): alive are {workers}"
            able = [w for w in workers if row and w.attempt >= row.attempt]
            self._breach("two may commit", len(able) > 1, what)
            if self.strict:
                self._breach("overlap", len(workers) > 1, what)
                ended = row is None or row.state != "RUNNING"
                self._breach("alive after its attempt's end", ended, what)

    def _breach(self, kind: str, breached: bool, what: str) -> None:
        if breached:
            self.counts[kind] += 1
            raise AssertionError(f"{kind}: {what}")
