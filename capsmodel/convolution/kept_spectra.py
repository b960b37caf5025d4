"""The spectra of a layer's weights, kept from one inference to the next.

Weights seldom change between inferences, but anything may change them: an optimizer, a checkpoint,
`weight.data`. So they are read at every call and known by their fingerprint, which takes a tenth
of the time of their transform.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from capsmodel.convolution.transforms import Transforms, fingerprint, planes_shape


class _Key(NamedTuple):
    shape: torch.Size
    side: int
    dtype: torch.dtype
    weight: int


class KeptSpectra:
    """Room for the planes of one layer's weights. It is empty in copies and pickles."""

    def __init__(self) -> None:
        self._kept: tuple[_Key, Tensor] | None = None

    def of(self, weight: Tensor, transforms: Transforms) -> Tensor:
        """Planes `[K, F, 4C]` of weights `[F, C, 9, 9]`, fp32."""
        weight = weight.detach().contiguous()
        filters, channels = weight.shape[:2]
        known = fingerprint(weight, transforms.side)
        key = _Key(weight.shape, transforms.side, transforms.dtype, known)
        kept = self._kept
        if kept is not None and kept[0] == key:
            return kept[1]
        self.drop()  # first: there is never room for two
        shape = planes_shape(transforms.side, filters, channels)
        planes = torch.empty(shape, dtype=transforms.dtype, device=weight.device)
        transforms.run("analyse_weights", weight, planes, filters, channels)
        self._kept = (key, planes)
        return planes

    def drop(self) -> None:
        """Give the memory back."""
        self._kept = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_kept": None}
