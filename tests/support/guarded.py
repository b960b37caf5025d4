"""An API that asks for tokens, served on a real port, and callers of all scopes."""

import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.queue.store import Store
from service.settings import Settings
from service.stack.processes import free_port
from service.tokens import Scope

CALLERS: Mapping[str, tuple[str, Scope]] = {
    "ann-reads": ("ann", Scope.READ),
    "ann": ("ann", Scope.SUBMIT),
    "bob-reads": ("bob", Scope.READ),
    "bob": ("bob", Scope.SUBMIT),
    "root": ("root", Scope.ADMIN),
}
"""Owner and scope of each caller's token."""

_UNUSED = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Plain HTTP has no need of it, and to make one for each client takes longer than a test."""


class Idle:
    """A reconciler's loop that does nothing."""

    def start(self) -> None:
        """Begin."""

    def stop(self) -> None:
        """End."""

    def wake(self) -> None:
        """Look."""


@dataclass
class GuardedApi:
    """The API, the parts behind it, and its callers' tokens by name."""

    url: str
    app: FastAPI
    store: Store
    settings: Settings
    tokens: dict[str, str] = field(default_factory=dict, repr=False)

    @contextmanager
    def client(self, token: str | None) -> Iterator[httpx.Client]:
        """A client that shows this token, or none."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=self.url, headers=headers, timeout=10, verify=_UNUSED) as client:
            yield client


@contextmanager
def guarded(home: Path, database_url: str | None = None) -> Iterator[GuardedApi]:
    """Serve one; its callers are those of `CALLERS`."""
    settings = Settings(
        home=home,
        storage=None,
        database_url=database_url,
        mlflow_uri="http://127.0.0.1:5000",
        mlflow_public_url=None,
        elastic=True,
    )
    store = Store(settings.database)
    app = create_app(settings, store=store, probes={}, background=Idle(), with_tokens=True)
    with serving(app) as url:
        api = GuardedApi(url, app, store, settings)
        for name, (owner, scope) in CALLERS.items():
            api.tokens[name] = store.tokens.create(name=name, owner=owner, scope=scope)[1]
        yield api
    store.close()


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Under uvicorn in a thread of this process; the value is the address."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait for it."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)
