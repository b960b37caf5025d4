"""What figures without a net are measured on: needs no torch."""

import os
import platform
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def describe_machine() -> dict[str, Any]:
    """The CPU, when, and the load average that is there already."""
    return {
        "device": cpu_model(),
        "threads": len(os.sched_getaffinity(0)),
        "python": ".".join(map(str, sys.version_info[:3])),
        "load": round(os.getloadavg()[0], 1),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }


def cpu_model() -> str:
    """The CPU's name as Linux tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def file_name(machine: dict[str, Any]) -> str:
    """Name of a machine's results, without an ending; a CPU's tells the threads."""
    name = machine["device"]
    if machine.get("kind", "cpu") == "cpu":
        name += f" {machine['threads']} threads"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
