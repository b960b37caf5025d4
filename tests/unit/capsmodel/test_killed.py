"""A training killed again and again ends with the weights of one that was never killed."""

import multiprocessing
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from capsmodel.checkpoint import CheckpointFolder, load_checkpoint
from support.killable import NETS, make_trainer, train

KILLS = 20
PRELOADED = ["capsmodel.training", "capsmodel.datasets.multimnist", "torch._dynamo"]
"""All that takes long to import; found by name without this process's path of modules."""


@pytest.fixture(scope="module")
def processes() -> Any:
    """Processes that start with torch already imported, and nothing of this one's."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_killed_at_20_random_steps(name: str, tmp_path: Path, processes: Any) -> None:
    seed = random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    uninterrupted = make_trainer(NETS[name], [])
    uninterrupted.fit()
    steps = uninterrupted.total_steps
    # In rising order, else an early training would end before it is killed at a late step.
    for die_at in sorted(chance.sample(range(1, steps + 1), KILLS)):
        process = processes.Process(target=train, args=(NETS[name], tmp_path, die_at))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, f"seed {seed}, step {die_at}"
    train(NETS[name], tmp_path, None)
    newest, problems = CheckpointFolder(tmp_path).newest_verified()
    assert newest is not None
    assert newest.step == steps
    assert problems == []
    resumed, whole = load_checkpoint(newest.path)["model"], uninterrupted.state_dict()["model"]
    assert resumed.keys() == whole.keys()
    for weight, value in whole.items():
        assert torch.equal(resumed[weight], value), f"{weight}, seed {seed}"


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path, processes: Any) -> None:
    """In the middle of a write, too: what is found afterwards is whole."""
    chance = random.Random()
    folder = CheckpointFolder(tmp_path)
    for _ in range(8):
        process = processes.Process(target=train, args=(NETS["capsnet"], tmp_path, None))
        process.start()
        process.join(chance.uniform(0.05, 0.6))
        process.kill()
        process.join(60)
    train(NETS["capsnet"], tmp_path, None)
    newest, problems = folder.newest_verified()
    uninterrupted = make_trainer(NETS["capsnet"], [])
    uninterrupted.fit()
    assert newest is not None
    assert newest.step == uninterrupted.total_steps
    assert problems == []
    for weight, value in uninterrupted.state_dict()["model"].items():
        assert torch.equal(load_checkpoint(newest.path)["model"][weight], value)
