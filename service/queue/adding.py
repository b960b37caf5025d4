"""New jobs: several submissions in one transaction, each accepted once for its key."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, insert, select, tuple_

from service.errors import JobDeletedError, JobNotFoundError, KeyReusedError
from service.queue.job import AnySpec, Desired, Job, Kind, State
from service.queue.rows import get_job, new_ids
from service.queue.tables import clock, events, idempotency_keys, job_labels, jobs
from workers.search_specs import SearchSpec


@dataclass(frozen=True)
class Submission:
    """What a user wants to be run. What is needed of it in a transaction is made before."""

    spec: AnySpec
    owner: str
    key: str | None
    """The Idempotency-Key, if one came with it."""
    request: str | None = None
    """What was asked for, where that is not the specification itself."""
    text: str = field(init=False)
    """The specification as JSON, with all its defaults."""
    digest: str = field(init=False)
    """Two submissions are the same where the request is, or all fields are, given or left out.
    Empty without a key."""

    def __post_init__(self) -> None:
        text = self.spec.model_dump_json()
        object.__setattr__(self, "text", text)
        digest = "" if self.key is None else digest_of(self.request or text)
        object.__setattr__(self, "digest", digest)

    @property
    def name(self) -> tuple[str, str | None]:
        """By which it is accepted once."""
        return self.owner, self.key


@dataclass(frozen=True)
class Submitted:
    """What became of a submission."""

    job: Job
    replayed: bool
    """Whether an earlier submission with this key has queued the job."""


Outcome = Submitted | Exception


def add_all(connection: Connection, submissions: Sequence[Submission]) -> list[Outcome]:
    """Queue what is new; the outcome of each, or the error that tells what is wrong with it.

    Raises IntegrityError where another transaction has just taken an id or a key.
    """
    known = _known(connection, [s.name for s in submissions if s.key is not None])
    first = {s.name: s for s in reversed(submissions) if s.key and s.name not in known}
    new = [s for s in submissions if s.key is None or first.get(s.name) is s]
    added = dict(zip(map(id, new), _insert(connection, new), strict=True))
    outcomes: list[Outcome] = []
    for submission in submissions:
        if id(submission) in added:
            outcomes.append(Submitted(added[id(submission)], replayed=False))
        elif submission.name in first:
            original = first[submission.name]
            outcomes.append(_repeated(submission, original.digest, added[id(original)]))
        else:
            outcomes.append(
                _of_before(connection, submission.key, submission.digest, *known[submission.name])
            )
    return outcomes


def digest_of(request: str) -> str:
    """By which a repeated request is known; of a JSON document the order of fields is nothing."""
    with suppress(ValueError):
        request = json.dumps(json.loads(request), sort_keys=True)
    return hashlib.sha256(request.encode()).hexdigest()


def find_keyed(connection: Connection, owner: str, key: str, digest: str) -> Job | None:
    """The job that the same submission made before.

    Raises KeyReusedError where the key came with another request, JobDeletedError.
    """
    known = _known(connection, [(owner, key)]).get((owner, key))
    if known is None:
        return None
    outcome = _of_before(connection, key, digest, *known)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome.job


def _known(
    connection: Connection, names: Sequence[tuple[str, str | None]]
) -> dict[tuple[str, str | None], tuple[str, str]]:
    """Digest and job of the keys that came before."""
    if not names:
        return {}
    keys = idempotency_keys.c
    query = select(idempotency_keys).where(tuple_(keys.owner, keys.key).in_(names))
    return {(row.owner, row.key): (row.digest, row.job_id) for row in connection.execute(query)}


def _of_before(
    connection: Connection, key: str | None, digest: str, known_digest: str, job_id: str
) -> Outcome:
    if digest != known_digest:
        return _reused(key, job_id)
    try:
        return Submitted(get_job(connection, job_id), replayed=True)
    except JobNotFoundError:
        return JobDeletedError(f"job {job_id} was deleted")


def _repeated(submission: Submission, digest: str, job: Job) -> Outcome:
    """Of two with the same key at the same time."""
    if submission.digest != digest:
        return _reused(submission.key, job.id)
    return Submitted(job, replayed=True)


def _reused(key: str | None, job_id: str) -> KeyReusedError:
    return KeyReusedError(f"Idempotency-Key {key or '':.60} is that of job {job_id}")


def _insert(connection: Connection, submissions: Sequence[Submission]) -> list[Job]:
    if not submissions:
        return []
    now = float(connection.execute(select(clock())).scalar_one())
    ids = new_ids(now, len(submissions))
    added = [_job(job_id, s, now) for job_id, s in zip(ids, submissions, strict=True)]
    pairs = list(zip(added, submissions, strict=True))
    connection.execute(insert(jobs), [_row(job, submission) for job, submission in pairs])
    if labels := [row for job in added for row in _labels(job)]:
        connection.execute(insert(job_labels), labels)
    if keys := [_key(job, submission) for job, submission in pairs if submission.key is not None]:
        connection.execute(insert(idempotency_keys), keys)
    connection.execute(insert(events), [_event(job) for job in added])
    return added


def _job(job_id: str, submission: Submission, now: float) -> Job:
    return Job(
        id=job_id,
        spec=submission.spec,
        desired=Desired.RUN,
        state=State.QUEUED,
        attempt=0,
        version=1,
        created_at=now,
        updated_at=now,
        owner=submission.owner,
    )


def _row(job: Job, submission: Submission) -> dict[str, Any]:
    spec = job.spec
    origin = job.training.init_from
    return {
        "id": job.id,
        "kind": (Kind.SEARCH if isinstance(spec, SearchSpec) else Kind.TRAIN).value,
        "name": spec.name,
        "experiment": spec.experiment,
        "priority": spec.priority,
        "spec": submission.text,
        "desired": job.desired.value,
        "state": job.state.value,
        "attempt": job.attempt,
        "version": job.version,
        "created_at": job.created_at,
        "updated_at": job.updated_at,
        "evidence": job.evidence,
        "waiting_reason": job.waiting_reason,
        "errors": job.errors,
        "losses": job.losses,
        "run_closed": job.run_closed,
        "owner": job.owner,
        "init_job": origin.job if origin else None,
    }


def _labels(job: Job) -> Iterator[dict[str, str]]:
    for key, value in job.spec.labels.items():
        yield {"job_id": job.id, "key": key, "value": value}


def _key(job: Job, submission: Submission) -> dict[str, Any]:
    row = {"owner": job.owner, "key": submission.key, "digest": submission.digest}
    return {**row, "job_id": job.id, "created_at": job.created_at}


def _event(job: Job) -> dict[str, Any]:
    message = f"submitted as {job.spec.name!r}"
    row = {"job_id": job.id, "attempt": 0, "at": job.created_at, "type": "submitted"}
    return {**row, "message": message, "data": json.dumps({})}
