"""What nets are measured on: the machine as torch sees it, and the memory that a process took."""

import re
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import cpu_model
from benchmarks.machine import describe_machine as describe_host


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What the figures will be measured on, when, and the load average that is there already."""
    on_gpu = device.type == "cuda"
    return {
        "kind": device.type,
        **describe_host(),
        "device": torch.cuda.get_device_name(device) if on_gpu else cpu_model(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_gpu else None,
    }


def torch_flags() -> dict[str, Any]:
    """Settings of torch that a library may have changed for its whole process."""
    return {
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "threads": torch.get_num_threads(),
    }


def peak_mib(device: torch.device) -> float:
    """Most memory so far: torch's tensors on a GPU, else what Linux says of the whole process.

    Raises:
        RuntimeError: Another system than Linux.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    # getrusage would begin with the peak of the process that started this one.
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{status} has no line VmHWM: the benchmark runs on Linux alone")
    return int(found[1]) / 2**10
