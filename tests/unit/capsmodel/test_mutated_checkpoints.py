"""Of 12,000 damaged checkpoints none is loaded or described as something else than was saved.

Damaged by bits, by holes, by an end that is missing, or swapped: with another job's checkpoint or
an older one of the same job, the file alone, its sidecar alone, or both.
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from capsmodel.checkpoint import (
    BadCheckpointError,
    CheckpointFolder,
    CheckpointInfo,
    load_checkpoint,
    save_checkpoint,
)

MUTANTS = 2000
CHUNKS = 10


def flip_a_bit(content: bytearray, chance: random.Random) -> None:
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def cut_off(content: bytearray, chance: random.Random) -> None:
    del content[chance.randrange(len(content)) :]


def leave_a_hole(content: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(content))
    size = min(chance.choice([1, 16, 512]), len(content) - start)
    content[start : start + size] = bytes(size)


def insert_bytes(content: bytearray, chance: random.Random) -> None:
    position = chance.randrange(len(content) + 1)
    content[position:position] = chance.randbytes(chance.choice([1, 8, 100]))


def swap_blocks(content: bytearray, chance: random.Random) -> None:
    half, size = len(content) // 2, chance.choice([4, 64])
    one, other = chance.randrange(half - size), half + chance.randrange(half - size)
    content[one : one + size], content[other : other + size] = (
        content[other : other + size],
        content[one : one + size],
    )


MUTATIONS = [flip_a_bit, cut_off, leave_a_hole, insert_bytes, swap_blocks]


def state() -> dict[str, Any]:
    return {"model": {"weight": torch.arange(300.0)}, "step": 7, "sampler": {"position": 3}}


def same(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def loaded_corrupt(path: Path, load: Callable[[Path], dict[str, Any]]) -> bool:
    """Whether a damaged checkpoint came through as another state."""
    try:
        return not same(load(path), state())
    except BadCheckpointError:
        return False


def damage(path: Path, chance: random.Random) -> None:
    """Mutate the file, in a fifth of the cases its sidecar, in another fifth both."""
    which = chance.choice([[path]] * 3 + [[sidecar(path)], [path, sidecar(path)]])
    for victim in which:
        content = bytearray(victim.read_bytes())
        chance.choice(MUTATIONS)(content, chance)
        victim.write_bytes(content)


def sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_mutant_is_loaded_as_another_state(tmp_path: Path, chunk: int) -> None:
    seed = random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    path = tmp_path / "state.pt"
    save_checkpoint(path, state(), epoch=1, step=7)
    whole = {file: file.read_bytes() for file in (path, sidecar(path))}
    for number in range(MUTANTS // CHUNKS):
        for file, content in whole.items():
            file.write_bytes(content)
        damage(path, chance)
        assert not loaded_corrupt(path, load_checkpoint), f"mutant {number} of seed {seed}"


def newest(folder: CheckpointFolder) -> CheckpointInfo | None:
    """The newest whole one; what is skipped has a reason."""
    found, problems = folder.newest_verified()
    assert found or problems
    return found


def best(folder: CheckpointFolder) -> CheckpointInfo | None:
    """The best one, if it is whole."""
    try:
        return folder.best()
    except BadCheckpointError:
        return None


@pytest.mark.parametrize("other", [False, True], ids=["alone", "with a whole one"])
@pytest.mark.parametrize("find", [newest, best])
def test_no_mutant_is_described_as_another(tmp_path: Path, find, other: bool) -> None:
    """A folder says of a mutant what is true, or passes it over for another whole one."""
    seed = random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    folder = CheckpointFolder(tmp_path)
    first = folder.save(state(), epoch=1, step=7)
    if find is best:
        mutated = folder.mark_best(first)
    else:
        mutated = folder.save({**state(), "step": 1000}, epoch=3, step=1000)
    if not other:
        for file in (first.path, sidecar(first.path)):
            file.unlink()
    true = [first, mutated]
    whole = {file: file.read_bytes() for file in (mutated.path, sidecar(mutated.path))}
    for number in range(MUTANTS // 10):
        for file, content in whole.items():
            file.unlink()  # a hard link of the file stays whole
            file.write_bytes(content)
        damage(mutated.path, chance)
        found = find(folder)
        assert found is None or found in true, f"mutant {number} of seed {seed}: {found}"


# ------------------------------------------------------------------ a job's folder, 10,000 times

FOLDER_MUTANTS = 10_000
FOLDER_CHUNKS = 5


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator["Jobs"]:
    """In memory where there is such a folder: on a disk, files written anew are waited for."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as place:
        yield Jobs(Path(place))


