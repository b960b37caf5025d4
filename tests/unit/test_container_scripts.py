"""The scripts in the images: they wait, look after health, make secrets and run a node of Ray."""

import http.server
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from workers.attempt import AttemptFolder, ProcessRecord
from workers.liveness import created
from workers.process import host_id

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = REPOSITORY / "deploy" / "container"
PATIENCE_S = 20.0


def load(name: str) -> ModuleType:
    """A script as a module."""
    loader = SourceFileLoader(re.sub(r"\W", "_", name), str(SCRIPTS / name))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def run(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script to its end, isolated as in the images."""
    return subprocess.run(
        [sys.executable, "-I", str(SCRIPTS / name), *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def test_what_is_started_may_be_started() -> None:
    started = [path for path in SCRIPTS.iterdir() if path.name.startswith("caps-")]
    assert len(started) == 5
    assert all(os.access(path, os.X_OK) for path in started)


# ------------------------------------------------------------------------------- caps-await


class Waiting:
    """caps-await with a command that tells its process id."""

    def __init__(self, needs: str) -> None:
        command = [sys.executable, "-c", "import os; print(os.getpid())"]
        self.process = subprocess.Popen(
            [sys.executable, "-IS", SCRIPTS / "caps-await", *command],
            env=os.environ | {"CAPS_AWAIT": needs},
            stdout=subprocess.PIPE,
            text=True,
        )

    def waits(self) -> bool:
        """Whether it still does, after more than one more look."""
        time.sleep(0.6)
        return self.process.poll() is None

    def becomes_the_command(self) -> bool:
        """Whether the command ran, in the very same process."""
        told, _ = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode == 0 and int(told) == self.process.pid


@pytest.fixture
def await_(request: pytest.FixtureRequest) -> Callable[[str], Waiting]:
    """Start caps-await; it is gone when the test is over."""

    def start(needs: str) -> Waiting:
        waiting = Waiting(needs)
        request.addfinalizer(waiting.process.kill)
        return waiting

    return start


def test_without_a_need_the_command_begins_at_once(await_: Callable[[str], Waiting]) -> None:
    assert await_("").becomes_the_command()


def test_it_waits_for_a_file_that_is_whole(
    await_: Callable[[str], Waiting], tmp_path: Path
) -> None:
    waiting = await_(f"file:{tmp_path}/deep/token")
    assert waiting.waits()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "token").touch()
    assert waiting.waits(), "an empty file is no token"
    (tmp_path / "deep" / "token").write_text("t")
    assert waiting.becomes_the_command()


def test_it_waits_for_all_of_several(await_: Callable[[str], Waiting], tmp_path: Path) -> None:
    (tmp_path / "first").write_text("t")
    with closing(socket.socket()) as port:
        port.bind(("127.0.0.1", 0))
        waiting = await_(f"file:{tmp_path}/first tcp:127.0.0.1:{port.getsockname()[1]}")
        assert waiting.waits()
        port.listen()
        assert waiting.becomes_the_command()


@pytest.mark.parametrize(
    "need",
    ["token", "file:", "tcp:postgres", "tcp::5432", "tcp:postgres:high", "http://mlflow:5000"],
)
def test_a_need_that_is_none_is_refused(need: str) -> None:
    refused = run("caps-await", "true", CAPS_AWAIT=need)
    assert refused.returncode == 1
    assert f"CAPS_AWAIT: {need!r} is neither" in refused.stderr


def test_a_command_that_is_none_is_refused() -> None:
    assert "no command" in run("caps-await", CAPS_AWAIT="").stderr
    refused = run("caps-await", "no-such-program", CAPS_AWAIT="")
    assert refused.returncode == 1
    assert "'no-such-program' can't be run" in refused.stderr


def test_it_tells_what_it_waits_for(monkeypatch, capsys) -> None:
    script = load("caps-await")
    looks = iter([False, False, True])
    monkeypatch.setattr(script, "is_there", lambda need: next(looks))
    monkeypatch.setattr(script, "TELL_AFTER_S", -1)
    monkeypatch.setattr(script, "LOOK_EVERY_S", 0)
    script.wait_for(["file:/secrets/token"])
    assert capsys.readouterr().err == "waiting for file:/secrets/token since 0 s\n"


# ------------------------------------------------------------------------------- caps-healthy


@pytest.fixture
def address() -> Iterator[str]:
    """A server that answers with the status that the path names."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(int(self.path[1:]))
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (204, False), (500, False)])
def test_healthy_is_who_answers_200(address: str, status: int, healthy: bool) -> None:
    asked = run("caps-healthy", f"{address}/{status}")
    assert asked.returncode == (0 if healthy else 1), asked.stderr


