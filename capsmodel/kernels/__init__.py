"""Who computes on a CPU: kernels compiled for this machine, or PyTorch's own operations.

The kernels (`source/*.cpp`) are compiled at first use. Where that is not possible PyTorch computes
the same, more slowly. CAPS_KERNELS forces a choice: `native` fails where the kernels cannot be
made, `torch` never makes them; `auto`, the default, takes them where it can. What was chosen is
logged once.
"""

import ctypes
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NoReturn, get_args

import torch
from torch import Tensor

from capsmodel.kernels.compiler import KernelError, load_library

logger = logging.getLogger(__name__)

KERNELS_VARIABLE = "CAPS_KERNELS"
Kernels = Literal["auto", "native", "torch"]

_lock = threading.Lock()
_loaded: dict[tuple[Any, ...], ctypes.CDLL | KernelError] = {}
"""The libraries that were asked for, or why there is none."""
_forced: Kernels | None = None
_announced: set[str] = set()


def native_library(source: str, **constants: int) -> ctypes.CDLL | None:
    """Compiled kernels, or None where PyTorch's own operations shall compute.

    The first call for a source may compile it, which takes some seconds.

    Args:
        source: Name of a file in `source/`, without its ending.
        constants: What the source leaves open; each set of them is a library of its own.

    Raises:
        KernelError: `native` is forced, and the kernels cannot be made here.
        ValueError: CAPS_KERNELS is none of `auto`, `native`, `torch`.
    """
    choice = chosen_kernels()
    if choice == "torch":
        reason = f"as {KERNELS_VARIABLE}=torch says"
        _announce(logging.INFO, f"PyTorch's own operations compute, {reason}")
        return None
    found = _load_once(source, constants)
    if isinstance(found, ctypes.CDLL):
        return found
    if choice == "native":
        raise found
    _announce(logging.WARNING, f"PyTorch's own operations compute, more slowly: {found}")
    return None


def loaded_library(source: str, **constants: int) -> ctypes.CDLL:
    """Compiled kernels whatever the choice: a way back follows its way forward, made before.

    Raises:
        KernelError: The kernels cannot be made here.
    """
    found = _load_once(source, constants)
    if isinstance(found, KernelError):
        raise found
    return found


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def own_operators() -> bool:
    """Whether operators of the library's own may take part, which have first derivatives alone.

    Not where PyTorch's are forced; nor under the transforms of `torch.func` and in forward mode,
    which ask for rules that they have not. `torch.compile` asks once and takes it as settled.
    """
    return chosen_kernels() != "torch" and not _transformed()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def has_kernels(source: str, **constants: int) -> bool:
    """Whether operators of our own may take part, and `native_library` finds their kernels."""
    return native_library(source, **constants) is not None and own_operators()


def refuse_second_derivative(operator: str) -> Callable[..., NoReturn]:
    """The derivative of an operator that is itself one: what `register_autograd` is given."""

    def refuse(ctx: Any, *gradients: Tensor) -> NoReturn:
        raise NotImplementedError(
            f"{operator} has no gradient of its gradient; compute both with PyTorch's own "
            "operations: CAPS_KERNELS=torch, or capsmodel.kernels.force_kernels('torch') around "
            "the forward pass"
        )

    return refuse


def _transformed() -> bool:
    """Whether a transform of `torch.func` or forward mode is at work."""
    transform = torch._C._functorch.peek_interpreter_stack()
    return transform is not None or torch.autograd.forward_ad._current_level >= 0


def chosen_kernels() -> Kernels:
    """What `force_kernels` or CAPS_KERNELS says."""
    if _forced is not None:
        return _forced
    return _known(os.environ.get(KERNELS_VARIABLE) or "auto", KERNELS_VARIABLE)


@contextmanager
def force_kernels(choice: Kernels) -> Iterator[None]:
    """Context in which `choice` counts, whatever CAPS_KERNELS says; for the whole process.

    Raises:
        ValueError: The choice is none of `auto`, `native`, `torch`.
    """
    global _forced
    before, _forced = _forced, _known(choice, "the choice of force_kernels")
    try:
        yield
    finally:
        _forced = before


def _known(choice: str, name: str) -> Kernels:
    for known in get_args(Kernels):
        if choice == known:
            return known  # type: ignore[no-any-return]
    raise ValueError(f"{name} is {choice!r}, expected one of {', '.join(get_args(Kernels))}")


def _load_once(source: str, constants: dict[str, int]) -> ctypes.CDLL | KernelError:
    key = (source, *sorted(constants.items()))
    with _lock:
        if key not in _loaded:
            try:
                library = load_library(source, constants)
                _announce(logging.INFO, f"kernels made for this machine compute: {library._name}")
                _loaded[key] = library
            except KernelError as error:
                _loaded[key] = error
        return _loaded[key]


def _announce(level: int, message: str) -> None:
    """Log a choice, once in a process."""
    if message not in _announced:
        _announced.add(message)
        logger.log(level, message)
