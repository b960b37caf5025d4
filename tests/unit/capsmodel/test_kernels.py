"""Who computes: compiled kernels or PyTorch; what happens where they cannot be compiled."""

import ctypes
import logging
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest
import torch

from capsmodel import kernels
from capsmodel.config import DynamicRoutingConfig
from capsmodel.kernels import KERNELS_VARIABLE, KernelError, compiler, force_kernels, native_library
from capsmodel.routing import VoteShape, build_routing

SMALL_SOURCE = 'extern "C" int answer() { return 42; }\n'
"""Compiles in a moment; what is tested here does not depend on what a kernel computes."""


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a process that has not asked for kernels yet, with one small source and no cache."""
    monkeypatch.setattr(kernels, "_loaded", {})
    monkeypatch.setattr(kernels, "_forced", None)
    monkeypatch.setattr(kernels, "_announced", set())
    monkeypatch.delenv(KERNELS_VARIABLE, raising=False)
    source = tmp_path / "source"
    source.mkdir()
    (source / "answer.cpp").write_text(SMALL_SOURCE)
    monkeypatch.setattr(compiler, "SOURCE", source)
    monkeypatch.setenv(compiler.CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture
def counting_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """A compiler that CXX names, and how many times it compiled."""
    command, log = compiler.compiler_command(), tmp_path / "compilations"
    log.touch()
    script(
        tmp_path / "counting",
        f'case "$*" in *--version*) ;; *) echo compiled >> {log}; sleep 0.3 ;; esac\n'
        f'exec {" ".join(command)} "$@"\n',
    )
    monkeypatch.setenv("CXX", str(tmp_path / "counting"))
    return lambda: len(log.read_text().splitlines())


def cached(pattern: str) -> list[Path]:
    return list(Path(os.environ[compiler.CACHE_VARIABLE]).glob(pattern))


def script(path: Path, text: str) -> None:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def ask_another_process() -> subprocess.CompletedProcess[str]:
    """What a process prints that loads the kernels; the module alone, as PyTorch loads slowly."""
    program = (
        "from pathlib import Path; import compiler; "
        f"compiler.SOURCE = Path({str(compiler.SOURCE)!r}); "
        "print(compiler.load_library('answer').answer())"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(compiler.__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )


def answer(library: ctypes.CDLL | None) -> int:
    assert library is not None
    number: int = library.answer()
    return number


def test_kernels_are_compiled_and_the_choice_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="capsmodel"):
        assert answer(native_library("answer")) == 42
        assert native_library("answer") is native_library("answer")
    assert len(caplog.messages) == 1
    assert "kernels made for this machine compute" in caplog.text


@pytest.mark.parametrize("by_variable", [True, False])
def test_pytorch_forced_compiles_nothing_and_is_logged(
    by_variable: bool,
    counting_compiler: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(KERNELS_VARIABLE, "torch" if by_variable else "native")
    with caplog.at_level(logging.INFO, logger="capsmodel"):
        with force_kernels("torch"):
            assert native_library("answer") is None
        if by_variable:
            assert native_library("answer") is None
    assert counting_compiler() == 0
    assert caplog.messages == [
        "PyTorch's own operations compute, as CAPS_KERNELS=torch says",
    ]


def test_what_is_forced_counts_only_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNELS_VARIABLE, "torch")

    def fail_inside() -> None:
        with force_kernels("native"):
            assert answer(native_library("answer")) == 42
            with force_kernels("torch"):
                assert native_library("answer") is None
            assert answer(native_library("answer")) == 42
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert native_library("answer") is None


@pytest.mark.parametrize("value", ["", "auto"])
def test_auto_is_the_default(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNELS_VARIABLE, value)
    assert kernels.chosen_kernels() == "auto"


@pytest.mark.parametrize("value", ["cuda", "Native", " "])
def test_a_choice_that_is_none_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNELS_VARIABLE, value)
    with pytest.raises(ValueError, match=f"CAPS_KERNELS is '{value}', expected one of auto, "):
        native_library("answer")


def test_without_a_compiler_pytorch_computes_and_the_reason_is_logged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    routing = build_routing(DynamicRoutingConfig(), VoteShape(7, 4, 5))
    capsules, weight = torch.randn(2, 7, 3), torch.randn(7, 4, 3, 5)
    with caplog.at_level(logging.INFO, logger="capsmodel"):
        poses = routing.route(capsules, weight)
    assert "no C++ compiler (g++, c++, clang++) was found; install g++" in caplog.text
    with force_kernels("torch"):
        assert torch.equal(poses, routing.route(capsules, weight))


def test_native_forced_without_a_compiler_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    with force_kernels("native"), pytest.raises(KernelError, match="no-such-compiler -m64"):
        native_library("answer")


def test_a_failing_compilers_words_are_told(tmp_path: Path) -> None:
    (compiler.SOURCE / "answer.cpp").write_text("int answer( { no C++ at all }\n")
    with force_kernels("native"), pytest.raises(KernelError) as caught:
        native_library("answer")
    assert "answer.cpp" in str(caught.value)
    assert "error" in str(caught.value)
    assert "CXX names another" in str(caught.value)
    assert not cached("*.so*")


def test_a_compiler_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "slow", 'case "$*" in *--version*) ;; *) exec sleep 60 ;; esac\n')
    monkeypatch.setenv("CXX", str(tmp_path / "slow"))
    monkeypatch.setattr(compiler, "LONGEST_COMPILATION", 0.2)
    with force_kernels("native"), pytest.raises(KernelError, match=r"took over 0\.2 s"):
        native_library("answer")


def test_what_was_compiled_before_is_loaded(counting_compiler: Callable[[], int]) -> None:
    assert answer(compiler.load_library("answer")) == 42
    assert answer(compiler.load_library("answer")) == 42
    assert counting_compiler() == 1


def test_other_sources_or_flags_are_compiled_anew(
    counting_compiler: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler.load_library("answer")
    (compiler.SOURCE / "answer.cpp").write_text(SMALL_SOURCE.replace("42", "43"))
    assert answer(compiler.load_library("answer")) == 43
    (compiler.SOURCE / "shared.hpp").write_text("// sources include it\n")
    compiler.load_library("answer")
    monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-DOTHER"))
    compiler.load_library("answer")
    assert counting_compiler() == 4


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda whole: b"\x7fELF and nothing more", id="a beginning"),
        pytest.param(lambda whole: whole[:4096], id="truncated to a page"),
        pytest.param(lambda whole: whole[:8016], id="truncated within a page"),
        pytest.param(lambda whole: whole[:4096].ljust(len(whole), b"\0"), id="zeros"),
    ],
)
def test_a_damaged_library_is_compiled_again(
    damage: Callable[[bytes], bytes], counting_compiler: Callable[[], int]
) -> None:
    assert ask_another_process().stdout == "42\n"
    [library] = cached("*.so")
    whole = library.read_bytes()
    assert len(whole) > 8016
    library.write_bytes(damage(whole))
    for _ in range(2):
        asked = ask_another_process()
        assert (asked.returncode, asked.stdout) == (0, "42\n")
    assert counting_compiler() == 2


@pytest.mark.parametrize("content", [None, b"", b"\xff\0", b"0" * 64 + b"  answer.so\n"])
def test_a_library_without_its_checksum_is_compiled_again(
    content: bytes | None, counting_compiler: Callable[[], int]
) -> None:
    compiler.load_library("answer")
    [checksum] = cached("*.so.sha256")
    if content is None:
        checksum.unlink()
    else:
        checksum.write_bytes(content)
    assert answer(compiler.load_library("answer")) == 42
    assert answer(compiler.load_library("answer")) == 42
    assert counting_compiler() == 2


def test_library_and_checksum_are_on_the_disk_before_they_get_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[str, int]] = []
    fsync, replace = os.fsync, os.replace

    def flush(file: IO[bytes]) -> None:
        steps.append(("flushed", os.fstat(file.fileno()).st_ino))
        fsync(file)

    def rename(file: Path, target: Path) -> None:
        steps.append(("named", file.stat().st_ino))
        replace(file, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", rename)
    library = tmp_path / "answer.so"
    compiler.compile_into(library, "answer", [*compiler.compiler_command(), *compiler.FLAGS])
    made, checksum = library.stat().st_ino, (tmp_path / "answer.so.sha256").stat().st_ino
    assert steps == [
        ("flushed", made),
        ("named", made),
        ("flushed", checksum),
        ("named", checksum),
    ]


def test_what_is_ready_needs_no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    compiler.load_library("answer")
    monkeypatch.setattr(compiler, "FileLock", refuse)
    assert answer(compiler.load_library("answer")) == 42
    (compiler.SOURCE / "answer.cpp").write_text(SMALL_SOURCE.replace("42", "43"))
    with pytest.raises(KernelError, match=r"Permission denied: .*CAPS_KERNEL_CACHE names a folder"):
        compiler.load_library("answer")


def test_what_killed_compilations_left_is_removed_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path / "deadly", 'case "$*" in *--version*) ;; *) kill -9 $PPID ;; esac\n')
    for age in (compiler.LEFTOVER_AGE + 60, compiler.LEFTOVER_AGE - 60):
        with monkeypatch.context() as patch:
            patch.setenv("CXX", str(tmp_path / "deadly"))
            before = set(cached("*"))
            assert ask_another_process().returncode == -signal.SIGKILL
        [left] = [path for path in set(cached("*")) - before if path.is_dir()]
        os.utime(left, (time.time() - age,) * 2)
    anothers = left.parent / "somebody-elses"
    anothers.mkdir()
    os.utime(anothers, (0, 0))
    compiler.load_library("answer")
    assert {path for path in cached("*") if path.is_dir()} == {left, anothers}


def test_processes_that_ask_at_once_compile_once(counting_compiler: Callable[[], int]) -> None:
    with ThreadPoolExecutor(2) as pool:
        asked = list(pool.map(lambda _: ask_another_process(), range(2)))
    assert [each.stdout for each in asked] == ["42\n", "42\n"]
    assert counting_compiler() == 1


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(compiler.CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    with force_kernels("native"), pytest.raises(KernelError, match="CAPS_KERNEL_CACHE names"):
        native_library("answer")


def test_the_cache_is_the_users_where_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(compiler.CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    assert compiler.cache_folder() == tmp_path / "mine" / "capsmodel"


@pytest.fixture
def shared_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where all users' temporary files are, for a user whose home is missing."""
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    monkeypatch.delenv(compiler.CACHE_VARIABLE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "missing"))
    return shared


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("no_umask")
def test_without_a_home_the_cache_is_a_private_folder(shared_folder: Path) -> None:
    assert answer(compiler.load_library("answer")) == 42
    [folder] = shared_folder.iterdir()
    assert folder.name == f"capsmodel-{os.geteuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(list(folder.glob("*.so"))) == 1
    assert answer(compiler.load_library("answer")) == 42


