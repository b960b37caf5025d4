"""From C++ source to a loaded library: compiled for this machine, kept for next time."""

import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

CACHE_VARIABLE = "CAPS_KERNEL_CACHE"
"""Names the folder where compiled kernels are kept; by default in the user's cache folder."""
SOURCE = Path(__file__).with_name("source")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-fPIC", "-shared")
"""OpenMP, so that the threads are those that PyTorch has; no flag may change the arithmetic."""
LONGEST_COMPILATION = 300
"""Seconds."""
UNFINISHED = "unfinished-"
"""Begins the names of the folders that are compiled in."""
LEFTOVER_AGE = 24 * 60 * 60
"""Seconds, after which nobody works in such a folder any more."""


class KernelError(RuntimeError):
    """The kernels cannot be compiled or loaded here."""


def load_library(source: str, constants: Mapping[str, int] | None = None) -> ctypes.CDLL:
    """Compiled kernels; compiles them unless that was done before.

    Several processes may ask at once: one compiles, the others wait for it. What is ready needs no
    lock, so that it may lie in a folder that can only be read.

    Args:
        source: Name of a file in `SOURCE`, without its ending.
        constants: Macros that it is compiled with.

    Raises:
        KernelError: There is no compiler, it failed, nothing can be written, or others may write
            where the kernels are kept.
    """
    constants = constants or {}
    command = [*compiler_command(), *FLAGS, *(f"-D{name}={constants[name]}" for name in constants)]
    try:
        library = cache_folder() / f"{source}-{fingerprint(source, command)}.so"
        if not is_whole(library):
            with FileLock(library.with_suffix(".lock")):
                if not is_whole(library):  # nobody compiled it while this process waited
                    remove_leftovers(library.parent)
                    compile_into(library, source, command)
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise KernelError(
            f"the kernels could not be kept or loaded: {error}; {CACHE_VARIABLE} names a folder "
            "that can be written to"
        ) from error


def compiler_command() -> list[str]:
    """The compiler that CXX names, else the first of g++, c++ and clang++, with its arguments.

    Raises:
        KernelError: There is none.
    """
    named = shlex.split(os.environ.get("CXX", ""))
    for candidate in [named] if named else [["g++"], ["c++"], ["clang++"]]:
        if program := shutil.which(candidate[0]):
            return [program, *candidate[1:]]
    raise KernelError(
        f"no C++ compiler ({' '.join(named) or 'g++, c++, clang++'}) was found; install g++, or "
        "name one with CXX"
    )


def cache_folder() -> Path:
    """Where compiled kernels are kept; made if need be.

    Raises:
        KernelError: Others may write there, so its code is not to be trusted.
        OSError: It cannot be made.
    """
    folder = chosen_folder()
    if folder is None:
        return private_folder()
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    mode = folder.stat().st_mode
    if mode & stat.S_IWOTH:
        raise untrusted(folder, f"every user may write to it (mode {stat.filemode(mode)})")
    return folder


def chosen_folder() -> Path | None:
    """What CAPS_KERNEL_CACHE says, else the user's cache; None where the user has no home.

    The path is absolute: a bare name would be looked for where the system keeps its libraries.

    Raises:
        KernelError: CAPS_KERNEL_CACHE begins with the home of a user that is unknown.
    """
    if named := os.environ.get(CACHE_VARIABLE):
        try:
            return Path(named).expanduser().absolute()
        except RuntimeError as error:
            raise KernelError(
                f"{CACHE_VARIABLE} is {named!r}, and that home is unknown; write the path in full"
            ) from error
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache).absolute() / "capsmodel"
    try:
        home = Path.home()
    except RuntimeError:  # a user without an entry in the system's list, as in some containers
        return None
    return home / ".cache" / "capsmodel" if os.access(home, os.W_OK) else None


def private_folder() -> Path:
    """A folder of this user's beside everybody's temporary files.

    Anybody could have made it first, to have their code run: it must be this user's alone.

    Raises:
        KernelError: It is not.
        OSError: It cannot be made.
    """
    user = os.geteuid()
    folder = Path(tempfile.gettempdir()).absolute() / f"capsmodel-{user}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise untrusted(folder, "it is a link or a file, no folder")
    if found.st_uid != user:
        raise untrusted(folder, f"it belongs to the user {found.st_uid}, not to {user}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise untrusted(folder, f"others may write to it (mode {stat.filemode(found.st_mode)})")
    return folder


def untrusted(folder: Path, problem: str) -> KernelError:
    return KernelError(
        f"kernels in {folder} could be anybody's: {problem}; set {CACHE_VARIABLE} to a folder that "
        "only you can write to"
    )


def fingerprint(source: str, command: list[str]) -> str:
    """Changes with source, headers, compiler, flags and processor: unlike machines share homes."""
    digest = hashlib.sha256()
    for file in (SOURCE / f"{source}.cpp", *sorted(SOURCE.glob("*.hpp"))):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    version = subprocess.run([command[0], "--version"], capture_output=True, check=False).stdout
    for part in (*command, processor()):
        digest.update(part.encode() + b"\0")
    digest.update(version)
    return digest.hexdigest()[:16]


def processor() -> str:
    """What `-march=native` depends on."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    lines = re.findall(r"^(?:model|cpu family|flags|Features|CPU part)\s*:.*$", text, re.MULTILINE)
    return "\n".join(sorted(set(lines))) or f"{platform.machine()} {platform.processor()}"


def checksum_file(library: Path) -> Path:
    """Stands beside a library and tells its SHA-256, as the program sha256sum writes it."""
    return library.with_name(f"{library.name}.sha256")


def checksum(library: Path) -> bytes:
    return f"{hashlib.sha256(library.read_bytes()).hexdigest()}  {library.name}\n".encode()


def is_whole(library: Path) -> bool:
    """Whether a library is there and as it was compiled; a damaged one ends who loads it."""
    try:
        return checksum_file(library).read_bytes() == checksum(library)
    except OSError:
        return False


def remove_leftovers(folder: Path) -> None:
    """Remove what compilations left that were killed."""
    for leftover in folder.glob(f"{UNFINISHED}*"):
        with suppress(OSError):  # another process was faster, or it is another user's
            if time.time() - leftover.lstat().st_mtime > LEFTOVER_AGE:
                shutil.rmtree(leftover)


def compile_into(library: Path, source: str, command: list[str]) -> None:
    """Compile a source to `library`, then tell its checksum; each appears whole or not at all.

    Both are on the disk before they get their names, and the checksum comes last: whatever a power
    failure leaves, a library that its checksum fits is whole.

    Raises:
        KernelError: The compiler failed; its last words are told.
    """
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=library.parent) as folder:
        made = Path(folder) / library.name
        run_compiler([*command, "-o", str(made), str(SOURCE / f"{source}.cpp")])
        checksum_file(made).write_bytes(checksum(made))
        for file in (made, checksum_file(made)):
            with file.open("r+b") as opened:
                os.fsync(opened)
            os.replace(file, library.with_name(file.name))


def run_compiler(arguments: list[str]) -> None:
    """Run a compiler to its end.

    Raises:
        KernelError: It failed; its last words are told.
    """
    try:
        finished = subprocess.run(
            arguments, capture_output=True, text=True, timeout=LONGEST_COMPILATION, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise KernelError(f"{shlex.join(arguments)} took over {error.timeout} s") from error
    if finished.returncode != 0:
        words = "\n".join(finished.stderr.strip().splitlines()[-20:])
        raise KernelError(
            f"{shlex.join(arguments)} ended with {finished.returncode}; CXX names another "
            f"compiler. It said:\n{words}"
        )
