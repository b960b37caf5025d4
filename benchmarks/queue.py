"""A queue of 100,000 jobs: how long claims, lists and submissions take, and what memory they need.

`make bench-queue` fills a database of each kind with real specifications, measures the store's
claims in this process, then starts the API as `python -m service.app` and asks it over HTTP. The
load comes from a process of its own (`benchmarks.http_load`); load, API and database share the
machine's cores. There is no Ray, so the reconciler looks at the queue each second and starts none.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import psutil
from sqlalchemy import create_engine, insert, text

from benchmarks.http_load import Load, Order
from benchmarks.machine import describe_machine, file_name
from benchmarks.queue_report import Line, Report
from service.queue.job import Desired, State
from service.queue.rows import encode_cursor, new_id
from service.queue.store import NewEvent, Store
from service.queue.tables import events, job_labels, jobs
from service.stack.processes import free_port
from tests.support import postgres
from workers.specs import PRESETS, TrainSpec

RESULTS = Path(__file__).with_name("results")
CHUNK = 5_000
EXPERIMENTS = 20
TEAMS = 10
AGE_S = 0.02
"""Seconds between two of the jobs that are there from the beginning."""
CLIENTS = 100


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the results, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.queue", description=__doc__)
    parser.add_argument("--databases", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--jobs", type=int, default=100_000, help="in the queue at the beginning")
    parser.add_argument("--claims", type=int, default=1_000)
    parser.add_argument("--lists", type=int, default=400, help="pages of each kind")
    parser.add_argument("--submits", type=int, default=20_000)
    parser.add_argument("--output", type=Path, help="a JSON file; by default in benchmarks/results")
    options = parser.parse_args(arguments)
    machine = describe_machine()
    settings = {name: getattr(options, name) for name in ("jobs", "claims", "lists", "submits")}
    report = Report(machine, settings)
    for database in options.databases:
        folder = tempfile.TemporaryDirectory(prefix="caps-q-", dir="/tmp")
        with folder as path, STARTS[database](Path(path)) as url:
            measure(report, database, url, Path(path), options)
    output = options.output or RESULTS / f"queue-{file_name(machine)}.json"
    report.write(output)
    print(f"\n{report.markdown()}\nwritten: {output}, and .md and .png beside it")


@contextmanager
def _postgresql(folder: Path) -> Iterator[str]:
    with postgres.running() as server:
        yield server.new_database()


@contextmanager
def _sqlite(folder: Path) -> Iterator[str]:
    yield f"sqlite:///{folder / 'queue.db'}"


STARTS = {"postgresql": _postgresql, "sqlite": _sqlite}


def measure(
    report: Report, database: str, url: str, folder: Path, options: argparse.Namespace
) -> None:
    """All of one database's lines."""
    say(f"{database}: filling it with {options.jobs:,} jobs ...")
    store = Store(url)
    store.migrate()
    ids = fill(store, options.jobs)
    say(f"{database}: {options.claims:,} claims ...")
    report.lines += [Line(database, *line) for line in claims(store, options.claims)]
    settle(store)
    store.close()
    with serving(url, folder) as api:
        watch = Memory(api.pid)
        report.lines += [Line(database, *line) for line in over_http(api.url, ids, options, watch)]
        report.memory[database] = watch.samples()
        report.marks[database] = watch.marks


# ---------------------------------------------------------------------------------- the queue


def specification(number: int) -> TrainSpec:
    """One in ten has a priority; experiments and labels as in a team's daily use."""
    return PRESETS["demo"].model_copy(
        update={
            "name": f"train-{number}",
            "experiment": f"experiment-{number % EXPERIMENTS}",
            "labels": {"team": f"team-{number % TEAMS}", "sweep": f"{number // 100}"},
            "priority": 1 + number % 5 if number % 10 == 0 else 0,
            "seed": number,
        }
    )