def test_a_user_without_a_name_or_a_home_has_a_private_folder(
    shared_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_nobody(user: int) -> None:
        raise KeyError(user)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", find_nobody)
    assert compiler.cache_folder() == shared_folder / f"capsmodel-{os.geteuid()}"


@pytest.mark.parametrize(
    ("plant", "problem"),
    [
        pytest.param(lambda place, own: place.symlink_to(own), "is a link or a file", id="link"),
        pytest.param(
            lambda place, own: place.symlink_to(own / "none"), "is a link or a file", id="dangling"
        ),
        pytest.param(lambda place, own: place.touch(), "is a link or a file", id="file"),
        pytest.param(
            lambda place, own: (place.mkdir(), place.chmod(0o770)),
            r"others may write to it \(mode drwxrwx---\)",
            id="a group's",
        ),
        pytest.param(
            lambda place, own: (place.mkdir(), place.chmod(0o1707)),
            r"others may write to it \(mode drwx---rwt\)",
            id="everybody's",
        ),
    ],
)
def test_a_private_folder_that_others_could_fill_is_refused(
    plant: Callable[[Path, Path], object], problem: str, shared_folder: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    place = shared_folder / f"capsmodel-{os.geteuid()}"
    plant(place, own)
    with pytest.raises(KernelError, match=f"{place} .*{problem}.*; set CAPS_KERNEL_CACHE to"):
        compiler.load_library("answer")
    assert not list(own.iterdir())


def test_a_private_folder_of_another_user_is_refused(
    shared_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    place = shared_folder / f"capsmodel-{owner + 1}"
    with pytest.raises(KernelError, match=f"{place} .*belongs to the user {owner}, not to "):
        compiler.load_library("answer")


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702])
@pytest.mark.parametrize("named", [True, False])
def test_a_cache_that_everybody_may_write_to_is_refused(
    named: bool, mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "capsmodel"
    folder.mkdir()
    folder.chmod(mode)
    if named:
        monkeypatch.setenv(compiler.CACHE_VARIABLE, str(folder))
    else:
        monkeypatch.delenv(compiler.CACHE_VARIABLE)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(KernelError, match=f"{folder} .*every user may write .*CAPS_KERNEL_CACHE"):
        compiler.load_library("answer")
    assert not list(folder.iterdir())


@pytest.mark.usefixtures("no_umask")
def test_a_cache_is_made_so_that_only_its_owner_writes(tmp_path: Path) -> None:
    assert answer(compiler.load_library("answer")) == 42
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o755


def test_an_unknown_users_home_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(compiler.CACHE_VARIABLE, "~nobodyhere/x")
    with caplog.at_level(logging.WARNING, logger="capsmodel"):
        assert native_library("answer") is None
    assert "more slowly: CAPS_KERNEL_CACHE is '~nobodyhere/x', and that home is" in caplog.text
    with force_kernels("native"), pytest.raises(KernelError, match="write the path in full"):
        native_library("answer")


def test_a_cache_may_be_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(compiler.CACHE_VARIABLE, ".")
    assert answer(compiler.load_library("answer")) == 42
    assert len(list(tmp_path.glob("*.so"))) == 1
