"""What identifies a checkpoint file: its sidecar, its digest, its name. Knows no PyTorch.

Beside `name.pt` stands `name.pt.json` with its sha256, size, epoch and step, whose it is, and a
digest of these.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 2
BEST = "best.pt"
LAST = "last.pt"


class BadCheckpointError(ValueError):
    """A checkpoint is missing, damaged, or not the one that was asked for."""


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint file and what identifies it."""

    path: Path
    sha256: str
    epoch: int
    """Completed epochs."""
    step: int
    """Completed steps."""
    owner: str | None = None
    """Which training it belongs to; None where nobody said so."""


def read_info(path: Path) -> CheckpointInfo:
    """What the sidecar says of a checkpoint, after the file's digest was verified.

    Raises:
        BadCheckpointError: The file or its sidecar is missing or damaged.
    """
    info = read_sidecar(path)
    verify(path, digest_of(path), info.sha256)
    return info


def read_own(path: Path, owner: str | None) -> CheckpointInfo:
    """What is known of a checkpoint that is whole, this training's, and what its name says.

    Args:
        path: The file.
        owner: Whose it must be; None, there or in the sidecar, asks nobody.

    Raises:
        BadCheckpointError: It is not.
    """
    info = read_sidecar(path)
    check_owner(info, owner)
    if path.name.startswith("step-") and step_of(path) != info.step:
        raise BadCheckpointError(
            f"{path} is another checkpoint under this name: it was saved at step {info.step}"
        )
    verify(path, digest_of(path), info.sha256)
    return info


def check_owner(info: CheckpointInfo, owner: str | None) -> None:
    """Refuse another training's checkpoint. Raises BadCheckpointError."""
    if None not in (owner, info.owner) and owner != info.owner:
        raise BadCheckpointError(
            f"{info.path} was swapped with another training's: it is {info.owner}'s, expected "
            f"{owner}'s"
        )


def step_of(path: Path) -> int:
    """The step that a step checkpoint's name tells. Raises BadCheckpointError if it tells none."""
    step = path.stem.removeprefix("step-")
    if not step.isdecimal():
        raise BadCheckpointError(f"{path} is no checkpoint of ours: expected step-NUMBER.pt")
    return int(step)


def sidecar_of(path: Path) -> Path:
    """Where it stands."""
    return path.with_name(f"{path.name}.json")


def read_sidecar(path: Path) -> CheckpointInfo:
    """What stands beside a checkpoint. Raises BadCheckpointError if it is missing or damaged."""
    sidecar = sidecar_of(path)
    try:
        content = json.loads(sidecar.read_text())
        version = content["schema_version"]
        if version != SCHEMA_VERSION:
            raise BadCheckpointError(
                f"{sidecar} has schema_version {version}, this release reads {SCHEMA_VERSION}"
            )
        if content.pop("sidecar_sha256") != _fields_digest(content):
            raise BadCheckpointError(f"{sidecar} is damaged: its sidecar_sha256 does not fit")
        named = {name: content[name] for name in ("sha256", "epoch", "step")}
        return CheckpointInfo(path, **named, owner=content.get("owner"))
    except FileNotFoundError as error:
        raise BadCheckpointError(f"{path} has no sidecar {sidecar.name}") from error
    except BadCheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadCheckpointError(f"{sidecar} is damaged: {error!r}") from error


def write_sidecar(info: CheckpointInfo, size: int) -> None:
    """Put it beside a checkpoint of so many bytes."""
    fields = {
        "schema_version": SCHEMA_VERSION,
        "sha256": info.sha256,
        "size": size,
        "epoch": info.epoch,
        "step": info.step,
    }
    if info.owner is not None:
        fields["owner"] = info.owner
    content = {**fields, "sidecar_sha256": _fields_digest(fields)}
    write_durably(sidecar_of(info.path), json.dumps(content, indent=2).encode() + b"\n")


def _fields_digest(fields: dict[str, Any]) -> str:
    """Digest of a sidecar's other fields, in their canonical form."""
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def write_durably(path: Path, content: bytes) -> None:
    """A crash leaves the old file or the new one, on the disk, never half."""
    temporary = temporary_name(path)
    temporary.write_bytes(content)
    flush(temporary)
    os.replace(temporary, path)
    flush(path.parent)


def temporary_name(path: Path) -> Path:
    """Where a file is made before it is renamed; in the same folder, hidden."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def flush(path: Path) -> None:
    """Have the disk hold a file's content, or a folder's names, before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_of(path: Path) -> str:
    """Hexadecimal sha256 of a file. Raises BadCheckpointError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadCheckpointError(f"{path} cannot be read: {error}") from error


def verify(path: Path, actual: str, expected: str) -> None:
    """Compare two digests. Raises BadCheckpointError."""
    if actual != expected:
        raise BadCheckpointError(
            f"{path} is damaged or another file: its sha256 is {actual}, expected {expected}"
        )
