"""Bringing the published files of a data set into its folder: whole, verified, and once.

The processes of one machine take turns by a lock in the folder: the first one downloads, the
others wait and then find the files. Only a whole and verified file ever has its final name.
"""

import logging
import os
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, IncompleteRead
from pathlib import Path
from urllib.error import HTTPError, URLError

from filelock import BaseFileLock, FileLock, Timeout

from capsmodel.datasets import DataMissingError

MIRROR_VARIABLE = "CAPS_DATA_MIRROR"
"""Environment variable: a mirror to ask first; it has the files as `<address>/<set>/<file>`."""
OFFLINE_VARIABLE = "CAPS_OFFLINE"
"""Environment variable: where it is 1, nothing is asked for over the network."""
TIMEOUT_SECONDS = 15
"""For a connection, and for each silence within a transfer."""
LOCK_NAME = ".download.lock"
BLOCK_BYTES = 1 << 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a data set as its mirrors have it."""

    name: str
    check: Callable[[bytes, str], object]
    """Called with the bytes and what to call them in an error; raises DataCorruptError if they are
    not the published ones."""


def fetch(
    title: str, folder: Path, files: Sequence[RemoteFile], mirrors: Sequence[str], hint: str = ""
) -> None:
    """Download those of the files that are not in the folder.

    Args:
        title: Names the set in messages.
        folder: Where the files go; made if need be. Its name is the set's name on CAPS_DATA_MIRROR.
        files: What the folder must hold.
        mirrors: Addresses of folders that have the files; one is asked after another.
        hint: What else the user can do, the end of an error's message.

    Raises:
        DataMissingError: No mirror gave a file as published, or the folder cannot be written.
    """
    addresses = [*_own_mirror(folder.name), *mirrors]
    in_turn = addresses.copy()
    names = ", ".join(file.name for file in files)
    missing = [file.name for file in files if not (folder / file.name).is_file()]
    if missing and offline():
        raise DataMissingError(
            f"{title}: {missing[0]} is not in {folder.absolute()}, and nothing is downloaded: "
            f"{OFFLINE_VARIABLE} is 1. {_by_hand(folder, names, addresses)}{hint}"
        )
    with _writing(title, folder, names):
        lock = _locked(title, folder)
    try:
        for file in files:
            if (folder / file.name).is_file():
                continue
            content, failures = _download(file, in_turn)
            if content is None:
                by_hand = _by_hand(folder, names, addresses)
                raise DataMissingError(
                    f"{title}: {file.name} is not in {folder.absolute()} and could not be "
                    f"downloaded: {'; '.join(failures) or 'no mirror is known'}. {by_hand}{hint}"
                )
            with _writing(title, folder, file.name):
                _store(folder / file.name, content)
    finally:
        lock.release()


def offline() -> bool:
    """Whether the user wants nothing to be downloaded."""
    return os.environ.get(OFFLINE_VARIABLE) == "1"


def _own_mirror(name: str) -> list[str]:
    """The user's mirror of the set `name`, if there is one."""
    address = os.environ.get(MIRROR_VARIABLE)
    if not address:
        return []
    if not address.startswith(("http://", "https://")):
        raise DataMissingError(
            f"{MIRROR_VARIABLE} is {address!r}, expected an address that begins with http:// or "
            f"https:// and below which the files of the set lie in {name}/"
        )
    return [f"{address.rstrip('/')}/{name}/"]


def _locked(title: str, folder: Path) -> BaseFileLock:
    """The folder's lock, held; the system frees it should this process die."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("%s: waiting for another process that downloads it", title)
        lock.acquire()
    return lock


def _download(file: RemoteFile, mirrors: list[str]) -> tuple[bytes | None, list[str]]:
    """The file's content from the first mirror that has it, and what the mirrors before it said.

    A mirror that failed goes to the end of `mirrors`: the next file is asked elsewhere first.
    """
    failures = []
    for mirror in tuple(mirrors):
        url = f"{mirror.rstrip('/')}/{file.name}"
        try:
            content = _receive(url)
            file.check(content, "what it sent")
        except (OSError, HTTPException, ValueError) as error:
            failures.append(f"{url}: {_said(error)}")
            logger.warning("download failed: %s", failures[-1])
            mirrors.remove(mirror)
            mirrors.append(mirror)
        else:
            return content, failures
    return None, failures


def _receive(url: str) -> bytes:
    """The whole of what an address gives."""
    start = time.monotonic()
    content = bytearray()
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
        announced = response.headers["Content-Length"]
        logger.info("downloading %s (%s bytes)", url, announced or "an unknown number of")
        while block := response.read(BLOCK_BYTES):
            content += block
    if announced and len(content) < int(announced):
        raise IncompleteRead(bytes(content), int(announced) - len(content))
    logger.info("downloaded %s: %d bytes in %.1f s", url, len(content), time.monotonic() - start)
    return bytes(content)


def _said(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"HTTP status {error.code} {error.reason}"
    if isinstance(error, IncompleteRead):
        missing = error.expected or "an unknown number of"
        return f"cut off after {len(error.partial)} bytes, {missing} more were announced"
    reason = error.reason if isinstance(error, URLError) else error
    return str(reason) or type(reason).__name__


def _store(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all; called under the folder's lock."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _writing(title: str, folder: Path, names: str) -> Iterator[None]:
    """Around what makes files in the folder, `names`, and may not be able to."""
    try:
        yield
    except OSError as error:
        raise DataMissingError(
            f"{title} needs {names}, but {folder.absolute()} cannot be written: {error}. Free some "
            "space, make it writable or put them there by hand, or set CAPS_DATA_DIR to another "
            "folder for the data sets"
        ) from error


def _by_hand(folder: Path, names: str, addresses: Sequence[str]) -> str:
    source = f" from {' or '.join(addresses)}" if addresses else ""
    return (
        f"To bring the files by hand, put {names}{source} into that folder, or set CAPS_DATA_DIR "
        f"to a folder that contains {folder.name}/ with them; {MIRROR_VARIABLE} names a mirror of "
        "your own"
    )