def fill(store: Store, count: int) -> list[str]:
    """Queue so many jobs, past the store, which takes them one by one; returns their ids."""
    first = time.time() - count * AGE_S
    ids = []
    with store.engine.begin() as connection:
        for start in range(0, count, CHUNK):
            numbers = range(start, min(start + CHUNK, count))
            rows = [row(number, first + number * AGE_S) for number in numbers]
            ids += [each["id"] for each in rows]
            labels = [
                {"job_id": each["id"], "key": key, "value": value}
                for each, number in zip(rows, numbers, strict=True)
                for key, value in specification(number).labels.items()
            ]
            told = [submitted(each) for each in rows]
            for table, content in ((jobs, rows), (job_labels, labels), (events, told)):
                connection.execute(insert(table), content)
    tidy(store)
    return ids


def tidy(store: Store) -> None:
    """What PostgreSQL does by itself within a minute; it may take longer than our statements."""
    patient = create_engine(store.engine.url, isolation_level="AUTOCOMMIT")
    with patient.connect() as connection:
        on_postgresql = connection.dialect.name == "postgresql"
        connection.execute(text("VACUUM ANALYZE" if on_postgresql else "ANALYZE"))
    patient.dispose()


def row(number: int, at: float) -> dict[str, Any]:
    """A queued job."""
    spec = specification(number)
    return {
        "id": new_id(at),
        "kind": "train",
        "name": spec.name,
        "experiment": spec.experiment,
        "priority": spec.priority,
        "spec": spec.model_dump_json(),
        "desired": Desired.RUN.value,
        "state": State.QUEUED.value,
        "attempt": 0,
        "version": 1,
        "created_at": at,
        "updated_at": at,
        "evidence": "",
        "waiting_reason": "",
        "errors": 0,
        "losses": 0,
        "run_closed": False,
    }


def submitted(job: dict[str, Any]) -> dict[str, Any]:
    """The first event of a job."""
    told = {"type": "submitted", "message": f"submitted as {job['name']!r}", "data": "{}"}
    return {"job_id": job["id"], "attempt": 0, "at": job["created_at"], **told}


# --------------------------------------------------------------------------------- the claims


def claims(store: Store, count: int) -> Iterator[tuple[Any, ...]]:
    """What the reconciler does for a job that it starts: a look at the queue's head, a commit."""
    looks, commits = [], []
    for _ in range(count):
        began = time.perf_counter()
        head = store.claimable(store.now())
        looked = time.perf_counter()
        store.start_attempt(head[0], NewEvent("started", "attempt 1"), "session")
        looks.append(looked - began)
        commits.append(time.perf_counter() - looked)
    both = [look + commit for look, commit in zip(looks, commits, strict=True)]
    yield "look at the head of the queue (50 jobs)", 1, looks, None, sum(both)
    yield "commit of an attempt", 1, commits, None, sum(both)
    yield "claim: the look and the commit", 1, both, 0.020, sum(both)


def settle(store: Store) -> None:
    """The claimed jobs have succeeded: their attempts are nobody's here."""
    ended = text(
        "UPDATE jobs SET state = 'SUCCEEDED', run_closed = :closed, finished_at = updated_at "
        "WHERE state = 'RUNNING'"
    )
    with store.engine.begin() as connection:
        connection.execute(ended, {"closed": True})


# ------------------------------------------------------------------------------------ the API


class Served:
    """The API's process."""

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self.pid = pid


@contextmanager
def serving(database: str, folder: Path) -> Iterator[Served]:
    """The API on a free port, without Ray and without MLflow."""
    port, nobody = free_port(), free_port()
    environment = os.environ | {
        "CAPS_HOME": str(folder / "home"),
        "CAPS_DATABASE_URL": database,
        "CAPS_RAY_ADDRESS": f"http://127.0.0.1:{nobody}",
        "CAPS_MLFLOW_URI": f"http://127.0.0.1:{nobody}",
    }
    with (folder / "api.log").open("wb") as log:
        api = subprocess.Popen(
            [sys.executable, "-m", "service.app", "--port", str(port)],
            env=environment,
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url, api, folder / "api.log")
        yield Served(url, api.pid)
    finally:
        api.terminate()
        api.wait(timeout=30)


