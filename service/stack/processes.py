"""Find and end the stack's processes: by their tag in the environment, which children inherit.

Ray's daemons leave their process group and their parent, so neither tells whose they are.
"""

import contextlib
import os
import socket
from pathlib import Path

import psutil

SERVICE_TAG = "CAPS_SERVICE"
HOME_TAG = "CAPS_HOME"


def tagged(home: Path, service: str | None = None) -> list[psutil.Process]:
    """Processes of this home's stack, of one service or of all; never this very process."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            zombie = process.status() == psutil.STATUS_ZOMBIE
        except (psutil.Error, OSError):
            continue
        name = environment.get(SERVICE_TAG)
        ours = environment.get(HOME_TAG) == str(home) and name is not None
        if ours and not zombie and service in (None, name) and process.pid != os.getpid():
            found.append(process)
    return found


def workers(home: Path) -> list[psutil.Process]:
    """Processes that train a job of this home's stack."""
    found = []
    for process in tagged(home, "ray"):
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[1:4] == ["-P", "-m", "workers"]:
                found.append(process)
    return found


def end(processes: list[psutil.Process], grace_s: float) -> None:
    """SIGTERM, then SIGKILL to what is left after the grace."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, left = psutil.wait_procs(processes, timeout=grace_s)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=5)


def find(pid: int, created: float) -> psutil.Process | None:
    """The process with this id, unless the id has been given to another one since."""
    try:
        process = psutil.Process(pid)
        alive = process.create_time() == created and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return None
    return process if alive else None


def free_port(preferred: int | None = None) -> int:
    """The preferred port on loopback if nobody has it, else one that is free."""
    for candidate in (preferred, 0):
        if candidate is None:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", candidate))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no free port on 127.0.0.1")
