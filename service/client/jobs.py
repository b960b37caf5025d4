"""The client's calls about jobs of all kinds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from service.api.views import (
    AttemptPage,
    AttemptView,
    EventPage,
    EventView,
    JobItem,
    JobPage,
    JobView,
)
from service.client.transport import Transport
from workers.specs import TrainSpec


@dataclass(frozen=True)
class LogChunk:
    """Some of an attempt's log."""

    content: bytes
    attempt: int
    next_offset: int
    end: bool
    """Whether this attempt writes no more and all was read."""

    @property
    def text(self) -> str:
        """The content; chunks never end within a character."""
        return self.content.decode(errors="replace")


class JobCalls(Transport):
    """Submit, look, steer."""

    def submit(self, spec: TrainSpec | Mapping[str, Any], *, key: str | None = None) -> JobView:
        """Queue a job; what is left out of a mapping has the paper's values.

        While the API is away this is tried again for `submit_patience` seconds. All tries carry
        one Idempotency-Key, so the job is accepted once; `key` makes that hold also when your own
        program is started again.
        """
        return self._parsed(self._submit("/v1/jobs", spec, key), JobView.model_validate_json)

    def job(self, job_id: str) -> JobView:
        """Look at a job."""
        return self._parsed(self._call("GET", _path(job_id)), JobView.model_validate_json)

    def cancel(self, job_id: str) -> JobView:
        """Ask a job to end; repeat it as you like."""
        return self._verb(job_id, "cancel")

    def pause(self, job_id: str) -> JobView:
        """Ask a job to leave a checkpoint and its place; repeat it as you like."""
        return self._verb(job_id, "pause")

    def resume(self, job_id: str) -> JobView:
        """Let a paused job go on; repeat it as you like."""
        return self._verb(job_id, "resume")

    def retry(self, job_id: str) -> JobView:
        """Queue a job that failed or was cancelled again; it goes on from its checkpoint."""
        return self._verb(job_id, "retry")

    def delete(self, job_id: str) -> None:
        """Forget a job that has ended, with all its files; its MLflow run stays."""
        self._call("DELETE", _path(job_id))

    def jobs(
        self,
        *,
        experiment: str | None = None,
        labels: Mapping[str, str] | None = None,
        states: Sequence[str] = (),
        kinds: Sequence[str] = (),
        owner: str | None = None,
        page_size: int = 50,
    ) -> Iterator[JobItem]:
        """All jobs that fit, the newest first, read page by page; searches are jobs too."""
        query = filters(experiment, labels, states, page_size, owner) | {"kind": list(kinds)}
        while True:
            answer = self._call("GET", "/v1/jobs", params=query)
            page = self._parsed(answer, JobPage.model_validate_json)
            yield from page.jobs
            if page.next_cursor is None:
                return
            query["cursor"] = page.next_cursor

    def events(self, job_id: str, after: int = 0) -> Iterator[EventView]:
        """A job's history up to now, in order."""
        while True:
            answer = self._call("GET", _path(job_id, "events"), params={"after": after})
            page = self._parsed(answer, EventPage.model_validate_json)
            if not page.events:
                return
            yield from page.events
            after = page.next_after

    def attempts(self, job_id: str) -> list[AttemptView]:
        """How often the job was tried, and what ended each attempt; the first one first."""
        answer = self._call("GET", _path(job_id, "attempts"))
        return self._parsed(answer, AttemptPage.model_validate_json).attempts

    def logs(self, job_id: str, offset: int = 0, attempt: int | None = None) -> LogChunk:
        """Some of an attempt's log, from a byte offset on."""
        query = {"offset": offset} | ({} if attempt is None else {"attempt": attempt})
        answer = self._call("GET", _path(job_id, "logs"), params=query)
        return self._parsed(answer, lambda content: log_chunk(content, answer.headers))

    def _verb(self, job_id: str, verb: str) -> JobView:
        answer = self._call("POST", _path(job_id, verb))
        return self._parsed(answer, JobView.model_validate_json)


def filters(
    experiment: str | None,
    labels: Mapping[str, str] | None,
    states: Sequence[str],
    limit: int,
    owner: str | None,
) -> dict[str, Any]:
    """The parameters of a list."""
    query: dict[str, Any] = {
        "label": [f"{key}={value}" for key, value in (labels or {}).items()],
        "state": list(states),
        "limit": limit,
    }
    named = {"experiment": experiment, "owner": owner}
    return query | {name: value for name, value in named.items() if value is not None}


def log_chunk(content: bytes, headers: httpx.Headers) -> LogChunk:
    """A log's answer; raises KeyError or ValueError where it is none."""
    return LogChunk(
        content=content,
        attempt=int(headers["Caps-Log-Attempt"]),
        next_offset=int(headers["Caps-Log-Offset"]),
        end=headers["Caps-Log-End"] == "true",
    )


def _path(job_id: str, *below: str) -> str:
    return "/".join(["/v1/jobs", quote(job_id, safe=""), *below])
