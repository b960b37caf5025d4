"""The public Python client of the REST API.

>>> with CapsClient() as client:
...     job = client.submit({"dataset": {"type": "mnist-5k"}, "epochs": 3})
...     print(client.wait(job.id).result)
"""

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

from service.api.search_views import SearchView
from service.api.views import JobView
from service.client.errors import ApiError, ApiUnreachableError
from service.client.jobs import JobCalls, LogChunk
from service.client.searches import SearchCalls
from service.client.tokens import TokenCalls
from service.client.transport import default_url

__all__ = ["ApiError", "ApiUnreachableError", "CapsClient", "LogChunk", "default_url"]

View = TypeVar("View", bound=JobView)


class CapsClient(JobCalls, SearchCalls, TokenCalls):
    """Submits jobs and searches, steers and follows them.

    Args:
        url: Address of the API; by default that of `default_url`.
        timeout: Seconds to wait for an answer.
        patience: Seconds for which `wait` and `follow_logs` bear an API that does not answer: a
            restart of the control plane disturbs no training, nor those who watch it.
        submit_patience: Seconds for which a submission is tried again while the API does not
            answer, or answers that a part of it is away.
        on_retry: Hears of each such try: what went wrong, and how many seconds are left.
        token: By default CAPS_TOKEN, else what the file CAPS_TOKEN_PATH holds, else, for an API on
            this machine, that of the administrator in CAPS_HOME, if it may be read.

    Raises InputError where a token can't be one.
    """

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