class Jobs:
    """Two jobs with two checkpoints each; the newest of the first one is harmed."""

    def __init__(self, place: Path) -> None:
        self.ours = CheckpointFolder(place / "ours", owner="job-1")
        theirs = CheckpointFolder(place / "theirs", owner="job-2")
        self.older, self.newest = (
            self.ours.save({**state(), "step": step}, epoch=1, step=step) for step in (7, 8)
        )
        self.foreign = theirs.save({**state(), "step": 80}, epoch=1, step=8)
        files = (self.newest.path, sidecar(self.newest.path))
        self._whole = {file: file.read_bytes() for file in files}

    def mend(self) -> None:
        for file, content in self._whole.items():
            file.write_bytes(content)

    def harmed(self) -> bool:
        """Whether the newest, or its sidecar, differs by a byte from what was saved."""
        return any(not f.exists() or f.read_bytes() != old for f, old in self._whole.items())


def any_bytes(jobs: Jobs, chance: random.Random) -> None:
    damage(jobs.newest.path, chance)


def emptied(jobs: Jobs, chance: random.Random) -> None:
    one_or_both(jobs.newest.path, chance, lambda file: file.write_bytes(b""))


def removed(jobs: Jobs, chance: random.Random) -> None:
    chance.choice([jobs.newest.path, sidecar(jobs.newest.path)]).unlink()


def swapped_with_another_jobs(jobs: Jobs, chance: random.Random) -> None:
    put_in_place(jobs.foreign.path, jobs.newest.path, chance)


def replaced_by_the_older_one(jobs: Jobs, chance: random.Random) -> None:
    put_in_place(jobs.older.path, jobs.newest.path, chance)


def put_in_place(source: Path, target: Path, chance: random.Random) -> None:
    def put(file: Path) -> None:
        file.write_bytes((sidecar(source) if file.suffix == ".json" else source).read_bytes())

    one_or_both(target, chance, put)


def one_or_both(path: Path, chance: random.Random, act: Callable[[Path], Any]) -> None:
    for file in chance.choice([[path], [sidecar(path)], [path, sidecar(path)]]):
        act(file)


HARMS: list[Callable[[Jobs, random.Random], None]] = [
    any_bytes,
    any_bytes,
    any_bytes,
    emptied,
    removed,
    swapped_with_another_jobs,
    replaced_by_the_older_one,
]


@pytest.mark.parametrize("chunk", range(FOLDER_CHUNKS))
def test_a_harmed_newest_is_passed_over_for_the_one_before(jobs: Jobs, chunk: int) -> None:
    seed = random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    for number in range(FOLDER_MUTANTS // FOLDER_CHUNKS):
        jobs.mend()
        harm = chance.choice(HARMS)
        harm(jobs, chance)
        where = f"mutant {number} of seed {seed}: {harm.__name__}"
        found, problems = jobs.ours.newest_verified()
        if found == jobs.newest:  # the same bytes were put back, or blanks of the sidecar changed
            assert harm is any_bytes, where
            assert same(load_checkpoint(found.path, found.sha256), {**state(), "step": 8}), where
        else:
            assert found == jobs.older, where
            assert jobs.harmed(), where
            assert len(problems) == 1, where
            assert jobs.newest.path.name in problems[0], where


@pytest.mark.parametrize("harm", HARMS[2:], ids=lambda harm: harm.__name__)
def test_what_is_loaded_after_any_harm_is_the_one_before(
    jobs: Jobs, harm: Callable[[Jobs, random.Random], None]
) -> None:
    chance = random.Random(7)
    for _ in range(30):
        jobs.mend()
        harm(jobs, chance)
        found, _ = jobs.ours.newest_verified()
        assert found is not None
        state_before = {**state(), "step": found.step}
        assert found.step in (7, 8)
        assert same(load_checkpoint(found.path, found.sha256), state_before)


def test_a_loader_that_does_not_verify_is_caught(tmp_path: Path) -> None:
    """The mutants are able to show a fault: PyTorch's own loader lets some through."""

    def careless(path: Path) -> dict[str, Any]:
        try:
            loaded: dict[str, Any] = torch.load(path, weights_only=True)
        except Exception as error:
            raise BadCheckpointError(str(error)) from error
        return loaded

    chance, path, let_through = random.Random(1), tmp_path / "state.pt", 0
    for _ in range(200):
        save_checkpoint(path, state(), epoch=1, step=7)
        damage(path, chance)
        let_through += loaded_corrupt(path, careless)
    assert let_through > 0
