"""Which of an attempt's processes live on: proof of death, as far as this host can see.

Stands on psutil alone, for control plane and workers.
"""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

from workers.attempt import ProcessRecord
from workers.process import host_id

SAME_S = 0.5
"""Times of creation that differ by less are of one process: they are rounded, and never exact."""


def own_record(role: str) -> ProcessRecord:
    """This process, as it registers itself."""
    pid = os.getpid()
    return ProcessRecord(host=host_id(), pid=pid, created=created(pid), role=role)


def living(records: Iterable[ProcessRecord]) -> list[ProcessRecord]:
    """Those of this host that still run; a zombie does not, for it holds nothing any more."""
    return [record for record in records if record.host == host_id() and _lives(record)]


def elsewhere(records: Iterable[ProcessRecord]) -> list[ProcessRecord]:
    """Those of other hosts: whether they run cannot be seen from here."""
    return [record for record in records if record.host != host_id()]


def kill(record: ProcessRecord) -> bool:
    """SIGKILL to a process of this host; False where it was gone, or its id is another's by now.

    Raises:
        ValueError: It is a process of another host.
        PermissionError: It is another user's.
    """
    if record.host != host_id():
        raise ValueError(f"process {record.pid} is of host {record.host}, this is {host_id()}")
    try:
        process = psutil.Process(record.pid)
        if not _lives(record):
            return False
        process.kill()  # psutil looks once more whether it is the same
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied as error:
        raise PermissionError(f"process {record.pid} is not ours to kill") from error
    return True


def created(pid: int) -> float:
    """When a process was created, in seconds since the host was started.

    Unlike a time of day this does not change when the host's clock is set. Where there is no /proc
    it is in seconds since 1970.

    Raises:
        psutil.NoSuchProcess: There is none.
    """
    if not sys.platform.startswith("linux"):
        return psutil.Process(pid).create_time()
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise psutil.NoSuchProcess(pid) from error
    # The second field is the program's name in parentheses, which may hold anything.
    fields = text.rpartition(b")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _lives(record: ProcessRecord) -> bool:
    try:
        if abs(created(record.pid) - record.created) >= SAME_S:
            return False
        return psutil.Process(record.pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
