"""A training's step as a CUDA graph: recorded once, then sent to the GPU as a whole.

A step is some hundred small launches; sent one by one they take the host longer than the GPU.
After `WARM_UP` steps on batches of one size the next is recorded: forward, backward, the length of
the gradient and its clipping, the measures, the watch for divergence, and Adam. From then on a
batch of that size is copied to where the recorded step reads it, and the graph is replayed. Batches
of another size (an epoch's last one) go the usual way, and so does everything where a step can't be
recorded; the log says why, once.

A recorded step does what was done when it was recorded. It is recorded anew where weights or Adam's
memory have moved (a state was loaded), but it does not know of hooks put on the model afterwards:
whoever needs those sets CAPS_CUDA_GRAPH=0, which leaves all steps as they are. 1, the default,
records where it can: on a GPU, with one process.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from capsmodel.batch import Batch

logger = logging.getLogger(__name__)

VARIABLE = "CAPS_CUDA_GRAPH"
WARM_UP = 3
"""Steps in a row on batches of one size, before one of that size is recorded: kernels are compiled
and chosen in them. A training's first step, in which Adam's memory is made, does not count."""

Learn = Callable[[Batch], tuple[Tensor, Tensor]]
"""A step on a batch: gives the measures and the gradient's length, and waits for nothing."""

_broken: list["Recording"] = []
"""Recordings that failed. PyTorch's allocator may still ask them, so they are kept; nothing is
recorded or replayed in this process any more, since PyTorch promises nothing after that."""


class RecordingError(RuntimeError):
    """A step was not recorded."""


def graphs_wanted() -> bool:
    """What CAPS_CUDA_GRAPH says.

    Raises:
        ValueError: It is neither 0 nor 1.
    """
    choice = os.environ.get(VARIABLE) or "1"
    if choice not in ("0", "1"):
        raise ValueError(
            f"{VARIABLE} is {choice!r}, expected 1 (steps on a GPU are recorded as a CUDA graph) "
            "or 0 (they are not)"
        )
    return choice == "1"


class Recording:
    """One step as a graph. It holds what it reads and writes, which stays where it is."""

    def __init__(self, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
        """Room for a step on batches of this form."""
        self._weights = [w for group in optimizer.param_groups for w in group["params"]]
        parts = None if batch.parts is None else batch.parts.clone()
        self._batch = Batch(batch.images.clone(), batch.labels.clone(), parts)
        self._graph = torch.cuda.CUDAGraph()
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, learn: Learn, stream: torch.cuda.Stream) -> None:
        """Record a step without doing it.

        Other threads may use the GPU meanwhile: the strictest mode would make them fail.
        """
        recording = torch.cuda.graph(
            self._graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
        )
        with recording:
            self._measures, self._gradient_norm = learn(self._batch)
        self._gradients = [weight.grad for weight in self._weights]

    def replay(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Do the step on a batch. The results are copies: the next step writes over its own."""
        for own, given in zip(self._batch, batch, strict=True):
            if own is not None and given is not None:
                own.copy_(given)
        self._graph.replay()
        for weight, gradient in zip(self._weights, self._gradients, strict=True):
            weight.grad = gradient
        return self._measures.clone(), self._gradient_norm.clone()

    def abandon(self, device: torch.device) -> None:
        """After a failure, give back what was taken on the device."""
        self._graph.reset()
        with suppress(Exception):  # left undone only where the end of the recording failed too
            torch._C._cuda_endAllocateToPool(device.index, self._pool)
            torch._C._cuda_releasePool(device.index, self._pool)
        # PyTorch's generator may believe that the recording still goes on.
        generator = torch.cuda.default_generators[device.index]
        generator.graphsafe_set_state(generator.clone_state())


class StepGraph:
    """Does a training's steps, by a recording wherever there is one that fits."""

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._optimizer = optimizer
        index = torch.cuda.current_device() if device.index is None else device.index
        self._device = torch.device(device.type, index)
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._recording: Recording | None = None
        self._recorded_form: Any = None
        self._last_form: Any = None
        self._in_a_row = 0
        """Steps of the same form as the last one, one after another."""
        self._given_up = False

    @property
    def records(self) -> bool:
        """Whether a step is recorded."""
        return self._recording is not None

    def step(self, learn: Learn, batch: Batch) -> tuple[Tensor, Tensor]:
        """Do a step.

        Args:
            learn: The whole step but for what the host does; always the same one.
            batch: On the device.

        Returns:
            What `learn` gives; the next step leaves it alone.
        """
        form = self._form(batch)
        self._in_a_row = self._in_a_row + 1 if form == self._last_form else 1
        self._last_form = form
        recording = self._recording if form == self._recorded_form else None
        if self._given_up or _broken:
            return learn(batch)
        if recording is None and self._in_a_row <= WARM_UP:
            with self._aside():
                return learn(batch)
        try:
            if recording is None:
                recording = self._record(learn, batch)
                self._recorded_form = form
            return recording.replay(batch)
        except Exception as error:  # nothing has been done yet
            self._give_up(error)
        return learn(batch)

    def _form(self, batch: Batch) -> Any:
        """What a recording is good for: sizes, mode, and where weights and Adam's memory lie."""
        optimizer = self._optimizer
        weights = [w for group in optimizer.param_groups for w in group["params"]]
        places = [
            value.data_ptr() for w in weights for value in (w, *optimizer.state.get(w, {}).values())
        ]
        sizes = [None if part is None else (part.shape, part.dtype) for part in batch]
        return sizes, torch.are_deterministic_algorithms_enabled(), places

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Context of a step on the stream on which steps are recorded, in its turn.

        Libraries keep memory for each stream, and have to take it before a recording begins.
        """
        here = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(here)
        try:
            with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
                yield
        finally:
            here.wait_stream(self._stream)

    def _record(self, learn: Learn, batch: Batch) -> Recording:
        self._recording = None  # of another form: its memory comes back first
        _check_room(self._device)
        recording = Recording(self._optimizer, batch)
        # A recording that fails may leave its stream the current one, which this context undoes.
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            try:
                recording.record(learn, self._stream)
            except BaseException:
                _broken.append(recording)
                recording.abandon(self._device)
                raise
        self._recording = recording
        return recording

    def _give_up(self, error: Exception) -> None:
        self._given_up = True
        self._recording = None
        cause: BaseException = error
        while cause.__context__ is not None:  # the end of a failed recording fails too
            cause = cause.__context__
        logger.warning(
            "steps are not recorded as a CUDA graph, so small nets and batches train more slowly: "
            "%s: %s",
            type(cause).__name__,
            cause,
        )


def _check_room(device: torch.device) -> None:
    """Raise RecordingError unless the memory holds twice what was taken up to now.

    A recording keeps its memory for itself, and the evaluation and smaller batches need theirs.
    """
    free, total = torch.cuda.mem_get_info(device)
    allowed = total * torch.cuda.get_per_process_memory_fraction(device)
    room = min(allowed, free + torch.cuda.memory_reserved(device))
    needed = 2 * torch.cuda.max_memory_allocated(device)
    if needed > room:
        raise RecordingError(
            f"it may need {needed >> 20} MiB of the GPU's memory, and there are {int(room) >> 20}"
        )
