"""From C++ source to a loaded library: compiled for this machine, kept for next time."""

import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock

CACHE_VARIABLE = "CAPS_KERNEL_CACHE"
"""Names the folder where compiled kernels are kept; by default in the user's cache folder."""
SOURCE = Path(__file__).with_name("source")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-fPIC", "-shared")
"""OpenMP, so that the threads are those that PyTorch has; no flag may change the arithmetic."""
LONGEST_COMPILATION = 300
"""Seconds."""


class KernelError(RuntimeError):
    """The kernels cannot be compiled or loaded here."""


def load_library(source: str, constants: Mapping[str, int] | None = None) -> ctypes.CDLL:
    """Compiled kernels; compiles them unless that was done before.

    Several processes may ask at once: one compiles, the others wait for it.

    Args:
        source: Name of a file in `SOURCE`, without its ending.
        constants: Macros that it is compiled with.

    Raises:
        KernelError: There is no compiler, it failed, or nothing can be written.
    """
    constants = constants or {}
    command = [*compiler_command(), *FLAGS, *(f"-D{name}={constants[name]}" for name in constants)]
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        library = folder / f"{source}-{fingerprint(source, command)}.so"
        with FileLock(library.with_suffix(".lock")):
            if not library.is_file():
                compile_into(library, source, command)
            try:
                return ctypes.CDLL(str(library))
            except OSError:  # damaged on the disk
                library.unlink()
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
    """Where compiled kernels are kept: CAPS_KERNEL_CACHE, else the user's cache."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    if cache or os.access(Path.home(), os.W_OK):
        return Path(cache or Path.home() / ".cache") / "capsmodel"
    return Path(tempfile.gettempdir()) / f"capsmodel-{os.getuid()}"


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


def compile_into(library: Path, source: str, command: list[str]) -> None:
    """Compile a source to `library`, which appears whole or not at all.

    Raises:
        KernelError: The compiler failed; its last words are told.
    """
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        arguments = [*command, "-o", str(made), str(SOURCE / f"{source}.cpp")]
        try:
            finished = subprocess.run(
                arguments,
                capture_output=True,
                text=True,
                timeout=LONGEST_COMPILATION,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise KernelError(f"{shlex.join(arguments)} took over {error.timeout} s") from error
        if finished.returncode != 0:
            words = "\n".join(finished.stderr.strip().splitlines()[-20:])
            raise KernelError(
                f"{shlex.join(arguments)} ended with {finished.returncode}; CXX names another "
                f"compiler. It said:\n{words}"
            )
        os.replace(made, library)
