"""Whatever is killed, and whatever checkpoint is damaged: the weights are the same, bit for bit."""

import random
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import torch

from capsmodel.checkpoint import CheckpointFolder, load_checkpoint
from chaos.kills import Killer, Kind
from service.api.views import JobView
from service.client import ApiError, CapsClient
from service.queue.job import State
from support.stack import TINY, Stack, until
from workers.attempt import AttemptFolder

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

SPEC = TINY | {
    "name": "same",
    "epochs": 120,
    "artifacts": [],
    "checkpoint_every_s": 1,
    "resources": {"cpus_per_worker": 1},
}
SHORT = SPEC | {"epochs": 12}
KINDS: dict[Kind, int] = {"worker": 22, "control plane": 4, "gcs": 2, "head": 2}
"""What is killed, by weight."""
CHECKPOINT_WITHIN_S = 180.0


def folder(stack: Stack, job: JobView, attempt: int | None = None) -> AttemptFolder:
    return AttemptFolder(stack.home / "storage", job.id, attempt or job.attempt)


def state(stack: Stack, job: JobView) -> dict[str, Any]:
    """All that a finished job's last checkpoint holds."""
    assert job.state is State.SUCCEEDED, job.evidence
    assert job.result is not None
    last = job.result.checkpoints["last"]
    return load_checkpoint(stack.home / "storage" / last.path, last.sha256)


def difference(one: Any, other: Any, where: str = "") -> str:
    """The first place in which two states differ in a bit; empty if there is none."""
    if type(one) is not type(other):
        return f"{where}: {type(one)} and {type(other)}"
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other)]
        return "" if same and torch.equal(*bits) else f"{where}: {one} and {other}"
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return f"{where}: {sorted(one)} and {sorted(other)}"
        found = (difference(one[key], other[key], f"{where}.{key}") for key in one)
        return next(filter(None, found), "")
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return f"{where}: {len(one)} and {len(other)} entries"
        found = (
            difference(a, b, f"{where}[{n}]")
            for n, (a, b) in enumerate(zip(one, other, strict=True))
        )
        return next(filter(None, found), "")
    return "" if one == other else f"{where}: {one} and {other}"


def check_same(stack: Stack, job: JobView, reference: JobView) -> None:
    """Weights, optimizer, generators, and what the test set says."""
    found = difference(state(stack, reference), state(stack, job))
    assert not found, f"job {job.id} differs from the uninterrupted {reference.id} at {found}"
    assert job.result is not None
    assert reference.result is not None
    measured = [
        {name: value for name, value in result.metrics.items() if name.startswith(("test", "val"))}
        for result in (job.result, reference.result)
    ]
    assert measured[0] == measured[1]


def undisturbed(client: CapsClient, spec: dict[str, Any]) -> JobView:
    """The job as it is without any kill."""
    job = client.wait(client.submit(spec).id, timeout=600)
    assert (job.state, job.attempt) == (State.SUCCEEDED, 1), job.evidence
    return job