def _wait(url: str, api: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            httpx.get(f"{url}/healthz").raise_for_status()
            return
        except httpx.HTTPError:
            if api.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the API does not start:\n{log.read_text()[-3000:]}") from None
            time.sleep(0.1)


def over_http(
    url: str, ids: list[str], options: argparse.Namespace, watch: "Memory"
) -> Iterator[tuple[Any, ...]]:
    """Lists by one client after the other, then by eight at once, then submissions."""
    load(Order(url, ["/v1/jobs?limit=50"], clients=8, requests=200))  # warms up
    bodies = [submission(number) for number in range(500)]
    load(Order(url, ["/v1/jobs"], CLIENTS, requests=500, bodies=bodies, keys="warm"))
    watch.mark("lists")
    pages = list_paths(ids)
    for name, path in pages.items():
        say(f"  lists: {name} ...")
        yield http_line(f"list of 50, {name}", Order(url, [path], 1, options.lists), 0.100)
    say("  lists by 8 clients ...")
    mixed = Order(url, list(pages.values()), 8, 4 * options.lists)
    yield http_line("list of 50, all of these in turn", mixed, None)
    watch.mark("submits")
    say("  submissions, each client one a second ...")
    paced = Order(
        url, ["/v1/jobs"], CLIENTS, options.submits // 10, bodies, pause_s=1.0, keys="paced"
    )
    yield http_line("submit, each client once a second", paced, 0.200)
    say("  submissions, as fast as they are answered ...")
    closed = Order(url, ["/v1/jobs"], CLIENTS, options.submits, bodies, keys="closed")
    yield http_line("submit, again when answered", closed, 0.200)
    watch.mark("end")


def list_paths(ids: list[str]) -> dict[str, str]:
    """Kinds of pages, by what is said of them."""
    middle, end = (encode_cursor(ids[int(len(ids) * part)]) for part in (0.5, 0.01))
    team, experiment = "label=team%3Dteam-3", "experiment=experiment-7"
    return {
        "the newest": "/v1/jobs?limit=50",
        "QUEUED": "/v1/jobs?limit=50&state=QUEUED",
        "SUCCEEDED": "/v1/jobs?limit=50&state=SUCCEEDED",
        "RUNNING (none)": "/v1/jobs?limit=50&state=RUNNING",
        "by label": f"/v1/jobs?limit=50&{team}",
        "by a rare label": "/v1/jobs?limit=50&label=sweep%3D17",
        "by experiment": f"/v1/jobs?limit=50&{experiment}",
        "by all three": f"/v1/jobs?limit=50&state=QUEUED&{team}&experiment=experiment-3",
        "from the middle": f"/v1/jobs?limit=50&cursor={middle}",
        "among the oldest": f"/v1/jobs?limit=50&cursor={end}",
    }


def submission(number: int) -> str:
    """A body with every field, also those that have their defaults."""
    return specification(number).model_dump_json()


def http_line(name: str, order: Order, goal_s: float | None) -> tuple[Any, ...]:
    """The line that a load yields; anything but success is an error of the benchmark."""
    found = load(order)
    expected = "202" if order.bodies else "200"
    if set(found.statuses) != {expected}:
        raise SystemExit(f"{name}: answered {found.statuses}, expected {expected} alone")
    return name, order.clients, found.latencies_s, goal_s, found.seconds


def load(order: Order) -> Load:
    """Run it in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.http_load"]
    answer = subprocess.run(
        command, input=json.dumps(asdict(order)), check=True, capture_output=True, text=True
    )
    return Load(**json.loads(answer.stdout))


class Memory:
    """A process's resident memory, four times a second, from now on."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._began = time.monotonic()
        self._samples: list[tuple[float, float]] = []
        self.marks: dict[str, float] = {}
        """When what began, in seconds."""
        threading.Thread(target=self._watch, daemon=True).start()

    def mark(self, name: str) -> None:
        """Something begins now."""
        self.marks[name] = round(time.monotonic() - self._began, 2)

    def samples(self) -> list[tuple[float, float]]:
        """Seconds, and MiB."""
        return list(self._samples)

    def _watch(self) -> None:
        while self._process.is_running():
            try:
                used = self._process.memory_info().rss / 2**20
            except psutil.NoSuchProcess:
                return
            self._samples.append((round(time.monotonic() - self._began, 2), round(used, 1)))
            time.sleep(0.25)


def say(line: str) -> None:
    """Tell how far it is."""
    print(line, flush=True)


if __name__ == "__main__":
    main()