def test_it_is_asked_past_proxies(address: str) -> None:
    proxy = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    assert run("caps-healthy", f"{address}/200", **proxy).returncode == 0


def test_nobody_there_is_not_healthy() -> None:
    with closing(socket.socket()) as port:
        port.bind(("127.0.0.1", 0))  # without listening
        asked = run("caps-healthy", f"http://127.0.0.1:{port.getsockname()[1]}/")
    assert asked.returncode == 1
    assert "refused" in asked.stderr
    assert "Traceback" not in asked.stderr


def test_healthy_wants_one_address() -> None:
    assert run("caps-healthy").returncode == 2
    assert run("caps-healthy", "nonsense").returncode == 1


# ------------------------------------------------------------------------------- caps-secrets

MODES = {
    "postgres/superuser-password": 0o444,
    "postgres/caps-password": 0o444,
    "postgres/mlflow-password": 0o444,
    "queue/pgpass": 0o600,
    "tracking/pgpass": 0o600,
    "ray/token": 0o400,
}


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """Empty volumes, as at the first start."""
    root = tmp_path / "secrets"
    for name in ("postgres", "queue", "tracking", "ray"):
        (root / name).mkdir(parents=True)
    return root


def contents(root: Path) -> dict[str, str]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_text() for path in files}


def test_all_secrets_are_made_each_for_its_readers(volumes: Path) -> None:
    before = os.umask(0o077)
    try:
        load("caps-secrets").main(volumes)
    finally:
        os.umask(before)
    assert {name: (volumes / name).stat().st_mode & 0o777 for name in contents(volumes)} == MODES
    found = contents(volumes)
    random = [found[name] for name in MODES if not name.endswith("pgpass")]
    assert len(set(random)) == 4
    assert all(re.fullmatch("[0-9a-f]{64}", text) for text in random)
    assert found["queue/pgpass"] == f"*:*:*:caps:{found['postgres/caps-password']}\n"
    assert found["tracking/pgpass"] == f"*:*:*:mlflow:{found['postgres/mlflow-password']}\n"


def test_two_deployments_share_no_secret(volumes: Path, tmp_path: Path) -> None:
    script = load("caps-secrets")
    script.main(volumes)
    first = set(contents(volumes).values())
    for path in volumes.glob("*/*"):
        path.unlink()
    script.main(volumes)
    assert not first & set(contents(volumes).values())


def test_a_later_start_changes_nothing_and_says_nothing(volumes: Path, capsys) -> None:
    script = load("caps-secrets")
    script.main(volumes)
    found = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in volumes.glob("*/*")}
    told = capsys.readouterr().out
    assert told.count("made ") == len(MODES)
    assert not any(secret.strip() in told for secret in contents(volumes).values())
    script.main(volumes)
    assert capsys.readouterr().out == ""
    for path, unchanged in found.items():
        assert (path.stat().st_mtime_ns, path.stat().st_ino) == unchanged


