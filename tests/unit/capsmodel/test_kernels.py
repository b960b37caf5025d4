"""Who computes: compiled kernels or PyTorch; what happens where they cannot be compiled."""

import ctypes
import logging
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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


def script(path: Path, text: str) -> None:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


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
    assert not list(Path(os.environ[compiler.CACHE_VARIABLE]).glob("*.so"))


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


def test_a_damaged_library_is_compiled_again(counting_compiler: Callable[[], int]) -> None:
    command = [*compiler.compiler_command(), *compiler.FLAGS]
    folder = compiler.cache_folder()
    folder.mkdir(parents=True)
    library = folder / f"answer-{compiler.fingerprint('answer', command)}.so"
    library.write_bytes(b"\x7fELF and nothing more")
    assert answer(compiler.load_library("answer")) == 42
    assert counting_compiler() == 1


def test_processes_that_ask_at_once_compile_once(
    counting_compiler: Callable[[], int], tmp_path: Path
) -> None:
    program = (
        "from pathlib import Path; from capsmodel.kernels import compiler; "
        f"compiler.SOURCE = Path({str(compiler.SOURCE)!r}); "
        "print(compiler.load_library('answer').answer())"
    )

    def ask(_: int) -> str:
        finished = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        return finished.stdout

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(ask, range(2))) == ["42\n", "42\n"]
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
