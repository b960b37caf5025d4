"""PostgreSQL is killed and started again under load: what was accepted stays, and stays once.

The API is a process of its own with its reconciler; there is no Ray, so that jobs wait. Clients do
what ours do: an answer 503 says when to ask again, and a submission is repeated with its key.
"""

import http.client
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from service.stack.processes import free_port
from support.postgres import Postgres
from support.stack import TINY

CLIENTS = 12
KILLS = 3
PATIENCE_S = 8.0
LONGEST_S = 6.0


@dataclass
class Seen:
    """What the clients were told, all of them together."""

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    longest_s: float = 0.0
    accepted: dict[str, str] = field(default_factory=dict)
    """Jobs by the keys of their submissions."""
    replayed: int = 0
    cancelled: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Client(threading.Thread):
    """Submits with keys, lists, looks and cancels until told to stop."""

    def __init__(self, number: int, port: int, seen: Seen, stop: threading.Event) -> None:
        super().__init__(name=f"client-{number}")
        self._number = number
        self._port = port
        self._seen = seen
        self._stop_asked = stop
        self._random = random.Random(number)
        self._own: list[str] = []
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)

    def run(self) -> None:
        """What goes wrong is told with all else that does."""
        try:
            self._work()
        except Exception as error:
            with self._seen.lock:
                self._seen.wrong.append(f"{self.name}: {error!r}")

    def _work(self) -> None:
        """Each submission is repeated until it is accepted, also after the stop."""
        count = 0
        while not self._stop_asked.is_set():
            self._submit(f"key-{self._number}-{count}")
            count += 1
            self._ask("GET", f"/v1/jobs?limit=20&experiment=outage-{self._number % 3}")
            job = self._random.choice(self._own)
            status, body, _ = self._ask("GET", f"/v1/jobs/{job}")
            assert status in (200, 503)
            assert status == 503 or body["id"] == job
            if (
                self._random.random() < 0.2
                and self._ask("POST", f"/v1/jobs/{job}/cancel")[0] == 202
            ):
                with self._seen.lock:
                    self._seen.cancelled.add(job)

    def _submit(self, key: str) -> None:
        spec = TINY | {"name": key, "experiment": f"outage-{self._number % 3}"}
        deadline = time.monotonic() + 30
        while True:
            status, body, headers = self._ask("POST", "/v1/jobs", spec, key)
            if status == 202:
                break
            assert time.monotonic() < deadline, f"{key} is not accepted: {status} {body}"
            time.sleep(float(headers["retry-after"]) * self._random.uniform(0.1, 0.5))
        self._own.append(body["id"])
        with self._seen.lock:
            assert self._seen.accepted.setdefault(key, body["id"]) == body["id"]
            self._seen.replayed += headers.get("idempotent-replayed") == "true"

    def _ask(
        self, method: str, path: str, spec: dict[str, Any] | None = None, key: str | None = None
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        headers = {"Idempotency-Key": key} if key else {}
        if spec is not None:
            headers["Content-Type"] = "application/json"
        began = time.monotonic()
        self._connection.request(method, path, spec and json.dumps(spec), headers)
        answer = self._connection.getresponse()
        body = json.loads(answer.read())
        told = {name.lower(): value for name, value in answer.getheaders()}
        self._note(method, path, answer.status, body, told, time.monotonic() - began)
        return answer.status, body, told

    def _note(
        self, method: str, path: str, status: int, body: Any, headers: dict[str, str], took: float
    ) -> None:
        good = status in (200, 202)
        away = status == 503 and body["code"] == "database-unavailable"
        with self._seen.lock:
            self._seen.statuses[status] += 1
            self._seen.longest_s = max(self._seen.longest_s, took)
            if not good and not (away and headers.get("retry-after") == "2"):
                self._seen.wrong.append(f"{method} {path}: {status} {body}")


@contextmanager
def served(database: str, home: Path) -> Iterator[int]:
    """The API as a process; yields its port."""
    port, nobody = free_port(), free_port()
    environment = os.environ | {
        "CAPS_HOME": str(home),
        "CAPS_DATABASE_URL": database,
        "CAPS_RAY_ADDRESS": f"http://127.0.0.1:{nobody}",
        "CAPS_MLFLOW_URI": f"http://127.0.0.1:{nobody}",
        "CAPS_TICK_S": "0.2",
    }
    with (home / "api.log").open("wb") as log:
        api = subprocess.Popen(
            [sys.executable, "-m", "service.app", "--port", str(port)],
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        within(60, lambda: api.poll() is None and get(port, "/healthz")[0] == 200)
        yield port
        assert api.poll() is None, "the API has ended by itself"
    finally:
        api.terminate()
        api.wait(timeout=30)


def get(port: int, path: str) -> tuple[int, dict[str, Any]]:
    """Status and body; status 0 where nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    except OSError:
        return 0, {}
    finally:
        connection.close()


def within(seconds: float, condition: Callable[[], object]) -> float:
    """Wait for it; returns how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + seconds, f"not within {seconds} s"
        time.sleep(0.05)
    return time.monotonic() - began


def database_is_ready(port: int) -> bool:
    """What /readyz says of the database; Ray and MLflow are away all the time."""
    status, body = get(port, "/readyz")
    assert status == 503
    return bool(body["checks"]["database"]["ok"])


@pytest.mark.slow
def test_postgresql_killed_under_load_loses_and_doubles_nothing(
    mortal_postgresql: Postgres, tmp_path: Path
) -> None:
    database = mortal_postgresql.new_database()
    seen, stop = Seen(), threading.Event()
    with served(database, tmp_path) as port:
        clients = [Client(number, port, seen, stop) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        recoveries = [outage(mortal_postgresql, port, seen) for _ in range(KILLS)]
        stop.set()
        for client in clients:
            client.join(timeout=60)
        assert not any(client.is_alive() for client in clients)
        print(
            f"{dict(seen.statuses)}; accepted {len(seen.accepted)}, of these {seen.replayed} "
            f"found their job; longest answer {seen.longest_s:.2f} s; serving again after "
            f"{', '.join(f'{each:.2f}' for each in recoveries)} s"
        )
        assert not seen.wrong, seen.wrong[:5]
        assert seen.longest_s < LONGEST_S
        assert len(seen.accepted) > CLIENTS * KILLS
        # The reconciler has recovered too.
        within(15, lambda: states(database, seen.cancelled) <= {"CANCELLED"})
    with create_engine(database).connect() as connection:
        rows = connection.execute(text("SELECT name, id FROM jobs")).all()
        events = connection.execute(text("SELECT job_id FROM events WHERE type = 'submitted'"))
        submitted = Counter(events.scalars())
    assert Counter(name for name, _ in rows) == Counter(seen.accepted.keys())
    assert {row.name: row.id for row in rows} == seen.accepted
    assert submitted == Counter(seen.accepted.values())


@pytest.mark.slow
def test_an_api_that_starts_before_its_database_waits_for_it(
    mortal_postgresql: Postgres, tmp_path: Path
) -> None:
    database = mortal_postgresql.new_database()
    mortal_postgresql.kill()
    with served(database, tmp_path) as port:
        assert get(port, "/v1/jobs")[0] == 503
        assert not database_is_ready(port)
        mortal_postgresql.start()
        within(15, lambda: get(port, "/v1/jobs")[0] == 200)
        assert database_is_ready(port)


def outage(server: Postgres, port: int, seen: Seen) -> float:
    """Kill the server in the middle of it all; seconds from its return to the API's."""
    time.sleep(random.uniform(0.8, 1.6))
    refused = seen.statuses[503]
    server.kill()
    within(10, lambda: not database_is_ready(port))
    within(10, lambda: seen.statuses[503] > refused)
    time.sleep(random.uniform(0.2, 1.0))
    server.start()
    took = within(5, lambda: get(port, "/v1/jobs?limit=1")[0] == 200)
    within(5, lambda: database_is_ready(port))
    return took


def states(database: str, ids: set[str]) -> set[str]:
    """States of these jobs."""
    engine = create_engine(database)
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT id, state FROM jobs")).all()
    engine.dispose()
    return {state for job, state in rows if job in ids}
