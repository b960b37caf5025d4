"""The client's way to the API: one call, and calls that are repeated until they get through."""

import json
import math
import os
import secrets
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from service.api.views import Problem
from service.client.credentials import authorization
from service.client.errors import ApiError, ApiUnreachableError
from service.loopback import is_loopback

DEFAULT_URL = "http://127.0.0.1:8000"
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 4.0
GATEWAY_ERRORS = (502, 503, 504)
"""What a proxy answers in place of an API that is away."""

Answer = TypeVar("Answer")


def default_url() -> str:
    """CAPS_URL, else the address of the stack in CAPS_HOME, else the default port on loopback."""
    if url := os.environ.get("CAPS_URL"):
        return url
    try:
        stack = json.loads((Path(os.environ.get("CAPS_HOME", ".caps")) / "stack.json").read_text())
        return str(stack["api_url"] or DEFAULT_URL)
    except (OSError, ValueError, KeyError, TypeError):
        return DEFAULT_URL


class Transport:
    """Connections to one API; `CapsClient` says what the arguments are."""

    def __init__(
        self,
        url: str | None = None,
        timeout: float = 10.0,
        patience: float = 60.0,
        submit_patience: float = 30.0,
        on_retry: Callable[[ApiError, float], None] | None = None,
        *,
        token: str | None = None,
    ) -> None:
        self.url = (url or default_url()).rstrip("/")
        self.patience = patience
        self.submit_patience = submit_patience
        self._on_retry = on_retry
        # A proxy for the world outside can't reach this machine's own loopback.
        local = is_loopback(httpx.URL(self.url).host)
        # The token stays in the header alone, which httpx shows to nobody. Redirects are not
        # followed: they might lead it elsewhere.
        self._http = httpx.Client(
            base_url=self.url,
            headers=authorization(token, to_this_machine=local),
            timeout=timeout,
            trust_env=not local,
            follow_redirects=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connections."""
        self._http.close()

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **options)
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise ApiUnreachableError(self.url, str(error), passing=False) from None
        except httpx.TransportError as error:
            raise ApiUnreachableError(self.url, str(error) or type(error).__name__) from None
        if answer.is_success:
            return answer
        problem = self._parsed(answer, Problem.model_validate_json)
        raise ApiError(problem, _seconds(answer.headers.get("Retry-After")))

    def _parsed(self, answer: httpx.Response, parse: Callable[[bytes], Answer]) -> Answer:
        try:
            return parse(answer.content)
        except (ValidationError, LookupError, ValueError):
            why = f"status {answer.status_code}, and not our protocol"
            passing = answer.status_code in GATEWAY_ERRORS
            raise ApiUnreachableError(self.url, why, passing=passing) from None

    def _submit(
        self, path: str, document: BaseModel | Mapping[str, Any], key: str | None
    ) -> httpx.Response:
        """Submit once, however often the call must be repeated: all of them carry one key."""
        options = json_body(document)
        options["headers"]["Idempotency-Key"] = secrets.token_hex(16) if key is None else key
        call = partial(self._call, "POST", path, **options)
        return self._persistently(call, self.submit_patience, self._on_retry)

    def _patiently(self, call: Callable[[], Answer]) -> Answer:
        """For those who watch: a restart of the control plane is no reason to stop."""
        return self._persistently(call, self.patience)

    def _persistently(
        self,
        call: Callable[[], Answer],
        patience_s: float,
        on_retry: Callable[[ApiError, float], None] | None = None,
    ) -> Answer:
        """Repeat a call that may be repeated while the API is away, for `patience_s` at most."""
        deadline = time.monotonic() + patience_s
        pause = FIRST_PAUSE_S
        while True:
            try:
                return call()
            except ApiError as error:
                left = deadline - time.monotonic()
                wait = pause if error.retry_after_s is None else error.retry_after_s
                if not error.passing or wait > left:
                    raise
                if on_retry is not None:
                    on_retry(error, left)
            # Many clients that were cut off together do not come back together.
            time.sleep(wait * (1 + secrets.randbelow(250) / 1000))
            pause = min(LONGEST_PAUSE_S, 2 * pause)


def json_body(document: BaseModel | Mapping[str, Any]) -> dict[str, Any]:
    """A call's body, and the header that declares it."""
    if isinstance(document, BaseModel):
        body = document.model_dump_json()
    else:
        body = json.dumps(dict(document))
    return {"content": body, "headers": {"Content-Type": "application/json"}}


def _seconds(retry_after: str | None) -> float | None:
    """Of a Retry-After in seconds, as our API sends it; a date is not waited for."""
    try:
        seconds = float(retry_after or "")
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
