"""Where an attempt begins: at the newest checkpoint that is whole and its job's, and it says so."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from capsmodel.checkpoint import load_checkpoint
from capsmodel.datasets import Dataset, load_dataset
from capsmodel.distributed import Ranks
from capsmodel.training_state import IncompatibleStateError
from support.search_books import make_spec
from workers.attempt import AttemptFolder, Reason, Resumed
from workers.course import Course, Setting, Start, own_checkpoints
from workers.failures import StorageDiffersError, classify
from workers.stop import StopFlag
from workers.train import Silence, examine

SPEC = make_spec(
    base={
        "dataset": {"type": "mnist-5k", "per_class": 5, "validation_fraction": 0.02},
        "batch_size": 25,
        "epochs": 3,
    }
).variant({})
STEPS = 6
"""Two an epoch."""


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset(SPEC.dataset)


def course(folder: AttemptFolder, data: Dataset, rank: int = 0, **changes: Any) -> Course:
    spec = SPEC.model_copy(update=changes)
    setting = Setting(folder, spec, torch.device("cpu"), Silence(), StopFlag(folder), rank=rank)
    return Course(setting, data)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory, data: Dataset) -> Path:
    """Two jobs that went through the same, after their first attempt; what differs is the seed."""
    place = tmp_path_factory.mktemp("storage")
    for job, seed in (("j1", SPEC.seed), ("j2", SPEC.seed + 1)):
        course(AttemptFolder(place, job, 1), data, seed=seed).run()
    return place


@pytest.fixture
def ours(storage: Path, tmp_path: Path) -> AttemptFolder:
    """The first attempt of `j1`, to be harmed at will."""
    shutil.copytree(storage, tmp_path / "storage")
    return AttemptFolder(tmp_path / "storage", "j1", 1)


def newest(folder: AttemptFolder) -> Path:
    return folder.checkpoints / "step-00000006.pt"


def sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def put(path: Path, content: bytes) -> None:
    path.unlink()  # a hard link of the file, the best one, stays whole
    path.write_bytes(content)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    put(path, bytes(content))


def cut_off(path: Path) -> None:
    content = path.read_bytes()
    put(path, content[: random.randrange(len(content))])


def other_jobs(path: Path) -> Path:
    return Path(str(path).replace("/j1/", "/j2/"))


def swap(path: Path, source: Path, *which: Callable[[Path], Path]) -> None:
    for each in which:
        put(each(path), each(source).read_bytes())


def itself(path: Path) -> Path:
    return path


def older(path: Path) -> Path:
    return path.with_name("step-00000004.pt")


HARMS: dict[str, Callable[[Path], Any]] = {
    "truncated": cut_off,
    "truncated sidecar": lambda path: cut_off(sidecar(path)),
    "a bit": flip_a_bit,
    "a bit of the sidecar": lambda path: put(
        sidecar(path), sidecar(path).read_bytes().replace(b'"step": 6', b'"step": 7')
    ),
    "empty": lambda path: put(path, b""),
    "empty sidecar": lambda path: put(sidecar(path), b""),
    "no sidecar": lambda path: sidecar(path).unlink(),
    "no file": lambda path: path.unlink(),
    "another job's file": lambda path: swap(path, other_jobs(path), itself),
    "another job's sidecar": lambda path: swap(path, other_jobs(path), sidecar),
    "another job's": lambda path: swap(path, other_jobs(path), itself, sidecar),
    "the older file": lambda path: swap(path, older(path), itself),
    "the older sidecar": lambda path: swap(path, older(path), sidecar),
    "the older one": lambda path: swap(path, older(path), itself, sidecar),
}


def weights(folder: AttemptFolder) -> dict[str, torch.Tensor]:
    found, _ = own_checkpoints(folder).newest_verified()
    assert found is not None
    assert found.step == STEPS
    model: dict[str, torch.Tensor] = load_checkpoint(found.path)["model"]
    return model


def resumed(folder: AttemptFolder) -> Resumed | None:
    progress = folder.read_progress()
    assert progress is not None
    return progress.resumed


@pytest.mark.parametrize("harm", HARMS)
def test_a_harmed_newest_costs_one_epoch_and_is_told(
    ours: AttemptFolder, data: Dataset, harm: str
) -> None:
    whole = weights(ours)
    HARMS[harm](newest(ours))
    later = AttemptFolder(ours.storage, "j1", 2)
    training = course(later, data)
    assert training.trainer.step == 4
    training.run()
    found = resumed(later)
    assert found is not None
    assert (found.attempt, found.epoch, found.step) == (1, 2, 4)
    (told,) = found.skipped
    assert "jobs/j1/1/checkpoints/step-00000006.pt" in told
    assert str(ours.storage) not in told
    for name, value in weights(later).items():
        assert torch.equal(value, whole[name]), name


def test_a_state_of_another_specification_is_refused(ours: AttemptFolder, data: Dataset) -> None:
    with pytest.raises(IncompatibleStateError, match="another configuration") as caught:
        course(AttemptFolder(ours.storage, "j1", 2), data, seed=SPEC.seed + 1)
    assert classify(caught.value) is Reason.BAD_CHECKPOINT


def test_a_job_that_was_not_interrupted_tells_of_no_resumption(ours: AttemptFolder) -> None:
    assert resumed(ours) is None


def test_a_later_attempt_tells_where_it_began(ours: AttemptFolder, data: Dataset) -> None:
    later = AttemptFolder(ours.storage, "j1", 2)
    course(later, data).run()
    assert resumed(later) == Resumed(attempt=1, epoch=3, step=6)


def test_where_all_are_harmed_it_begins_anew_and_says_why(
    ours: AttemptFolder, data: Dataset
) -> None:
    whole = weights(ours)
    for path in (newest(ours), older(newest(ours))):
        flip_a_bit(path)
    later = AttemptFolder(ours.storage, "j1", 2)
    course(later, data).run()
    found = resumed(later)
    assert found is not None
    assert (found.attempt, found.epoch, found.step, len(found.skipped)) == (None, 0, 0, 2)
    assert all(torch.equal(value, whole[name]) for name, value in weights(later).items())


@pytest.mark.parametrize("harm", ["a bit", "another job's"])
def test_a_harmed_best_one_is_told_and_costs_no_job(
    ours: AttemptFolder, data: Dataset, harm: str
) -> None:
    best = ours.checkpoints / "best.pt"
    found = own_checkpoints(ours).best()
    assert found is not None
    for twin in (newest(ours), older(newest(ours))):  # which would mend it
        if found.path.samefile(twin):
            flip_a_bit(twin)
    HARMS[harm](best)
    later = AttemptFolder(ours.storage, "j1", 2)
    training = course(later, data)
    training.run()
    examine(training)
    kept = own_checkpoints(later).best()
    assert kept is not None
    assert kept.owner == "j1"
    told = resumed(later)
    assert told is not None
    assert any("best.pt" in problem for problem in told.skipped)


def test_all_workers_go_on_from_the_checkpoint_that_the_first_one_chose(
    ours: AttemptFolder, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where they would have found another one: storages may differ for a while."""
    hidden = newest(ours).rename(ours.checkpoints / "hidden")
    sidecar(newest(ours)).rename(ours.checkpoints / "hidden.json")
    said: list[str | None] = []

    def first_of(self: Ranks, value: str | None) -> str | None:
        said.append(value)
        return said[0]

    monkeypatch.setattr(Ranks, "first_of", first_of)
    later = AttemptFolder(ours.storage, "j1", 2)
    assert course(later, data).trainer.step == 4
    hidden.rename(newest(ours))
    (ours.checkpoints / "hidden.json").rename(sidecar(newest(ours)))
    assert course(later, data, rank=1).trainer.step == 4
    assert said[1] is None, "only the first one has a say"
    assert said[0] is not None
    chosen = Start.model_validate_json(said[0])
    assert chosen.file == "jobs/j1/1/checkpoints/step-00000004.pt"

    flip_a_bit(older(newest(ours)))
    with pytest.raises(StorageDiffersError, match=r"step-00000004\.pt is damaged") as caught:
        course(later, data, rank=1)
    assert classify(caught.value) is Reason.WORKER_LOST, "another attempt is worth it"


def test_weights_of_another_job_are_a_start(ours: AttemptFolder, data: Dataset) -> None:
    """`init_from` names them on purpose."""
    foreign = other_jobs(newest(ours))
    fresh = AttemptFolder(ours.storage, "j3", 1)
    setting = Setting(
        fresh,
        SPEC,
        torch.device("cpu"),
        Silence(),
        StopFlag(fresh),
        init_checkpoint=fresh.relative(foreign),
    )
    trainer = Course(setting, data).trainer
    expected = load_checkpoint(foreign)["model"]
    assert trainer.step == 0
    assert all(torch.equal(v, expected[name]) for name, v in trainer.model.state_dict().items())
