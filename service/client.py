"""The public Python client of the REST API.

>>> with CapsClient() as client:
...     job = client.submit({"dataset": {"type": "mnist-5k"}, "epochs": 3})
...     print(client.wait(job.id).result)
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from service.api.search_views import (
    ConfigurationPage,
    ConfigurationView,
    SearchItem,
    SearchPage,
    SearchView,
    TrialPage,
    TrialView,
)
from service.api.views import EventPage, EventView, FieldProblem, JobItem, JobPage, JobView, Problem
from workers.search_preview import SearchPreview
from workers.search_specs import SearchSpec
from workers.specs import TrainSpec

DEFAULT_URL = "http://127.0.0.1:8000"

Answer = TypeVar("Answer")
View = TypeVar("View", bound=JobView)


class ApiError(Exception):
    """The API refused or failed; carries the problem that it answered with."""

    def __init__(self, problem: Problem) -> None:
        self.status = problem.status
        self.code = problem.code
        self.detail = problem.detail
        self.errors: list[FieldProblem] = problem.errors
        self.hint = problem.hint
        self.request_id = problem.request_id
        super().__init__(f"{self.code}: {self.detail}")


class ApiUnreachableError(ApiError):
    """Nothing that speaks our protocol answers at the address."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(
            Problem(
                type="urn:capsnet:problem:api-unreachable",
                title="API unreachable",
                status=0,
                detail=f"no answer from {url}: {why}",
                code="api-unreachable",
                hint="`capsctl up` starts the service; CAPS_URL names another address",
            )
        )


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


def default_url() -> str:
    """CAPS_URL, else the address of the stack in CAPS_HOME, else the default port on loopback."""
    if url := os.environ.get("CAPS_URL"):
        return url
    try:
        stack = json.loads((Path(os.environ.get("CAPS_HOME", ".caps")) / "stack.json").read_text())
        return str(stack["api_url"] or DEFAULT_URL)
    except (OSError, ValueError, KeyError, TypeError):
        return DEFAULT_URL


