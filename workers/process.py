"""The worker as a process: its host, where its output goes, that it never outlives its parent."""

import ctypes
import os
import signal
import socket
import sys
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path

PR_SET_PDEATHSIG = 1
NICE_VARIABLE = "CAPS_NICE"


@cache
def host_id() -> str:
    """Names where this process runs: two with the same id see each other by their process ids.

    On Linux the machine's boot and the namespace of process ids, so that a container is a host of
    its own; elsewhere the machine's network address and name.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}-{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return f"{uuid.getnode():012x}-{socket.gethostname()}"


def die_with_parent() -> None:
    """Be killed when the parent dies, so that no orphan holds a GPU (Linux).

    The parent is Ray's supervisor of this job, of an actor the raylet. A new attempt starts only
    when the old one is surely gone, so this is SIGKILL, not SIGTERM. It holds as long as the thread
    lives that calls this.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:  # the parent died before the call
        end_at_once()


def give_way() -> None:
    """Let the machine's other processes go first, as far as CAPS_NICE says (0 to 19; default 0).

    `capsctl up` sets it, so that the API and MLflow answer while trainings use every core. Linux
    shares the cores between sessions first (sched(7), autogroups), and Ray gives each job one.
    """
    nice = int(os.environ.get(NICE_VARIABLE, "0"))
    if nice <= os.getpriority(os.PRIO_PROCESS, 0):
        return
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    with suppress(OSError):  # not Linux, or a kernel without autogroups
        Path("/proc/self/autogroup").write_text(str(nice))


def end_at_once() -> None:
    """SIGKILL to this process: no handler, no lock and no other thread can delay it."""
    os.kill(os.getpid(), signal.SIGKILL)


def print_to(log: Path) -> None:
    """Send stdout and stderr, those of native code too, to the attempt's log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
