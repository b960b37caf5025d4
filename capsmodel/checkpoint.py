"""Checkpoints: files that are whole or refused.

A checkpoint `name.pt` is written under a temporary name, flushed to the disk and renamed. Beside it
stands `name.pt.json` with its sha256, size, epoch and step, whose it is, and a digest of these.
Reading verifies both digests before PyTorch sees the bytes, and loads tensors and plain Python
values only.
"""

import hashlib
import io
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from capsmodel.sidecar import (
    BEST,
    LAST,
    BadCheckpointError,
    CheckpointInfo,
    check_owner,
    digest_of,
    flush,
    read_info,
    read_own,
    read_sidecar,
    sidecar_of,
    step_of,
    temporary_name,
    verify,
    write_durably,
    write_sidecar,
)

__all__ = [
    "BadCheckpointError",
    "CheckpointFolder",
    "CheckpointInfo",
    "load_checkpoint",
    "read_info",
    "save_checkpoint",
]

logger = logging.getLogger(__name__)


def save_checkpoint(
    path: Path, state: dict[str, Any], epoch: int, step: int, owner: str | None = None
) -> CheckpointInfo:
    """Write a checkpoint and its sidecar; a crash leaves the old file or the new one, never half.

    Args:
        path: The file to write or replace; its folder is made.
        state: Tensors and plain Python values.
        epoch: Completed epochs, for the sidecar.
        step: Completed steps, for the sidecar.
        owner: Which training it belongs to, for the sidecar.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    info = CheckpointInfo(path, hashlib.sha256(content).hexdigest(), epoch, step, owner)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, content)
    write_sidecar(info, len(content))
    return info


def load_checkpoint(path: Path, sha256: str | None = None) -> dict[str, Any]:
    """Read a checkpoint, after its digest was verified, to the CPU.

    Args:
        path: The file.
        sha256: The digest it must have; by default the sidecar's.

    Raises:
        BadCheckpointError: The file is missing or damaged, or there is no digest to compare with.
    """
    expected = sha256 or read_sidecar(path).sha256
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadCheckpointError(f"{path} cannot be read: {error}") from error
    verify(path, hashlib.sha256(content).hexdigest(), expected)
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise BadCheckpointError(f"{path} is no checkpoint that can be loaded: {error}") from error
    if not isinstance(state, dict):
        raise BadCheckpointError(f"{path} holds a {type(state).__name__}, expected a dict")
    return state


class CheckpointFolder:
    """The checkpoints of one training: the newest few by step, and the best one.

    Files: `step-00000123.pt`, `best.pt`, after `keep` also `last.pt`, and a sidecar beside each.
    One process writes to a folder at a time; any number may read.

    A folder with an owner takes no checkpoint of another one for its own. One without an owner was
    written by an earlier release, or by the library alone, and is not refused.
    """

    def __init__(self, path: Path, keep_newest: int = 2, owner: str | None = None) -> None:
        """Use a folder; the first checkpoint makes it.

        Args:
            path: The folder.
            keep_newest: Step checkpoints that stay when a new one is saved; at least 1. With 2, a
                damaged newest one leaves another.
            owner: Which training saves here, a job's id for instance; None asks nobody.
        """
        if keep_newest < 1:
            raise ValueError(f"keep_newest is {keep_newest}, expected at least 1")
        self.path = path
        self.keep_newest = keep_newest
        self.owner = owner

    def save(self, state: dict[str, Any], epoch: int, step: int) -> CheckpointInfo:
        """Save a step checkpoint, then remove the oldest ones above `keep_newest`."""
        path = self.path / f"step-{step:08d}.pt"
        info = save_checkpoint(path, state, epoch, step, self.owner)
        newest_first = self._step_files()
        for path in newest_first[self.keep_newest :]:
            _remove(path)
        for abandoned in self.path.glob(".*.tmp"):
            abandoned.unlink(missing_ok=True)
        return info

    def mark_best(self, info: CheckpointInfo) -> CheckpointInfo:
        """Make a checkpoint of this folder the best one: it becomes `best.pt` as well."""
        return self._take(info, BEST)

    def adopt_best(self, info: CheckpointInfo) -> CheckpointInfo:
        """Take over the best checkpoint of another folder, an earlier attempt's, after verifying.

        Raises:
            BadCheckpointError: The file is missing or damaged, or another training's.
        """
        check_owner(info, self.owner)
        verify(info.path, digest_of(info.path), info.sha256)
        return self._take(info, BEST)

    def best(self) -> CheckpointInfo | None:
        """The best checkpoint, verified; None where none was marked.

        Raises:
            BadCheckpointError: It is damaged, or another training's.
        """
        path = self.path / BEST
        if not path.exists():
            return None
        try:
            return read_own(path, self.owner)
        except BadCheckpointError:
            self._mend_sidecar(path)
            return read_own(path, self.owner)

    def whole_best(self) -> CheckpointInfo | None:
        """The best checkpoint; None where none was marked, or (which is told) it is damaged."""
        try:
            return self.best()
        except BadCheckpointError as error:
            logger.warning("the best checkpoint is passed over: %s", error)
            return None

    def newest_verified(self) -> tuple[CheckpointInfo | None, list[str]]:
        """The newest whole checkpoint, and what is wrong with the newer ones that were skipped."""
        problems: list[str] = []
        last = self.path / LAST
        for path in [*self._steps_told_of(), *([last] if last.exists() else [])]:
            try:
                return read_own(path, self.owner), problems
            except BadCheckpointError as error:
                problems.append(str(error))
        return None, problems

    def keep(self, best: bool, last: bool) -> None:
        """Prune when the training has ended.

        Args:
            best: Keep `best.pt`.
            last: Keep the newest whole checkpoint, as `last.pt`.
        """
        newest, _ = self.newest_verified()
        if last and newest and newest.path.name != LAST:
            self._take(newest, LAST)
        doomed = self._step_files()
        doomed += [] if last else [self.path / LAST]
        doomed += [] if best else [self.path / BEST]
        for path in doomed:
            _remove(path)

    def _step_files(self) -> list[Path]:
        """Step checkpoints, newest first."""
        return sorted(self.path.glob("step-*.pt"), key=step_of, reverse=True)

    def _steps_told_of(self) -> list[Path]:
        """The same, and those that are gone though their sidecars tell of them."""
        sidecars = self.path.glob("step-*.pt.json")
        told = {path.with_suffix("") for path in sidecars} | set(self._step_files())
        return sorted(told, key=step_of, reverse=True)

    def _take(self, info: CheckpointInfo, name: str) -> CheckpointInfo:
        """Give a checkpoint a second name in this folder: a hard link, or a copy."""
        self.path.mkdir(parents=True, exist_ok=True)
        target = self.path / name
        temporary = temporary_name(target)
        temporary.unlink(missing_ok=True)
        try:
            os.link(info.path, temporary)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(info.path, temporary)
            flush(temporary)
        os.replace(temporary, target)
        flush(self.path)
        taken = replace(info, path=target)
        write_sidecar(taken, target.stat().st_size)
        return taken

    def _mend_sidecar(self, path: Path) -> None:
        """Write the sidecar anew where a crash came between a link and its sidecar.

        A step checkpoint with the same digest proves that the file is whole.
        """
        digest = digest_of(path)
        for twin in self._step_files():
            try:
                info = read_sidecar(twin)
                check_owner(info, self.owner)
            except BadCheckpointError:
                continue
            if info.sha256 == digest:
                logger.warning("%s had the sidecar of another checkpoint; mended", path)
                write_sidecar(replace(info, path=path), path.stat().st_size)


def _remove(path: Path) -> None:
    """Remove a checkpoint, then its sidecar: a checkpoint without one would look damaged."""
    path.unlink(missing_ok=True)
    sidecar_of(path).unlink(missing_ok=True)
