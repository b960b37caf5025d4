"""`capsctl up`: starts the stack's services or adopts those that live, and keeps them running.

Each service is a process of its own session, so that it outlives a killed supervisor; the next one
adopts what still answers as ours.
"""

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import psutil

from service.errors import StackError
from service.stack import state as stack_state
from service.stack.processes import end, find, tagged, workers
from service.stack.services import Service, ray_folder, services
from service.stack.state import RunningProcess, StackState

READY_TIMEOUT_S = 120.0
STOP_GRACE_S = 8.0
FIRST_BACKOFF_S = 1.0
MAX_BACKOFF_S = 30.0
STEADY_S = 3.0
"""A service that has lived for so long starts again without a delay."""
WATCH_EVERY_S = 0.1


class Supervisor:
    """Owns one CAPS_HOME's stack for as long as it lives; a second one is refused."""

    def __init__(
        self, home: Path, say: Callable[[str], None], cpus: int | None, gpus: int | None
    ) -> None:
        self.home = home.absolute()
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._say = say
        self._lock = _take_lock(self.home)
        previous = stack_state.load(self.home)
        self.state = self._adoptable(previous) or stack_state.fresh(previous)
        self.state.supervisor = RunningProcess(
            pid=os.getpid(), created=psutil.Process().create_time()
        )
        self.state.ready = False
        self.services = services(self.home, self.state, cpus, gpus)
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._started_at: dict[str, float] = {}
        self._died_at: dict[str, float] = {}
        self._pause: dict[str, float] = {}

    def start(self, stopped: Callable[[], bool]) -> None:
        """Start or adopt every service and wait until each is ready, or until told to stop.

        Raises StackError when one is not ready in time; the end of its log tells why.
        """
        for service in self.services:
            if self._process(service) and service.ready():
                self._say(f"{service.title} is still there at {service.address}")
                continue
            self._start(service)
        self._save()
        for service in self.services:
            self._wait_until_ready(service, stopped)
        self.state.ready = True
        self._save()

    def watch(self, stopped: Callable[[], bool]) -> None:
        """Restart what dies, with growing pauses, until told to stop."""
        while not stopped():
            for service in self.services:
                if self._process(service) is None:
                    self._restart(service)
            time.sleep(WATCH_EVERY_S)

    def stop(self) -> None:
        """End everything that belongs to this home's stack, and see it gone.

        First the API, so that nothing is started any more; then the jobs, each of which leaves a
        checkpoint and goes on at the next `up`; then the rest.
        """
        api = self.services[-1]
        end([process] if (process := self._process(api)) else [], STOP_GRACE_S)
        end(workers(self.home), STOP_GRACE_S)
        for service in reversed(self.services):
            process = self._process(service)
            if process:
                end([process], STOP_GRACE_S)
            end(tagged(self.home, service.name), 2.0)
        self.state.services = {}
        self.state.supervisor = None
        self.state.ready = False
        self._save()
        folder = ray_folder(self.home, self.state)
        if self.home not in folder.parents:
            shutil.rmtree(folder, ignore_errors=True)

    def _adoptable(self, previous: StackState | None) -> StackState | None:
        """The previous state, if one of its processes lives on; else whatever is left is ended."""
        if previous and any(find(p.pid, p.created) for p in previous.services.values()):
            return previous
        end(tagged(self.home), 2.0)
        return None

    def _process(self, service: Service) -> psutil.Process | None:
        child = self._children.get(service.name)
        if child is not None and child.poll() is not None:
            return None
        known = self.state.services.get(service.name)
        return find(known.pid, known.created) if known else None

    def _start(self, service: Service) -> None:
        end(tagged(self.home, service.name), 2.0)
        self._say(f"starting {service.title} at {service.address}")
        with self._log(service).open("ab") as log:
            child = subprocess.Popen(
                service.command,
                env=service.environment,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children[service.name] = child
        self._started_at[service.name] = time.monotonic()
        created = psutil.Process(child.pid).create_time()
        self.state.services[service.name] = RunningProcess(pid=child.pid, created=created)
        self._save()

    def _restart(self, service: Service) -> None:
        now = time.monotonic()
        died_at = self._died_at.setdefault(service.name, now)
        lived = died_at - self._started_at.get(service.name, 0.0)
        pause = 0.0 if lived >= STEADY_S else self._pause.get(service.name, 0.0)
        if now - died_at < pause:
            return
        self._say(f"{service.title} ended; its log is {self._log(service)}")
        self._pause[service.name] = min(MAX_BACKOFF_S, max(FIRST_BACKOFF_S, 2 * pause))
        del self._died_at[service.name]
        self._start(service)

    def _wait_until_ready(self, service: Service, stopped: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not stopped() and not service.ready():
            if self._process(service) is None:
                raise StackError(f"{service.title} ended at once\n{self._end_of_log(service)}")
            if time.monotonic() > deadline:
                raise StackError(
                    f"{service.title} is not ready after {READY_TIMEOUT_S:.0f} s\n"
                    f"{self._end_of_log(service)}"
                )
            time.sleep(0.2)

    def _log(self, service: Service) -> Path:
        folder = self.home / "logs"
        folder.mkdir(exist_ok=True)
        return folder / f"{service.name}.log"

    def _end_of_log(self, service: Service) -> str:
        path = self._log(service)
        lines = path.read_text(errors="replace").splitlines()[-15:] if path.exists() else []
        return "\n".join([f"{path}:", *lines])

    def _save(self) -> None:
        stack_state.save(self.home, self.state)


def _take_lock(home: Path) -> IO[str]:
    """Held until the process ends, however it ends."""
    lock = (home / "up.lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise StackError(f"a stack is already up in {home}; `capsctl down` stops it") from error
    return lock


def stop_stack(home: Path, timeout_s: float = 60.0) -> bool:
    """`capsctl down`: end the supervisor and all services; False where nothing was running."""
    home = home.absolute()
    known = stack_state.load(home)
    supervisor = known.supervisor if known else None
    process = find(supervisor.pid, supervisor.created) if supervisor else None
    if supervisor and process:
        process.terminate()
        deadline = time.monotonic() + timeout_s
        while find(supervisor.pid, supervisor.created) and time.monotonic() < deadline:
            time.sleep(0.1)
    left = tagged(home)
    end(left, STOP_GRACE_S)
    return process is not None or bool(left)
