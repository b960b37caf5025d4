"""Crash points: nothing in service, and death exactly where a test wants it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from service.queue.store import Store
from workers import crash
from workers.crash import POINTS, crashing
from workers.specs import PRESETS

DEMO = PRESETS["demo"]


def test_in_service_nothing_happens() -> None:
    with crashing("ray.submit"):
        pass


def test_a_name_that_nobody_knows_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="POINTS"):
        crashing("ray.sumbit")


@pytest.mark.parametrize("asked", ["before", "ray.submit", "before:ray.sumbit", "after:ray.stop:x"])
def test_a_point_that_does_not_exist_passes_for_no_survival(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(crash.POINT_VARIABLE, asked)
    with pytest.raises(ValueError, match="expected before:NAME"), crashing("ray.stop"):
        pass


def test_the_trace_tells_what_was_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = tmp_path / "trace"
    monkeypatch.setenv(crash.TRACE_VARIABLE, str(trace))
    with crashing("ray.submit"), pytest.raises(OSError, match="no"), crashing("worker.result"):
        raise OSError("no")
    assert trace.read_text().split() == [
        "before:ray.submit",
        "before:worker.result",
        "after:ray.submit",
    ]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("before:ray.submit", []),
        ("after:ray.submit", ["1"]),
        ("before:ray.submit:3", ["1", "2"]),
        ("after:ray.submit:2", ["1", "2"]),
        ("after:ray.stop", ["1", "2", "3"]),
    ],
)
def test_the_process_dies_there(asked: str, said: list[str]) -> None:
    code = (
        "from workers.crash import crashing\n"
        "for n in (1, 2, 3):\n"
        "    with crashing('ray.submit'):\n"
        "        print(n, flush=True)\n"
    )
    environment = os.environ | {crash.POINT_VARIABLE: asked}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert found.stdout.split() == said
    assert found.returncode == (0 if asked == "after:ray.stop" else -signal.SIGKILL)


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize(("point", "kept"), [("before:commit.add", 0), ("after:commit.add", 1)])
def test_what_is_raised_before_a_commit_leaves_nothing_and_after_it_all(
    store: Store, monkeypatch: pytest.MonkeyPatch, point: str, kept: int
) -> None:
    def reached(found: str) -> None:
        if found == point:
            raise Killed

    monkeypatch.setattr(crash, "reached", reached)
    with pytest.raises(Killed):
        store.add(DEMO)
    with store.engine.connect() as connection:
        for table in ("jobs", "events"):
            assert connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() == kept


def test_every_point_is_used_somewhere() -> None:
    package = Path(crash.__file__).parents[1]
    files = [p for part in ("service", "workers") for p in (package / part).rglob("*.py")]
    source = "\n".join(
        path.read_text() for path in files if "testing" not in path.parts and path.stem != "crash"
    )
    commits = {f'_writing("{name.removeprefix("commit.")}")' for name in POINTS if "commit" in name}
    others = {f'"{name}"' for name in POINTS if "commit" not in name}
    assert {words for words in commits | others if words not in source} == set()