@pytest.mark.parametrize("writes", range(len(MODES)))
def test_a_start_that_was_cut_off_is_completed(volumes: Path, writes: int, monkeypatch) -> None:
    script = load("caps-secrets")
    left = writes

    def cut_off(descriptor: int) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", cut_off)
        with pytest.raises(KeyboardInterrupt):
            script.main(volumes)
    names = contents(volumes)
    kept = {name: text for name, text in names.items() if name in MODES}
    assert len(kept) == writes
    assert len(names) == writes + 1, "what was being written lies beside its place"
    script.main(volumes)
    assert set(contents(volumes)) == set(MODES)
    assert contents(volumes).items() >= kept.items()


def test_a_password_that_is_renewed_reaches_its_user(volumes: Path) -> None:
    script = load("caps-secrets")
    script.main(volumes)
    before = contents(volumes)
    (volumes / "postgres" / "caps-password").unlink()
    script.main(volumes)
    after = contents(volumes)
    changed = {name for name in MODES if before[name] != after[name]}
    assert changed == {"postgres/caps-password", "queue/pgpass"}
    assert after["postgres/caps-password"] in after["queue/pgpass"]


@pytest.mark.parametrize("name", ["postgres/superuser-password", "ray/token"])
@pytest.mark.parametrize("text", ["", "secret", " " * 64])
def test_a_secret_that_is_too_short_is_refused(volumes: Path, name: str, text: str) -> None:
    (volumes / name).write_text(text)
    with pytest.raises(SystemExit) as refused:
        load("caps-secrets").main(volumes)
    assert str(volumes / name) in str(refused.value)
    assert "fewer than 32" in str(refused.value)


# ------------------------------------------------------------------------------- caps-ray

WITH_TOKEN = {"RAY_AUTH_MODE": "token"}


def test_the_head_offers_places_for_drivers_and_no_cores() -> None:
    found = load("caps-ray").command("head", WITH_TOKEN)
    assert found[:3] == ["ray", "start", "--block"]
    assert {"--head", "--num-cpus=0", "--num-gpus=0", "--port=6379"} <= set(found)
    assert '--resources={"driver_slot": 8}' in found
    assert not any(option.startswith("--address") for option in found)


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, []),
        ({"CAPS_WORKER_CPUS": "", "CAPS_WORKER_GPUS": ""}, []),
        ({"CAPS_WORKER_CPUS": "4"}, ["--num-cpus=4"]),
        ({"CAPS_WORKER_CPUS": "4", "CAPS_WORKER_GPUS": "0"}, ["--num-cpus=4", "--num-gpus=0"]),
    ],
)
def test_a_worker_offers_what_it_is_told(settings: dict[str, str], options: list[str]) -> None:
    found = load("caps-ray").command("worker", WITH_TOKEN | settings)
    assert "--address=ray-head:6379" in found
    assert [option for option in found if option.startswith("--num-")] == options
    assert "--head" not in found


def test_a_worker_joins_another_head() -> None:
    settings = WITH_TOKEN | {"CAPS_RAY_HEAD": "lab.example.org:6379"}
    assert "--address=lab.example.org:6379" in load("caps-ray").command("worker", settings)


