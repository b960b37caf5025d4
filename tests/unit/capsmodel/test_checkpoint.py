"""Checkpoints: whole or refused, and the folder that keeps the newest and the best."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from capsmodel import checkpoint
from capsmodel.checkpoint import (
    BadCheckpointError,
    CheckpointFolder,
    load_checkpoint,
    read_info,
    save_checkpoint,
)


def state(value: float = 1.0) -> dict[str, Any]:
    return {"weights": torch.full((50,), value), "steps": [1, 2], "best": None}


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.unlink()  # a hard link of the file stays whole
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def change_sidecar(path: Path, **changes: Any) -> None:
    sidecar = path.with_name(f"{path.name}.json")
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), **changes}))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


def copy_over(source: Path, target: Path) -> None:
    """Put a checkpoint and its sidecar in the place of another one."""
    for one, other in [(source, target), (sidecar(source), sidecar(target))]:
        other.unlink()
        other.write_bytes(one.read_bytes())


def sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


DAMAGES = [flip_a_bit, truncate, empty, remove]


class TestFile:
    def test_what_was_saved_is_loaded(self, tmp_path) -> None:
        info = save_checkpoint(tmp_path / "new" / "a.pt", state(), epoch=2, step=30)
        loaded = load_checkpoint(info.path)
        assert torch.equal(loaded.pop("weights"), state()["weights"])
        assert loaded == {"steps": [1, 2], "best": None}
        assert read_info(info.path) == info
        assert (info.epoch, info.step) == (2, 30)

    def test_the_sidecar_describes_the_file_and_itself(self, tmp_path) -> None:
        info = save_checkpoint(tmp_path / "a.pt", state(), epoch=2, step=30)
        size = info.path.stat().st_size
        canonical = (
            f'{{"epoch":2,"schema_version":2,"sha256":"{info.sha256}","size":{size},"step":30}}'
        )
        assert json.loads((tmp_path / "a.pt.json").read_text()) == {
            "schema_version": 2,
            "sha256": info.sha256,
            "size": size,
            "epoch": 2,
            "step": 30,
            "sidecar_sha256": hashlib.sha256(canonical.encode()).hexdigest(),
        }

    def test_nothing_else_is_left_behind(self, tmp_path) -> None:
        save_checkpoint(tmp_path / "a.pt", state(), epoch=2, step=30)
        assert sorted(os.listdir(tmp_path)) == ["a.pt", "a.pt.json"]

    @pytest.mark.parametrize("digest_from", ["the sidecar", "the caller"])
    @pytest.mark.parametrize("damage", DAMAGES)
    def test_a_damaged_file_never_reaches_torch(
        self, tmp_path, monkeypatch, damage, digest_from
    ) -> None:
        info = save_checkpoint(tmp_path / "a.pt", state(), epoch=2, step=30)
        damage(info.path)
        monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("loaded"))
        sha256 = info.sha256 if digest_from == "the caller" else None
        with pytest.raises(BadCheckpointError, match=r"a\.pt"):
            load_checkpoint(info.path, sha256)

    def test_another_checkpoint_than_asked_for_is_refused(self, tmp_path) -> None:
        save_checkpoint(tmp_path / "a.pt", state(), epoch=2, step=30)
        with pytest.raises(BadCheckpointError, match="another file"):
            load_checkpoint(tmp_path / "a.pt", sha256="0" * 64)

    @pytest.mark.parametrize("content", [None, "", "{}", "[]", "2", '{"schema_version": 2}'])
    def test_a_damaged_sidecar_is_refused(self, tmp_path, content) -> None:
        info = save_checkpoint(tmp_path / "a.pt", state(), epoch=2, step=30)
        sidecar = tmp_path / "a.pt.json"
        sidecar.unlink() if content is None else sidecar.write_text(content)
        with pytest.raises(BadCheckpointError, match=r"sidecar|damaged"):
            load_checkpoint(info.path)
        assert load_checkpoint(info.path, info.sha256)["steps"] == [1, 2]

    @pytest.mark.parametrize("version", [1, 3])
    def test_a_sidecar_of_another_release_is_refused(self, tmp_path, version) -> None:
        info = save_checkpoint(tmp_path / "a.pt", state(), epoch=2, step=30)
        change_sidecar(info.path, schema_version=version)
        message = f"schema_version {version}, this release reads 2"
        with pytest.raises(BadCheckpointError, match=message):
            read_info(info.path)

    @pytest.mark.parametrize(
        "changes", [{"step": 1007}, {"epoch": 3}, {"size": 1}, {"name": "new"}], ids=str
    )
    def test_a_changed_field_of_the_sidecar_is_noticed(self, tmp_path, changes) -> None:
        info = save_checkpoint(tmp_path / "a.pt", state(), epoch=2, step=7)
        change_sidecar(info.path, **changes)
        with pytest.raises(BadCheckpointError, match=r"a\.pt\.json is damaged"):
            read_info(info.path)

    def test_code_is_never_run(self, tmp_path) -> None:
        info = save_checkpoint(tmp_path / "a.pt", {"path": Path("/")}, epoch=0, step=0)
        with pytest.raises(BadCheckpointError, match="no checkpoint that can be loaded"):
            load_checkpoint(info.path)

    def test_something_else_than_a_dict_is_refused(self, tmp_path) -> None:
        info = save_checkpoint(tmp_path / "a.pt", [1], epoch=0, step=0)  # type: ignore[arg-type]
        with pytest.raises(BadCheckpointError, match="holds a list"):
            load_checkpoint(info.path)

    def test_a_crash_while_writing_leaves_the_old_file(self, tmp_path, monkeypatch) -> None:
        info = save_checkpoint(tmp_path / "a.pt", state(1), epoch=1, step=1)

        def crash(*_: object) -> None:
            raise OSError("no power")

        monkeypatch.setattr(checkpoint.os, "replace", crash)
        with pytest.raises(OSError, match="no power"):
            save_checkpoint(tmp_path / "a.pt", state(2), epoch=2, step=2)
        assert read_info(info.path) == info

    def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_too(
        self, tmp_path, monkeypatch
    ) -> None:
        """Power that fails between two of these steps finds the old file or the new one."""
        done: list[tuple[str, str]] = []
        fsync, replace = os.fsync, os.replace

        def recorded_fsync(descriptor: int) -> None:
            done.append(("flush", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
            fsync(descriptor)

        def recorded_replace(source: Path, target: Path) -> None:
            done.append(("rename", f"{source.name} {target.name}"))
            replace(source, target)

        monkeypatch.setattr(checkpoint.os, "fsync", recorded_fsync)
        monkeypatch.setattr(checkpoint.os, "replace", recorded_replace)
        save_checkpoint(tmp_path / "a.pt", state(), epoch=2, step=30)
        expected = []
        for name in ("a.pt", "a.pt.json"):
            temporary = f".{name}.{os.getpid()}.tmp"
            expected += [
                ("flush", temporary),
                ("rename", f"{temporary} {name}"),
                ("flush", tmp_path.name),
            ]
        assert done == expected


class TestOwner:
    """Whose a checkpoint is."""

    @pytest.fixture
    def ours(self, tmp_path) -> CheckpointFolder:
        return CheckpointFolder(tmp_path / "ours", owner="job-1")

    @pytest.fixture
    def theirs(self, tmp_path) -> CheckpointFolder:
        return CheckpointFolder(tmp_path / "theirs", owner="job-2")

    def test_the_sidecar_tells_it_under_its_digest(self, ours) -> None:
        info = ours.save(state(), epoch=1, step=5)
        assert info.owner == "job-1"
        assert read_info(info.path) == info
        change_sidecar(info.path, owner="job-2")
        with pytest.raises(BadCheckpointError, match=r"json is damaged"):
            read_info(info.path)

    def test_one_swapped_with_another_owners_is_skipped_and_reported(self, ours, theirs) -> None:
        older, newest = (ours.save(state(step), epoch=0, step=step) for step in (5, 6))
        foreign = theirs.save(state(9), epoch=0, step=6)
        copy_over(foreign.path, newest.path)
        found, problems = ours.newest_verified()
        assert found == older
        assert problems == [
            f"{newest.path} was swapped with another training's: it is job-2's, expected job-1's"
        ]

    def test_the_best_too(self, ours, theirs) -> None:
        best = ours.mark_best(ours.save(state(), epoch=1, step=5))
        assert best.owner == "job-1"
        foreign = theirs.save(state(2), epoch=1, step=5)
        copy_over(foreign.path, best.path)
        with pytest.raises(BadCheckpointError, match="it is job-2's, expected job-1's"):
            ours.best()
        assert ours.whole_best() is None
        with pytest.raises(BadCheckpointError, match="it is job-2's, expected job-1's"):
            ours.adopt_best(foreign)

    def test_no_foreign_twin_mends_the_best(self, ours, theirs) -> None:
        info = ours.save(state(), epoch=1, step=5)
        best = ours.mark_best(info)
        foreign = theirs.save(state(2), epoch=1, step=5)
        for path in (info.path, best.path):
            copy_over(foreign.path, path)
        assert ours.whole_best() is None

    def test_one_that_was_adopted_is_ours(self, ours, tmp_path) -> None:
        earlier = CheckpointFolder(tmp_path / "earlier", owner="job-1")
        adopted = ours.adopt_best(earlier.save(state(), epoch=4, step=40))
        assert ours.best() == adopted
        assert adopted.owner == "job-1"

    def test_those_that_nobody_has_signed_are_read(self, ours) -> None:
        """An earlier release wrote none of it."""
        unsigned = CheckpointFolder(ours.path)
        info = unsigned.mark_best(unsigned.save(state(), epoch=1, step=5))
        assert info.owner is None
        found, problems = ours.newest_verified()
        assert found is not None
        assert (found.step, problems, ours.best()) == (5, [], info)

    def test_who_asks_for_nobody_takes_any(self, ours, theirs) -> None:
        """As `init_from` does."""
        info = theirs.save(state(3), epoch=1, step=5)
        assert load_checkpoint(info.path)["weights"][0] == 3
        assert CheckpointFolder(theirs.path).newest_verified() == (info, [])
        assert CheckpointFolder(ours.path).adopt_best(info).owner == "job-2"

    def test_an_older_one_under_the_newest_ones_name_is_noticed(self, ours) -> None:
        older, newest = (ours.save(state(step), epoch=0, step=step) for step in (5, 6))
        copy_over(older.path, newest.path)
        found, problems = ours.newest_verified()
        assert found == older
        assert problems == [
            f"{newest.path} is another checkpoint under this name: it was saved at step 5"
        ]


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path) -> CheckpointFolder:
        return CheckpointFolder(tmp_path / "checkpoints")

    def names(self, folder: CheckpointFolder) -> list[str]:
        return sorted(path.name for path in folder.path.glob("*.pt"))

    def test_an_empty_folder_has_nothing(self, folder) -> None:
        assert folder.newest_verified() == (None, [])
        assert folder.best() is None

    def test_the_newest_stay(self, folder) -> None:
        for step in (5, 900, 1000):
            newest = folder.save(state(), epoch=0, step=step)
        assert self.names(folder) == ["step-00000900.pt", "step-00001000.pt"]
        assert len(list(folder.path.iterdir())) == 4
        assert folder.newest_verified() == (newest, [])

    @pytest.mark.parametrize("damage", [flip_a_bit, truncate, empty])
    def test_a_damaged_newest_is_skipped_and_reported(self, folder, damage) -> None:
        older = folder.save(state(), epoch=0, step=5)
        damage(folder.save(state(), epoch=0, step=6).path)
        found, problems = folder.newest_verified()
        assert found == older
        assert len(problems) == 1
        assert "step-00000006.pt" in problems[0]

    def test_a_step_that_the_sidecar_makes_up_is_not_believed(self, folder) -> None:
        older = folder.save(state(), epoch=0, step=5)
        change_sidecar(folder.save(state(), epoch=0, step=7).path, step=1007)
        found, problems = folder.newest_verified()
        assert found == older
        assert "step-00000007.pt.json is damaged" in problems[0]

    @pytest.mark.parametrize("changes", [{"step": 1007}, {"schema_version": 1}], ids=str)
    def test_a_changed_sidecar_of_the_best_is_mended_or_refused(self, folder, changes) -> None:
        best = folder.mark_best(folder.save(state(1), epoch=1, step=1))
        change_sidecar(best.path, **changes)
        assert folder.best() == best
        for step in (2, 3):  # the twin goes
            folder.save(state(step), epoch=1, step=step)
        change_sidecar(best.path, **changes)
        with pytest.raises(BadCheckpointError, match=r"best\.pt\.json"):
            folder.best()

    def test_a_changed_sidecar_mends_no_other(self, folder) -> None:
        info = folder.save(state(1), epoch=1, step=1)
        best = folder.mark_best(info)
        for path in (info.path, best.path):
            change_sidecar(path, step=1007)
        with pytest.raises(BadCheckpointError, match=r"best\.pt\.json is damaged"):
            folder.best()

    def test_nothing_is_found_where_all_are_damaged(self, folder) -> None:
        for step in (5, 6):
            empty(folder.save(state(), epoch=0, step=step).path)
        found, problems = folder.newest_verified()
        assert found is None
        assert len(problems) == 2

    def test_leftovers_of_a_crash_are_swept(self, folder) -> None:
        folder.path.mkdir()
        (folder.path / ".step-00000001.pt.77.tmp").write_bytes(b"half")
        folder.save(state(), epoch=0, step=5)
        assert not list(folder.path.glob(".*"))

    def test_the_best_outlives_its_step_checkpoint(self, folder) -> None:
        marked = folder.mark_best(folder.save(state(1), epoch=1, step=1))
        for step in (2, 3):
            folder.save(state(step), epoch=1, step=step)
        assert self.names(folder) == ["best.pt", "step-00000002.pt", "step-00000003.pt"]
        assert folder.best() == marked
        assert load_checkpoint(marked.path)["weights"][0] == 1

    def test_a_better_one_replaces_the_best(self, folder) -> None:
        folder.mark_best(folder.save(state(1), epoch=1, step=1))
        folder.mark_best(folder.save(state(2), epoch=2, step=2))
        assert folder.best().step == 2
        assert load_checkpoint(folder.best().path)["weights"][0] == 2

    def test_marking_works_without_hard_links(self, folder, monkeypatch) -> None:
        def no_links(*_: object) -> None:
            raise OSError("not supported")

        monkeypatch.setattr(checkpoint.os, "link", no_links)
        info = folder.save(state(), epoch=1, step=1)
        assert folder.mark_best(info).sha256 == info.sha256
        assert load_checkpoint(folder.best().path)["steps"] == [1, 2]

    def test_a_damaged_best_is_refused(self, folder) -> None:
        folder.mark_best(folder.save(state(), epoch=1, step=1))
        flip_a_bit(folder.path / "best.pt")
        with pytest.raises(BadCheckpointError, match=r"best\.pt is damaged"):
            folder.best()

    def test_a_crash_between_the_best_and_its_sidecar_is_mended(self, folder) -> None:
        folder.mark_best(folder.save(state(1), epoch=1, step=1))
        old_sidecar = (folder.path / "best.pt.json").read_text()
        folder.mark_best(folder.save(state(2), epoch=2, step=2))
        (folder.path / "best.pt.json").write_text(old_sidecar)
        assert folder.best().step == 2
        assert read_info(folder.path / "best.pt").step == 2

    def test_the_best_of_another_folder_is_adopted(self, folder, tmp_path) -> None:
        earlier = CheckpointFolder(tmp_path / "earlier")
        best = earlier.mark_best(earlier.save(state(3), epoch=4, step=40))
        adopted = folder.adopt_best(best)
        assert (adopted.path, adopted.epoch, adopted.step) == (folder.path / "best.pt", 4, 40)
        flip_a_bit(best.path)
        assert folder.best() == adopted
        with pytest.raises(BadCheckpointError):
            folder.adopt_best(best)

    @pytest.mark.parametrize(
        ("best", "last", "names"),
        [
            (True, True, ["best.pt", "last.pt"]),
            (True, False, ["best.pt"]),
            (False, True, ["last.pt"]),
            (False, False, []),
        ],
    )
    def test_what_stays_in_the_end(self, folder, best, last, names) -> None:
        folder.mark_best(folder.save(state(1), epoch=1, step=1))
        folder.save(state(2), epoch=2, step=2)
        for _ in range(2):  # once more, as after a crash in the middle
            folder.keep(best=best, last=last)
            assert self.names(folder) == names
            assert len(list(folder.path.iterdir())) == 2 * len(names)
        if last:
            newest, problems = folder.newest_verified()
            assert (newest.path.name, newest.step, problems) == ("last.pt", 2, [])

    def test_a_folder_keeps_at_least_one(self, tmp_path) -> None:
        with pytest.raises(ValueError, match="keep_newest is 0"):
            CheckpointFolder(tmp_path, keep_newest=0)
