"""`capsctl up`, `down` and `demo`: the embedded stack on this machine."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from service.cli.output import Format, Output, console, print_json
from service.cli.watch import watch_job
from service.client import CapsClient
from service.errors import StackError
from service.queue.job import State
from service.settings import Settings, read_settings
from service.stack import state as stack_state
from service.stack.processes import find
from service.stack.supervisor import READY_TIMEOUT_S, Supervisor, stop_stack
from workers.specs import PRESETS, TrainSpec

Cpus = Annotated[int | None, typer.Option(min=1, help="CPU cores to offer; all by default.")]
Gpus = Annotated[int | None, typer.Option(min=0, help="GPUs to offer; all by default.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(up)
    app.command()(down)
    app.command()(demo)


def up(cpus: Cpus = None, gpus: Gpus = None, output: Output = Format.TEXT) -> None:
    """Start Ray, MLflow and the API on this machine; Ctrl-C stops all of it.

    What a killed `up` has left running is adopted. A part that dies is started again.
    """
    stopped = _Stopped()
    supervisor = Supervisor(read_settings().home, _Teller(output), cpus, gpus)
    try:
        supervisor.start(stopped)
        if not stopped():
            _announce(supervisor, output)
            supervisor.watch(stopped)
    finally:
        _Teller(output)("stopping")
        supervisor.stop()


def down(output: Output = Format.TEXT) -> None:
    """Stop what `capsctl up` runs in this CAPS_HOME; jobs resume at the next `up`."""
    was_up = stop_stack(read_settings().home)
    if output == Format.JSON:
        print_json({"stopped": was_up})
    else:
        console().print("stopped" if was_up else "nothing was running")


def demo(
    keep: Annotated[bool, typer.Option(help="Leave the stack up afterwards.")] = False,
    output: Output = Format.TEXT,
) -> None:
    """Train the preset `demo` on real digits through the whole service, and show the result."""
    settings = read_settings()
    tell = _Teller(output)
    with _stack(settings, keep, tell) as api_url, CapsClient(api_url) as client:
        job = client.submit(_demo_for_this_machine())
        tell(f"submitted job {job.id}")
        job = watch_job(client, job.id, output)
    if job.state is not State.SUCCEEDED or job.result is None or job.mlflow is None:
        raise typer.Exit(1)
    if output == Format.JSON:
        return
    sheets = [p for p in job.result.artifacts if "reconstruction-sheet-test" in p]
    program = sys.argv[0]
    what_next = (
        f"the stack is up; to stop it: {program} down"
        if keep
        else f"the stack is stopped; to bring it and this run back: {program} up"
    )
    console().print(what_next)
    accuracy = job.result.metrics["test/accuracy"] or 0.0
    console().print(f"held-out accuracy: {100 * accuracy:.2f} %")
    console().print(f"reconstruction sheet: {settings.storage_root / sheets[-1]}")
    console().print(f"MLflow run: {job.mlflow.url}")


def _demo_for_this_machine() -> TrainSpec:
    """The preset, with no more cores than there are: else it would wait for ever."""
    spec = PRESETS["demo"]
    cores = min(os.cpu_count() or 1, spec.resources.cpus_per_worker)
    resources = spec.resources.model_copy(update={"cpus_per_worker": cores})
    return spec.model_copy(update={"resources": resources})


class _Stopped:
    """True once a signal has asked for the end; a second Ctrl-C changes nothing."""

    def __init__(self) -> None:
        self._asked = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: setattr(self, "_asked", True))

    def __call__(self) -> bool:
        return self._asked


class _Teller:
    """Says what happens: lines for people, NDJSON for programs."""

    def __init__(self, output: Format) -> None:
        self._json = output == Format.JSON

    def __call__(self, message: str) -> None:
        if self._json:
            print_json({"message": message})
        else:
            console().print(message)


def _announce(supervisor: Supervisor, output: Format) -> None:
    state = supervisor.state
    if output == Format.JSON:
        print_json(state.model_dump(include={"api_url", "mlflow_url", "ray_address"}))
        return
    console().print(
        f"ready: the service is up\n"
        f"  API      {state.api_url}  (its documentation: {state.api_url}/docs)\n"
        f"  MLflow   {state.mlflow_url}\n"
        f"  Ray      {state.ray_address}  (token: {stack_state.token_path(supervisor.home)})\n"
        f"  files    {supervisor.home}\n"
        f"try: capsctl submit demo --wait      stop: Ctrl-C, or capsctl down"
    )


@contextmanager
def _stack(settings: Settings, keep: bool, tell: _Teller) -> Iterator[str]:
    """The API's address; starts the stack where none is up, and stops what it started."""
    home = settings.home.absolute()
    running = _ready_url(home)
    if running:
        tell(f"the stack is up already: {running}")
        yield running
        return
    try:
        yield _start_in_background(home, tell)
    finally:
        if not keep:
            tell("stopping the stack")
            stop_stack(home)


def _start_in_background(home: Path, tell: _Teller) -> str:
    log = home / "logs" / "up.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    tell("starting Ray, MLflow and the API (10 to 30 s)")
    with log.open("wb") as file:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "up"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + READY_TIMEOUT_S
    while supervisor.poll() is None and time.monotonic() < deadline:
        url = _ready_url(home)
        if url:
            return url
        time.sleep(0.2)
    raise StackError(f"the stack did not come up\n{log.read_text(errors='replace')}")


def _ready_url(home: Path) -> str | None:
    """The API's address, if a living `up` has announced that all is ready."""
    state = stack_state.load(home)
    if state is None or state.supervisor is None or not state.ready:
        return None
    return state.api_url if find(state.supervisor.pid, state.supervisor.created) else None