@pytest.mark.parametrize(
    ("role", "settings", "complaint"),
    [
        ("head", {}, "RAY_AUTH_MODE must be token"),
        ("worker", {"RAY_AUTH_MODE": "disabled"}, "RAY_AUTH_MODE must be token"),
        ("boss", WITH_TOKEN, "head or worker, not 'boss'"),
        ("worker", WITH_TOKEN | {"CAPS_WORKER_CPUS": "four"}, "CAPS_WORKER_CPUS='four'"),
        ("worker", WITH_TOKEN | {"CAPS_WORKER_GPUS": "-1"}, "CAPS_WORKER_GPUS='-1'"),
        ("worker", WITH_TOKEN | {"CAPS_WORKER_CPUS": "1.5"}, "CAPS_WORKER_CPUS='1.5'"),
    ],
)
def test_what_cannot_be_started_is_refused(
    role: str, settings: dict[str, str], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        load("caps-ray").command(role, settings)
    for name in ("RAY_AUTH_MODE", "CAPS_WORKER_CPUS", "CAPS_WORKER_GPUS"):
        settings = {name: "", **settings}
    refused = run("caps-ray", role, **settings)
    assert refused.returncode == 2
    assert complaint in refused.stderr
    assert "Traceback" not in refused.stderr


TRAINING = """
import pathlib, signal, sys, time
diary, patience = pathlib.Path(sys.argv[1]), float(sys.argv[2])
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
with diary.open("a") as file: print("training begins", file=file)
while not asked: time.sleep(0.02)
time.sleep(patience)
with diary.open("a") as file: print("checkpoint", file=file)
"""
RAY = """#!{python}
import os, pathlib, signal, subprocess, sys, time
def stop(*_):
    with diary.open("a") as file: print("ray stops", file=file)
    sys.exit()
diary = pathlib.Path({diary!r})
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # sees its children off, as Ray does
training = [sys.executable, "-P", "-m", "workers", str(diary), {patience!r}]
path = os.environ | {{"PYTHONPATH": {folder!r}}}
if {patience!r}: subprocess.Popen(training, env=path, stdout=subprocess.DEVNULL)
with diary.open("a") as file: print(*sys.argv[1:3], file=file)
time.sleep({life})
sys.exit(7)
"""


class Node:
    """caps-ray with a stand-in for `ray`, which starts a stand-in for a training."""

    def __init__(self, folder: Path, patience: str = "", life: float = 60.0) -> None:
        """Start.

        Args:
            folder: For the stand-ins and what they write.
            patience: Seconds that the training takes for its checkpoint; none without it.
            life: Seconds until Ray ends by itself.
        """
        self.diary = folder / "diary"
        self.diary.touch()
        (folder / "workers").mkdir()
        (folder / "workers" / "__init__.py").touch()
        (folder / "workers" / "__main__.py").write_text(TRAINING)
        ray = folder / "ray"
        ray.write_text(
            RAY.format(
                python=sys.executable,
                diary=str(self.diary),
                patience=patience,
                folder=str(folder),
                life=life,
            )
        )
        ray.chmod(0o755)
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env=os.environ | WITH_TOKEN | {"PATH": f"{folder}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            text=True,
        )

    def said(self) -> list[str]:
        """What the stand-ins have written, in order."""
        return self.diary.read_text().splitlines()

    def stop(self) -> str:
        """Ask it to end as an engine does; what it printed."""
        self.process.send_signal(signal.SIGTERM)
        told, _ = self.process.communicate(timeout=PATIENCE_S)
        return told


def play_a_node() -> int:
    """Run caps-ray's worker, whose node is this process and those below it.

    In a container that is all that it sees. Here others may train, which are none of its business.
    """
    script = load("caps-ray")
    script.psutil.process_iter = lambda: psutil.Process().children(recursive=True)
    script.LEAVE_S = 1.0
    script.STOP_S = 5.0
    return int(script.run(script.command("worker", dict(os.environ))))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Start a node; all of it is gone when the test is over."""
    started: list[Node] = []

    def start(**settings: Any) -> Node:
        started.append(Node(tmp_path, **settings))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
    for process in psutil.process_iter():
        try:
            if str(tmp_path) in " ".join(process.cmdline()):
                process.kill()
        except psutil.Error:
            continue


def test_at_the_end_trainings_leave_before_ray_does(node: Callable[..., Node]) -> None:
    found = node(patience="0.4")
    until(lambda: len(found.said()) == 2)
    told = found.stop()
    assert found.process.returncode == 0
    assert found.said()[2:] == ["checkpoint", "ray stops"]
    assert "1 of 1 trainings left in time" in told


def test_a_training_that_takes_too_long_is_not_waited_for(node: Callable[..., Node]) -> None:
    found = node(patience="30")
    until(lambda: len(found.said()) == 2)
    told = found.stop()
    assert found.process.returncode == 0
    assert found.said()[2:] == ["ray stops"]
    assert "0 of 1 trainings left in time" in told


def test_several_workers_are_asked_by_their_attempts_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker of Ray Train's knows no signal of ours: it looks at the folder."""
    script = load("caps-ray")
    monkeypatch.setenv("CAPS_STORAGE", str(tmp_path))
    monkeypatch.setattr(script, "trainings", list)
    shared, alone, of_before = (AttemptFolder(tmp_path, job, 1) for job in ("a", "b", "c"))
    for folder in (shared, alone, of_before):
        folder.path.mkdir(parents=True)
    leaves = (
        f"import pathlib, time\nwhile not pathlib.Path({str(shared.path / 'leave')!r}).exists():"
    )
    worker = subprocess.Popen([sys.executable, "-c", leaves + " time.sleep(0.02)"])
    here = {"host": host_id(), "created": created(worker.pid)}
    shared.register(ProcessRecord(pid=worker.pid, role="rank-1", **here))
    alone.register(ProcessRecord(pid=worker.pid, role="trial-0", **here))
    of_before.register(ProcessRecord(pid=worker.pid, role="rank-0", **{**here, "created": 1.0}))
    elsewhere = {"host": "another-host", "created": 1.0, "pid": 1}
    alone.register(ProcessRecord(role="rank-0", **elsewhere))
    threading.Thread(target=worker.wait, daemon=True).start()  # sees it off, as Ray does
    script.leave()
    assert worker.poll() == 0
    assert not alone.leave_requested()
    assert not of_before.leave_requested()


def test_a_node_without_trainings_ends_at_once(node: Callable[..., Node]) -> None:
    found = node()
    until(lambda: found.said() == ["start --block"])
    assert found.stop() == ""
    assert found.process.returncode == 0
    assert found.said()[1:] == ["ray stops"]


def test_where_ray_ends_the_node_ends_with_its_status(node: Callable[..., Node]) -> None:
    assert node(life=0.1).process.wait(timeout=PATIENCE_S) == 7


# ------------------------------------------------------------------------------- requirements.py

PROJECT = """
[project]
dependencies = ["torch>=2"]
[project.optional-dependencies]
service = ["fastapi", "uvicorn>=0.30"]
postgresql = ["psycopg[binary]"]
"""


def test_requirements_are_those_of_the_extras_that_are_named() -> None:
    requirements = load("requirements.py").requirements
    assert requirements(["service", "postgresql"], PROJECT) == [
        "fastapi",
        "uvicorn>=0.30",
        "psycopg[binary]",
    ]
    assert requirements(["base"], PROJECT) == ["torch>=2"]
    with pytest.raises(KeyError, match="services"):
        requirements(["services"], PROJECT)


def test_the_images_ask_for_extras_that_there_are() -> None:
    requirements = load("requirements.py").requirements
    project = (REPOSITORY / "pyproject.toml").read_text()
    dockerfile = (REPOSITORY / "deploy" / "Dockerfile").read_text()
    asked = re.findall(r"requirements\.py ([\w ]+) >", dockerfile)
    found = [requirements(names.split(), project) for names in asked]
    assert len(found) == 2
    service, worker = (" ".join(lines) for lines in found)
    assert "fastapi" in service
    assert not re.search(r"\b(torch|ray|numpy)\b", service)
    assert "ray[" in worker


def test_it_prints_what_pip_reads(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    script = tmp_path / "requirements.py"
    script.write_text((SCRIPTS / "requirements.py").read_text())

    def printed(*names: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", str(script), *names]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)

    assert printed("service").stdout == "fastapi\nuvicorn>=0.30\n"
    assert printed("services").returncode != 0


if __name__ == "__main__":
    sys.exit(play_a_node())
