"""Checkpoints as a worker leaves them: names, sidecars and digests are real, the content is played.

`capsmodel.checkpoint` reads them. It does not write them here, since it loads PyTorch, which the
control plane and its tests do without.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from capsmodel.sidecar import (
    BEST,
    LAST,
    BadCheckpointError,
    CheckpointInfo,
    read_info,
    sidecar_of,
    write_sidecar,
)
from workers.attempt import AttemptFolder, CheckpointRef, Kept, write_atomic


@dataclass(frozen=True)
class PlayedCheckpoints:
    """The checkpoints of one attempt. The first one that a job leaves is its best for ever."""

    folder: AttemptFolder
    keep_newest: int = 2

    def save(self, step: int) -> None:
        """Leave a step checkpoint, and remove the oldest above `keep_newest`."""
        content = json.dumps({"owner": self.folder.owner, "step": step}).encode()
        self._write(f"step-{step:08d}.pt", content, step)
        for path in self._steps()[self.keep_newest :]:
            _remove(path)
        if not self._path(BEST).exists():
            self._write(BEST, content, step)

    def take_best(self, earlier: "PlayedCheckpoints") -> None:
        """Take the best one of an earlier attempt over, if it is whole."""
        step = whole_step(earlier._path(BEST))
        if step is not None and earlier.folder.path != self.folder.path:
            self._write(BEST, earlier._path(BEST).read_bytes(), step)

    def newest(self) -> Path | None:
        """The newest one that is whole; the best one does not count."""
        made = [*self._steps(), self._path(LAST)]
        return next((path for path in made if whole_step(path) is not None), None)

    def newest_step(self) -> int | None:
        """After how many steps that one was left."""
        newest = self.newest()
        return None if newest is None else whole_step(newest)

    def prune(self) -> None:
        """What stays of a training that has reached its end: the last and the best one."""
        newest = self.newest()
        if newest is not None and newest.name != LAST:
            self._write(LAST, newest.read_bytes(), whole_step(newest) or 0)
        for path in self._steps():
            _remove(path)

    def references(self) -> dict[Kept, CheckpointRef]:
        """As a result names them."""
        best = self._path(BEST)
        found: dict[Kept, Path | None] = {"last": self.newest(), "best": best}
        return {
            name: self._reference(path, step)
            for name, path in found.items()
            if path is not None and (step := whole_step(path)) is not None
        }

    def _reference(self, path: Path, step: int) -> CheckpointRef:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return CheckpointRef(path=self.folder.relative(path), sha256=digest, epoch=0, step=step)

    def _path(self, name: str) -> Path:
        return self.folder.checkpoints / name

    def _steps(self) -> list[Path]:
        return sorted(self.folder.checkpoints.glob("step-*.pt"), reverse=True)

    def _write(self, name: str, content: bytes, step: int) -> None:
        path = self._path(name)
        write_atomic(path, content)
        digest = hashlib.sha256(content).hexdigest()
        write_sidecar(CheckpointInfo(path, digest, 0, step, self.folder.owner), len(content))


def whole_step(path: Path) -> int | None:
    """The step that a checkpoint's sidecar tells; None unless the file is there and whole."""
    try:
        return read_info(path).step
    except BadCheckpointError:
        return None


def newest_of(folders: list[AttemptFolder]) -> PlayedCheckpoints | None:
    """The first of some attempts that has a whole checkpoint of its own."""
    played = (PlayedCheckpoints(folder) for folder in folders)
    return next((found for found in played if found.newest() is not None), None)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    sidecar_of(path).unlink(missing_ok=True)
