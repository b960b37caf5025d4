"""What must hold when the storm is over, asked of the databases and of the files themselves."""

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from sqlalchemy import Row, create_engine, text

from chaos.kills import Kill
from chaos.losses import LOST, lost_in_a_row
from chaos.stream import Accepted
from workers.attempt import AttemptFolder
from workers.spool import points_from, spools_of

TERMINAL = ("SUCCEEDED", "FAILED", "CANCELLED")
ACCEPTANCES = ("submitted", "retry-requested", "retry-failed")
RUN_STATUS = {"SUCCEEDED": "FINISHED", "FAILED": "FAILED", "CANCELLED": "KILLED"}
POISON = 3


class Books:
    """The queue's tables, as they are, without the service's own code."""

    def __init__(self, database: str) -> None:
        engine = create_engine(database)
        with engine.connect() as connection:

            def rows(table: str, order: str) -> list[Row[Any]]:
                return list(connection.execute(text(f"SELECT * FROM {table} ORDER BY {order}")))

            self.jobs = {row.id: row for row in rows("jobs", "id")}
            self.attempts: dict[str, list[Row[Any]]] = defaultdict(list)
            for row in rows("attempts", "job_id, number"):
                self.attempts[row.job_id].append(row)
            self.events: dict[str, list[Row[Any]]] = defaultdict(list)
            for row in rows("events", "id"):
                self.events[row.job_id].append(row)
            self.keys = {row.key: row.job_id for row in rows("idempotency_keys", "key")}
        engine.dispose()


def judge_queue(
    books: Books, accepted: dict[str, Accepted], keys: set[str], kills: list[Kill], storage: Path
) -> list[str]:
    """Everything that is wrong with the queue; nothing is."""
    wrong = [f"job {job} was accepted and is lost" for job in accepted.keys() - books.jobs.keys()]
    wrong += [f"nobody submitted job {job}" for job in books.jobs.keys() - accepted.keys()]
    if Counter(books.keys.values()).most_common(1)[0][1] > 1 or set(books.keys) != keys:
        wrong.append(f"keys and jobs do not match: {books.keys}")
    struck = {(hit.job, hit.attempt) for kill in kills for hit in kill.hits}
    for job in accepted.keys() & books.jobs.keys():
        losses = lost_in_a_row(books.attempts[job], books.events[job], struck, storage)
        found = [
            *_state(books, accepted[job], losses),
            *_events(books, job),
            *_attempts(books, job),
            *_result(books, job, storage),
        ]
        wrong += [f"job {job}: {what}" for what in found]
    return wrong


def _state(books: Books, accepted: Accepted, losses: int) -> Iterable[str]:
    """One terminal state, and one that the user's wishes and the kills allow."""
    row = books.jobs[accepted.id]
    asked = accepted.asked + accepted.unsure
    if row.state not in TERMINAL:
        yield f"stuck in {row.state}, desired {row.desired}: {row.waiting_reason}"
    elif row.state == "CANCELLED" and "cancel" not in asked:
        yield "CANCELLED, and nobody asked for it"
    elif row.state == "FAILED" and not (row.reason in LOST and losses >= POISON):
        yield f"FAILED: {row.reason}: {row.evidence}; in a row it was killed {losses} times"
    if not row.run_closed and row.run_id is not None:
        yield "its run is not closed"


def _events(books: Books, job: str) -> Iterable[str]:
    """Every acceptance is followed by one terminal event before the next; the last by one too."""
    told = [event.type for event in books.events[job]]
    turns = [t for t in told if t in ACCEPTANCES or t.upper() in TERMINAL]
    for position, turn in enumerate(turns):
        if (turn in ACCEPTANCES) == bool(position % 2):
            yield f"acceptances and ends do not alternate: {turns}"
            break
    if turns[-1:] and turns[-1].upper() != books.jobs[job].state:
        yield f"the state is {books.jobs[job].state}, the last event {turns[-1]}"
    started = [event.attempt for event in books.events[job] if event.type == "started"]
    if started != list(range(1, len(started) + 1)):
        yield f"attempts started: {started}"


def _attempts(books: Books, job: str) -> Iterable[str]:
    """Without gaps, each ended before the next began."""
    rows = books.attempts[job]
    if [row.number for row in rows] != list(range(1, books.jobs[job].attempt + 1)):
        yield f"attempts {[row.number for row in rows]} of {books.jobs[job].attempt}"
    for row in rows:
        if row.ended_at is None:
            yield f"attempt {row.number} has not ended"
    for earlier, later in pairwise(rows):
        if earlier.ended_at is not None and later.created_at < earlier.ended_at:
            yield f"attempt {later.number} began before {earlier.number} ended"


def _result(books: Books, job: str, storage: Path) -> Iterable[str]:
    """The job's result is that of exactly one attempt; of a success, the last one's."""
    row = books.jobs[job]
    committed = json.loads(row.result) if row.result else None
    if committed is None:
        if row.state == "SUCCEEDED":
            yield "SUCCEEDED without a result"
        return
    matching, successes = [], []
    for number in range(1, row.attempt + 1):
        result = AttemptFolder(storage, job, number).read_result()
        if result is None:
            continue
        if result.model_dump(mode="json") == committed:
            matching.append(number)
        if result.outcome == "succeeded":
            successes.append(number)
    if len(matching) != 1:
        yield f"its result is that of the attempts {matching}"
    if row.state == "SUCCEEDED" and (matching != [row.attempt] or successes != [row.attempt]):
        yield f"of {row.attempt} attempts {successes} succeeded, {matching} left its result"
    if row.state == "SUCCEEDED":
        for name, kept in committed["checkpoints"].items():
            if not (storage / kept["path"]).is_file():
                yield f"its {name} checkpoint {kept['path']} is not there"


def judge_tracking(books: Books, mlflow: Path, storage: Path) -> tuple[list[str], int]:
    """Everything that is wrong in MLflow's database; and how many points were compared."""
    with sqlite3.connect(f"file:{mlflow}?mode=ro", uri=True) as connection:
        runs = dict(connection.execute("SELECT run_uuid, status FROM runs"))
        there: dict[str, Counter[tuple[str, int]]] = defaultdict(Counter)
        for run, key, step in connection.execute("SELECT run_uuid, key, step FROM metrics"):
            there[run][key, step] += 1
    wrong, compared = [], 0
    for job in books.jobs.values():
        if job.run_id is None:
            continue
        if runs.get(job.run_id) != RUN_STATUS.get(job.state):
            wrong.append(f"job {job.id} is {job.state}, its run {runs.get(job.run_id)}")
        counted = there[job.run_id]
        twice = [point for point, count in counted.items() if count > 1]
        if twice:
            wrong.append(f"job {job.id}: {len(twice)} points twice: {twice[:3]}")
        if job.kind == "train":
            written = _written(storage, job.id, job.attempt)
            compared += len(written)
            if missing := written - counted.keys():
                wrong.append(f"job {job.id}: {len(missing)} points missing: {sorted(missing)[:3]}")
    return wrong, compared


def _written(storage: Path, job: str, attempts: int) -> set[tuple[str, int]]:
    """Names and steps of all points that the workers of a job wrote down."""
    found = set()
    for number in range(1, attempts + 1):
        for spool in spools_of(AttemptFolder(storage, job, number).metrics):
            found |= {(point.name, point.step) for point in points_from(spool, 0)[0]}
    return found