@pytest.mark.parametrize("kills", [3, 30])
def test_kills_change_no_bit(stack: Stack, client: CapsClient, kills: int) -> None:
    seed = secrets.randbelow(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    killer = Killer(stack, chance)
    planned = (kills // sum(KINDS.values()) + 1) * [k for k, n in KINDS.items() for _ in range(n)]
    chance.shuffle(planned)
    del planned[kills:]
    spec = SPEC if kills == 30 else SHORT
    reference = undisturbed(client, spec)
    jobs = []
    while planned:
        jobs.append(kill_through(client, killer, chance, planned, spec))
    for job in jobs:
        check_same(stack, job, reference)
    attempts = [job.attempt for job in jobs]
    print(f"{len(killer.kills)} kills, {len(jobs)} jobs, attempts {attempts}")
    assert len(killer.kills) == kills
    assert max(attempts) >= 2


def kill_through(
    client: CapsClient,
    killer: Killer,
    chance: random.Random,
    planned: list[Kind],
    spec: dict[str, Any],
) -> JobView:
    """One job, killed until it ends all the same, or nothing is planned any more."""
    job = client.submit(spec)
    while planned:

        def ready() -> bool:
            # Each attempt must leave a checkpoint, or the third loss makes a poison job.
            return bool(killer.training()) or ended(client, job)

        until(ready, CHECKPOINT_WITHIN_S, "an attempt to train")
        sleep(chance.uniform(0.0, 3.0))
        if ended(client, job):
            break
        # Whom the last blow has killed may still have looked alive.
        if killer.training() and killer.strike(planned[-1]) is not None:
            planned.pop()
    return client.wait(job.id, timeout=600)


def ended(client: CapsClient, job: JobView) -> bool:
    """Whether a job has ended; while the API is away it has not."""
    try:
        return client.job(job.id).state.terminal
    except ApiError as error:
        if not error.passing:
            raise
        return False


@contextmanager
def killed(stack: Stack, client: CapsClient) -> Iterator[tuple[JobView, Path, Path]]:
    """A job whose worker is dead, its newest checkpoint and the one before.

    Meanwhile the control plane stands still, so that nobody goes on from them yet.
    """
    job = client.submit(SHORT)
    checkpoints = folder(stack, job, 1).checkpoints

    def two() -> bool:
        progress = folder(stack, job, 1).read_progress()
        return progress is not None and progress.epoch >= 3 and len(steps(checkpoints)) == 2

    until(two, CHECKPOINT_WITHIN_S, "two checkpoints")
    api = stack.service("api")
    api.suspend()
    try:
        for worker in stack.workers(job.id):
            worker.kill()
        until(lambda: not stack.workers(job.id), 10, "its worker gone")
        before, newest = steps(checkpoints)
        yield job, newest, before
    finally:
        api.resume()


def steps(checkpoints: Path) -> list[Path]:
    """Whole step checkpoints, the oldest first."""
    return sorted(path for path in checkpoints.glob("step-*.pt") if sidecar(path).exists())


def sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def replace(path: Path, content: bytes) -> None:
    """Another file in its place: the best checkpoint may be a second name of the same one."""
    path.unlink()
    path.write_bytes(content)


def truncate(path: Path, stranger: Path) -> None:
    replace(path, path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path, stranger: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 1 << 5
    replace(path, bytes(content))


def empty(path: Path, stranger: Path) -> None:
    replace(path, b"")


def swap(path: Path, stranger: Path) -> None:
    replace(path, stranger.read_bytes())


def swap_with_sidecar(path: Path, stranger: Path) -> None:
    replace(path, stranger.read_bytes())
    replace(sidecar(path), sidecar(stranger).read_bytes())


@pytest.fixture(scope="module")
def reference(stack: Stack) -> JobView:
    """What the jobs with damaged checkpoints must end as."""
    with stack.client() as client:
        return undisturbed(client, SHORT)


@pytest.fixture(scope="module")
def stranger(stack: Stack) -> Path:
    """A whole checkpoint of another job, of the same shape."""
    with stack.client() as client:
        spec = SHORT | {"epochs": 2, "optimizer": {"learning_rate": 1e-2}, "seed": 7}
        job = undisturbed(client, spec)
    assert job.result is not None
    return stack.home / "storage" / job.result.checkpoints["last"].path


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty, swap, swap_with_sidecar])
def test_a_damaged_checkpoint_is_passed_over(
    stack: Stack,
    client: CapsClient,
    reference: JobView,
    stranger: Path,
    damage: Callable[[Path, Path], None],
) -> None:
    with killed(stack, client) as (job, newest, before):
        damage(newest, stranger)
        info, problems = CheckpointFolder(newest.parent, owner=job.id).newest_verified()
        assert info is not None
        assert info.path == before
        assert len(problems) == 1
        step = int(before.stem.removeprefix("step-"))
    job = client.wait(job.id, timeout=300)
    assert job.attempt == 2
    (resumed,) = [event for event in client.events(job.id) if event.type == "resumed"]
    assert resumed.data["step"] == step
    (skipped,) = resumed.data["skipped"]
    assert newest.name in skipped
    assert "1 checkpoint passed over" in resumed.message
    log = "".join(chunk.text for chunk in client.follow_logs(job.id))
    assert "a checkpoint is skipped" in log
    check_same(stack, job, reference)
