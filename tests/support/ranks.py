"""Trainings on several ranks: real processes on this machine, which meet over gloo."""

import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PRELOADED = [
    "capsmodel.training",
    "capsmodel.capsnet",
    "capsmodel.cnn",
    "capsmodel.losses.margin",
    "capsmodel.losses.cross_entropy",
    "capsmodel.routing.dynamic",
    "capsmodel.datasets.multimnist",
    "torch._dynamo",
]
"""All that takes long to import; found by name without this process's path of modules."""
PATIENCE_S = 60.0


@dataclass
class Told:
    """What a rank returned, or raised; neither if it was killed."""

    value: Any = None
    error: Exception | None = None
    exitcode: int | None = None


def run_ranks(work: Callable[..., Any], size: int, meeting: Path, *arguments: Any) -> list[Told]:
    """Run `work(*arguments)` on so many ranks at once and wait for all.

    Args:
        work: A function of a module that other processes can import.
        size: Number of ranks.
        meeting: A file that does not exist yet, by which they find each other.
        arguments: Whatever can be pickled.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    task = pickle.dumps((work, arguments))
    processes, ends = [], []
    for rank in range(size):
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=_rank, args=(rank, size, str(meeting), task, sending))
        process.start()
        sending.close()
        processes.append(process)
        ends.append(receiving)
    told = [_hear(end) for end in ends]
    for process, answer in zip(processes, told, strict=True):
        process.join(PATIENCE_S if answer.error is None else 5)
        answer.exitcode = process.exitcode
        process.kill()
    return told


def _hear(end: Any) -> Told:
    if not end.poll(PATIENCE_S):
        return Told(error=TimeoutError(f"a rank was still at work after {PATIENCE_S:g} s"))
    try:
        value, error = pickle.loads(end.recv_bytes())
    except EOFError:
        return Told()
    return Told(value, error)


def _rank(rank: int, size: int, meeting: str, task: bytes, sending: Any) -> None:
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # the machine's own name may lead nowhere
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    work, arguments = pickle.loads(task)
    try:
        answer = work(*arguments), None
    except Exception as error:
        answer = None, error
    sending.send_bytes(pickle.dumps(answer))
    dist.destroy_process_group()
