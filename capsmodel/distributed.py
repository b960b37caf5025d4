"""Data-parallel training: what the processes that train one model together agree on.

The caller starts the processes and calls `torch.distributed.init_process_group`; here the group is
only used. Each process is a *rank*. All of them hold the same weights and data and deal out the
same batches; each computes its share of every batch, and the gradient is summed over them.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from capsmodel.batch import Batch
from capsmodel.losses import Loss, LossTerms
from capsmodel.model import Model
from capsmodel.precision import Precision, mixed_precision

GO_ON, STOP, FAILED = range(3)
"""What a rank can vote for; the highest vote of all holds."""


class RankFailedError(RuntimeError):
    """Another rank left the training with an error, which is told by that rank."""


class RanksDifferError(ValueError):
    """Ranks that should train the same do not."""


class Share(NamedTuple):
    """What one rank computes of a batch."""

    batch: Batch
    weight: float
    """Its part of the batch's images, in [0, 1]. Where it is 0, for a batch may have fewer images
    than there are ranks, `batch` holds one image all the same, so that every rank computes."""


class Ranks:
    """The processes of one training, or this one alone.

    All but `own`, `share` and `seed` are meetings: all ranks call them, in the same order.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        """By default one process alone, which meets nobody."""
        self.rank = rank
        self.size = size
        self._host = _host_group() if size > 1 else None

    @classmethod
    def current(cls) -> "Ranks":
        """Those of the default process group; this process alone where there is none.

        The first call in a group is a meeting, if its backend is not gloo.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def alone(self) -> bool:
        """Whether there is no other rank."""
        return self.size == 1

    @property
    def own(self) -> slice:
        """Which of a number of things are this rank's: every `size`-th.

        The shares differ by at most one thing; where they do, the first ranks have the larger.
        """
        return slice(self.rank, None, self.size)

    def share(self, batch: Batch) -> Share:
        """This rank's share of a batch that is the same on all ranks."""
        if self.alone:
            return Share(batch, 1.0)
        images = len(batch.labels)
        own = len(range(images)[self.own])
        rows = self.own if own else slice(1)
        return Share(_rows(batch, rows), own / images)

    def sum(self, values: Tensor) -> Tensor:
        """Sums over all ranks, the same bits on each; does not wait for a GPU."""
        if self.alone:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total

    def vote(self, stop: bool) -> bool:
        """Whether any rank wants to stop.

        It is taken on the host, so that no GPU is waited for.

        Raises:
            RankFailedError: A rank failed before it came to vote.
        """
        if self.alone:
            return stop
        highest = self._vote(STOP if stop else GO_ON)
        if highest == FAILED:
            raise RankFailedError("another rank failed; its own error says why")
        return highest == STOP

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Context of work that one rank may do alone and the next `vote` follows.

        If it fails, that vote tells the others, so that they do not wait for this rank.
        """
        try:
            yield
        except BaseException:
            if not self.alone:
                with suppress(RuntimeError):  # the others are gone already
                    self._vote(FAILED)
            raise

    def first_of(self, value: str | None) -> str | None:
        """The first value, in the order of the ranks, that is not None."""
        return next((found for found in self._everyones(value) if found is not None), None)

    def check_same(self, facts: dict[str, Any]) -> None:
        """Make sure that all ranks have the same facts.

        Raises:
            RanksDifferError: They have not; raised on all ranks.
        """
        first, *others = self._everyones(facts)
        for rank, found in enumerate(others, start=1):
            for name, value in first.items():
                if found[name] != value:
                    raise RanksDifferError(
                        f"the ranks of a training must do the same: {name} is {value} on rank 0 "
                        f"and {found[name]} on rank {rank}. Give every rank the same "
                        "configuration and data, and load the same state on each"
                    )

    def same_buffers(self, model: Model) -> None:
        """Copy rank 0's buffers (running means, say, which each rank takes of its own share)."""
        if not self.alone:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def seed(self, seed: int, step: int) -> None:
        """Let the ranks draw different numbers (dropout's masks) from torch's global generators.

        Rank 0 goes on drawing as if it were alone. What the others draw at a step follows from
        seed, rank and step, so their generators need no place in a checkpoint.
        """
        if self.rank:
            digest = hashlib.sha256(f"{seed} {self.rank} {step}".encode()).digest()
            torch.manual_seed(int.from_bytes(digest[:4], "big"))

    def _vote(self, own: int) -> int:
        votes = torch.tensor(own)
        dist.all_reduce(votes, dist.ReduceOp.MAX, group=self._host)
        return int(votes)

    def _everyones(self, value: Any) -> list[Any]:
        values = [value] * self.size
        if not self.alone:
            dist.all_gather_object(values, value, group=self._host)
        return values


class Objective(nn.Module):
    """A model and its loss as one module: from a batch straight to what is minimised."""

    def __init__(self, model: Model, loss: Loss, precision: Precision) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.precision = precision

    def forward(self, batch: Batch) -> tuple[LossTerms, Tensor]:
        """Means over a batch, of which only the total leads back to the weights.

        Args:
            batch: Pixels in [0, 1].

        Returns:
            The losses, and the lengths `[B, J]`.
        """
        with mixed_precision(batch.images.device, self.precision):
            output = self.model.compute(batch.images, batch.labels)
        total, classification, reconstruction = self.loss(output, batch)
        terms = LossTerms(total, classification.detach(), reconstruction.detach())
        return terms, output.lengths.detach()


def averaged(objective: Objective, batch: Batch) -> nn.Module:
    """The objective, such that a backward pass leaves the MEAN of all ranks' gradients.

    Gradients travel in groups while those of earlier layers are still computed. PyTorch settles the
    groups in the first step; here a rehearsal does, so that a resumed training, too, sums in the
    same order from its first step on.

    Args:
        objective: Its gradients are lost.
        batch: Of whose first image the rehearsal is; the same on all ranks.
    """
    first = _rows(batch, slice(1))
    weights = [weight for weight in objective.parameters() if weight.requires_grad]
    objective.eval()  # draws nothing, and no running mean is changed
    found = torch.autograd.grad(objective(first)[0].total, weights, allow_unused=True)
    some_unused = any(gradient is None for gradient in found)
    parallel = DistributedDataParallel(objective, find_unused_parameters=some_unused)
    parallel(first)[0].total.backward()
    objective.zero_grad()
    objective.train()
    return parallel


def gradient_bytes(model: nn.Module) -> int:
    """Bytes of gradient that every rank gives and takes at each step of a data-parallel training.

    32,862,272 for the paper's net.
    """
    return sum(w.numel() * w.element_size() for w in model.parameters() if w.requires_grad)


def _rows(batch: Batch, rows: slice) -> Batch:
    """Copies of some images: a view would keep the whole batch in memory."""
    parts = None if batch.parts is None else batch.parts[rows].clone()
    return Batch(batch.images[rows].clone(), batch.labels[rows].clone(), parts)


_host_groups: dict[Any, Any] = {}
"""The latest default group, and the group in which the same processes meet on the host."""


def _host_group() -> Any:
    """A group for what lies on the host, whatever the default group's backend."""
    world = dist.group.WORLD
    if world not in _host_groups:
        _host_groups.clear()
        gloo = dist.get_backend() == dist.Backend.GLOO
        _host_groups[world] = world if gloo else dist.new_group(backend="gloo")
    return _host_groups[world]