class CapsClient:
    """Submits jobs and searches, and follows them.

    Args:
        url: Address of the API; by default that of `default_url`.
        timeout: Seconds to wait for an answer.
        patience: Seconds for which `wait` and `follow_logs` bear an API that does not answer: a
            restart of the control plane disturbs no training, nor those who watch it.
    """

    def __init__(
        self, url: str | None = None, timeout: float = 10.0, patience: float = 60.0
    ) -> None:
        self.url = (url or default_url()).rstrip("/")
        self.patience = patience
        # A proxy for the world outside can't reach this machine's own loopback.
        local = httpx.URL(self.url).host in ("127.0.0.1", "localhost", "::1")
        self._http = httpx.Client(base_url=self.url, timeout=timeout, trust_env=not local)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connections."""
        self._http.close()

    # --------------------------------------------------------------------------------- calls

    def submit(self, spec: TrainSpec | Mapping[str, Any]) -> JobView:
        """Queue a job; what is left out of a mapping has the paper's values."""
        answer = self._call("POST", "/v1/jobs", **_json(spec))
        return self._parsed(answer, JobView.model_validate_json)

    def job(self, job_id: str) -> JobView:
        """Look at a job."""
        return self._parsed(self._call("GET", _path(job_id)), JobView.model_validate_json)

    def cancel(self, job_id: str) -> JobView:
        """Ask a job to end; repeat it as you like."""
        answer = self._call("POST", _path(job_id, "cancel"))
        return self._parsed(answer, JobView.model_validate_json)

    def jobs(
        self,
        *,
        experiment: str | None = None,
        labels: Mapping[str, str] | None = None,
        states: Sequence[str] = (),
        kinds: Sequence[str] = (),
        page_size: int = 50,
    ) -> Iterator[JobItem]:
        """All jobs that fit, the newest first, read page by page; searches are jobs too."""
        query = _filters(experiment, labels, states, page_size) | {"kind": list(kinds)}
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

    def logs(self, job_id: str, offset: int = 0, attempt: int | None = None) -> LogChunk:
        """Some of an attempt's log, from a byte offset on."""
        query = {"offset": offset} | ({} if attempt is None else {"attempt": attempt})
        answer = self._call("GET", _path(job_id, "logs"), params=query)
        return self._parsed(answer, lambda content: _chunk(content, answer.headers))

    # ------------------------------------------------------------------------------ searches

    def submit_search(self, spec: SearchSpec | Mapping[str, Any]) -> SearchView:
        """Queue a search."""
        answer = self._call("POST", "/v1/searches", **_json(spec))
        return self._parsed(answer, SearchView.model_validate_json)

    def preview(self, spec: SearchSpec | Mapping[str, Any]) -> SearchPreview:
        """What a search would amount to; nothing is queued."""
        answer = self._call("POST", "/v1/searches/preview", **_json(spec))
        return self._parsed(answer, SearchPreview.model_validate_json)

    def search(self, search_id: str) -> SearchView:
        """Look at a search."""
        answer = self._call("GET", _search_path(search_id))
        return self._parsed(answer, SearchView.model_validate_json)

    def searches(
        self,
        *,
        experiment: str | None = None,
        labels: Mapping[str, str] | None = None,
        states: Sequence[str] = (),
        page_size: int = 50,
    ) -> Iterator[SearchItem]:
        """All searches that fit, the newest first, read page by page."""
        query = _filters(experiment, labels, states, page_size)
        while True:
            answer = self._call("GET", "/v1/searches", params=query)
            page = self._parsed(answer, SearchPage.model_validate_json)
            yield from page.searches
            if page.next_cursor is None:
                return
            query["cursor"] = page.next_cursor

    def trials(
        self,
        search_id: str,
        *,
        states: Sequence[str] = (),
        configuration: int | None = None,
        order_by: str | None = None,
        page_size: int = 100,
    ) -> Iterator[TrialView]:
        """A search's trials, the best first unless `order_by` says otherwise."""
        query: dict[str, Any] = {"state": list(states), "limit": page_size}
        if configuration is not None:
            query["configuration"] = configuration
        if order_by is not None:
            query["order_by"] = order_by
        while True:
            answer = self._call("GET", _search_path(search_id, "trials"), params=query)
            page = self._parsed(answer, TrialPage.model_validate_json)
            yield from page.trials
            if page.next_offset is None:
                return
            query["offset"] = page.next_offset

    def trial_log(
        self, search_id: str, number: int, offset: int = 0, attempt: int | None = None
    ) -> LogChunk:
        """Some of a trial's log, from a byte offset on."""
        query = {"offset": offset} | ({} if attempt is None else {"attempt": attempt})
        path = _search_path(search_id, "trials", str(number), "logs")
        answer = self._call("GET", path, params=query)
        return self._parsed(answer, lambda content: _chunk(content, answer.headers))

    def configurations(
        self, search_id: str, *, limit: int = 100, offset: int = 0
    ) -> list[ConfigurationView]:
        """The leaderboard's `limit` places from `offset` on, the best first."""
        query = {"limit": limit, "offset": offset}
        answer = self._call("GET", _search_path(search_id, "configurations"), params=query)
        return self._parsed(answer, ConfigurationPage.model_validate_json).configurations

    def retry_failed(self, search_id: str) -> SearchView:
        """Run the failed trials of an ended search again."""
        answer = self._call("POST", _search_path(search_id, "retry-failed"))
        return self._parsed(answer, SearchView.model_validate_json)

    def promote(
        self,
        search_id: str,
        *,
        configuration: int | None = None,
        changes: Mapping[str, Any] | None = None,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        priority: int | None = None,
    ) -> JobView:
        """Queue a training from the best configuration, with `changes` of fields by path."""
        wish: dict[str, Any] = {
            "configuration": configuration,
            "set": dict(changes or {}),
            "name": name,
            "labels": dict(labels or {}),
            "priority": priority,
        }
        answer = self._call("POST", _search_path(search_id, "promote"), **_json(wish))
        return self._parsed(answer, JobView.model_validate_json)

    # ----------------------------------------------------------------------------- following

    def follow_logs(
        self, job_id: str, offset: int = 0, attempt: int | None = None, poll_s: float = 0.5
    ) -> Iterator[LogChunk]:
        """The log as it grows, over all further attempts, until the job has ended."""
        while True:
            chunk = self._patiently(partial(self.logs, job_id, offset, attempt))
            attempt, offset = chunk.attempt or None, chunk.next_offset
            if chunk.content:
                yield chunk
            if not chunk.end:
                if not chunk.content:
                    time.sleep(poll_s)
                continue
            job = self._patiently(lambda: self.job(job_id))
            if job.attempt > chunk.attempt:
                attempt, offset = chunk.attempt + 1, 0
            elif job.state.terminal:
                return
            else:
                time.sleep(poll_s)

    def wait(
        self,
        job_id: str,
        timeout: float | None = None,
        on_change: Callable[[JobView], None] | None = None,
        poll_s: float = 0.5,
    ) -> JobView:
        """The job when it has ended; `on_change` hears of every change. Raises TimeoutError."""
        return self._wait(lambda: self.job(job_id), timeout, on_change, poll_s)

    def wait_search(
        self,
        search_id: str,
        timeout: float | None = None,
        on_change: Callable[[SearchView], None] | None = None,
        poll_s: float = 0.5,
    ) -> SearchView:
        """The search when it has ended, as `wait` for a job."""
        return self._wait(lambda: self.search(search_id), timeout, on_change, poll_s)

    def _wait(
        self,
        look: Callable[[], View],
        timeout: float | None,
        on_change: Callable[[View], None] | None,
        poll_s: float,
    ) -> View:
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        told: dict[str, Any] | None = None
        while True:
            job = self._patiently(look)
            now = job.model_dump(exclude={"progress": {"heartbeat_age_s"}})
            if on_change is not None and now != told:
                on_change(job)
            told = now
            if job.state.terminal:
                return job
            if time.monotonic() + poll_s > deadline:
                raise TimeoutError(f"{job.kind} {job.id} is still {job.state} after {timeout} s")
            time.sleep(poll_s)

    # ------------------------------------------------------------------------------ transport

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **options)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise ApiUnreachableError(self.url, str(error) or type(error).__name__) from None
        if answer.is_success:
            return answer
        raise ApiError(self._parsed(answer, Problem.model_validate_json))

    def _parsed(self, answer: httpx.Response, parse: Callable[[bytes], Answer]) -> Answer:
        try:
            return parse(answer.content)
        except (ValidationError, LookupError, ValueError):
            why = f"status {answer.status_code}, and not our protocol"
            raise ApiUnreachableError(self.url, why) from None

    def _patiently(self, call: Callable[[], Answer]) -> Answer:
        deadline = time.monotonic() + self.patience
        while True:
            try:
                return call()
            except ApiError as error:
                if error.status not in (0, 503) or time.monotonic() > deadline:
                    raise
                time.sleep(1)


def _path(job_id: str, *below: str) -> str:
    return "/".join(["/v1/jobs", quote(job_id, safe=""), *below])


def _search_path(search_id: str, *below: str) -> str:
    return "/".join(["/v1/searches", quote(search_id, safe=""), *below])


def _json(document: BaseModel | Mapping[str, Any]) -> dict[str, Any]:
    """A call's body."""
    if isinstance(document, BaseModel):
        body = document.model_dump_json()
    else:
        body = json.dumps(dict(document))
    return {"content": body, "headers": {"Content-Type": "application/json"}}


def _filters(
    experiment: str | None, labels: Mapping[str, str] | None, states: Sequence[str], limit: int
) -> dict[str, Any]:
    query: dict[str, Any] = {
        "label": [f"{key}={value}" for key, value in (labels or {}).items()],
        "state": list(states),
        "limit": limit,
    }
    return query if experiment is None else query | {"experiment": experiment}


def _chunk(content: bytes, headers: httpx.Headers) -> LogChunk:
    return LogChunk(
        content=content,
        attempt=int(headers["Caps-Log-Attempt"]),
        next_offset=int(headers["Caps-Log-Offset"]),
        end=headers["Caps-Log-End"] == "true",
    )
