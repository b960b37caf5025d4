"""Batches of a training set: shuffled anew in every epoch, resumable within one."""

from typing import Any

import torch
from torch import Tensor


class Sampler:
    """Deals out the indices of one epoch after another in random order, in batches.

    Every example comes once an epoch; the last batch of an epoch may be smaller. The order is
    drawn on the CPU and moved to the device once an epoch, so a seed means the same batches on
    every device, and a state can be loaded on another one.
    """

    def __init__(
        self, indices: Tensor, batch_size: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        """Start the first epoch.

        Args:
            indices: int64 `[N]`, N >= 1, the examples to deal out.
            batch_size: Examples a batch.
            seed: Seed of the shuffles.
            device: Where the batches of indices are made.
        """
        self._indices = indices.cpu()
        self._batch_size = batch_size
        self._device = torch.device(device)
        self._generator = torch.Generator().manual_seed(seed)
        self.start_epoch()

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-len(self._indices) // self._batch_size)

    @property
    def exhausted(self) -> bool:
        """Whether the epoch's batches have all been dealt out."""
        return self._position >= len(self)

    def start_epoch(self) -> None:
        """Shuffle for a new epoch."""
        self._epoch_state = self._generator.get_state()
        order = torch.randperm(len(self._indices), generator=self._generator)
        self._order = self._indices[order].to(self._device)
        self._position = 0

    def next_batch(self) -> Tensor:
        """Indices of the next batch, int64, on the device.

        Raises:
            StopIteration: The epoch is over.
        """
        if self.exhausted:
            raise StopIteration("the epoch is over: call start_epoch()")
        start = self._position * self._batch_size
        self._position += 1
        return self._order[start : start + self._batch_size]

    def state_dict(self) -> dict[str, Any]:
        """Generator as it was before this epoch's shuffle, and the batches dealt out since."""
        return {"generator": self._epoch_state.clone(), "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken."""
        self._generator.set_state(state["generator"])
        self.start_epoch()
        self._position = state["position"]
