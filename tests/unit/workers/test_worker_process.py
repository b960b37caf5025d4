"""The worker as a process: it dies with its parent, and all that it prints is kept."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from support.search_books import make_attempt, make_spec
from workers.attempt import AttemptFolder, Reason, installed_release

CHILD = """
import sys, time
from workers.process import die_with_parent
die_with_parent()
print("ready", flush=True)
time.sleep(60)
"""

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""

PRINTER = """
import os, subprocess, sys
from pathlib import Path
from workers.process import print_to
print("before")
print_to(Path(sys.argv[1]))
print("from Python", flush=True)
print("an error", file=sys.stderr, flush=True)
os.write(1, b"native out\\n")
os.write(2, b"native err\\n")
subprocess.run(["echo", "from a child"])
print("buffered to the end")
"""


TURNS = """
import os, sys
from pathlib import Path
from workers.process import print_to
for name in sys.argv[1:]:
    print_to(Path(name))
    print("Python to", Path(name).name)
    os.write(2, b"native\\n")
"""


@pytest.mark.parametrize(("asked", "nice"), [("7", 7), ("0", 0), (None, 0)])
def test_a_worker_gives_way_as_far_as_it_is_told(asked: str | None, nice: int) -> None:
    code = (
        "import os; from workers.process import give_way; give_way(); give_way(); print(os.nice(0))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "CAPS_NICE"}
    environment |= {} if asked is None else {"CAPS_NICE": asked}
    own = os.nice(0)
    answer = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert int(answer) == max(own, nice)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
def test_a_worker_dies_with_its_parent() -> None:
    command = [sys.executable, "-c", PARENT, CHILD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.kill()
        died_at = time.monotonic() + 2
        while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < died_at, "it lives on"
            time.sleep(0.01)


def test_the_log_holds_all_that_is_printed_also_by_native_code(tmp_path: Path) -> None:
    log = tmp_path / "job" / "log.txt"
    for _ in range(2):
        found = subprocess.run(
            [sys.executable, "-c", PRINTER, str(log)], capture_output=True, text=True, check=True
        )
        assert (found.stdout, found.stderr) == ("before\n", "")
    lines = log.read_text().splitlines()
    once = ["from Python", "an error", "native out", "native err", "from a child"]
    assert lines == [*once, "buffered to the end"] * 2, "a second attempt adds to it"


def test_a_process_that_serves_one_trial_after_another_gives_each_its_log(tmp_path: Path) -> None:
    logs = [tmp_path / "0.txt", tmp_path / "1.txt", tmp_path / "0.txt"]
    command = [sys.executable, "-c", TURNS, *map(str, logs)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (found.stdout, found.stderr) == ("", "")
    assert sorted(logs[0].read_text().splitlines()) == ["Python to 0.txt"] * 2 + ["native"] * 2
    assert sorted(logs[1].read_text().splitlines()) == ["Python to 1.txt", "native"]


@pytest.mark.parametrize(
    ("field", "other", "own"),
    [("package_version", "0.0.7", installed_release()), ("schema_version", 2, 1)],
)
def test_a_worker_refuses_what_another_release_asks_for(
    tmp_path: Path, field: str, other: object, own: object
) -> None:
    folder = AttemptFolder(tmp_path, "s1", 1)
    folder.write_attempt(make_attempt(make_spec()))
    file = folder.path / "attempt.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: other}))
    command = [sys.executable, "-m", "workers", "s1", "1"]
    environment = {"CAPS_STORAGE": str(tmp_path), "PATH": ""}
    assert subprocess.run(command, env=environment, check=False).returncode == 1
    result = folder.read_result()
    assert result is not None
    assert (result.outcome, result.reason) == ("failed", Reason.VERSION_MISMATCH)
    assert f"attempt.json has {field} {other}, expected {own}" in result.evidence
    assert len(folder.processes()) == 1


def test_a_worker_without_orders_names_the_file_that_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "workers", "s1", "1"]
    environment = {"CAPS_STORAGE": str(tmp_path), "PATH": ""}
    assert subprocess.run(command, env=environment, check=False).returncode == 1
    folder = AttemptFolder(tmp_path, "s1", 1)
    result = folder.read_result()
    assert result is not None
    assert (result.outcome, result.reason) == ("failed", Reason.ERROR)
    assert f"{folder.path / 'attempt.json'} is missing" in result.evidence
    assert "CAPS_STORAGE" in result.evidence
    assert "FileNotFoundError" in folder.log.read_text(), "its hint leads to the traceback"
