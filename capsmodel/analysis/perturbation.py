"""What each dimension of a capsule stands for: images drawn from changed poses (section 5.1)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from capsmodel.analysis.batches import (
    BATCH_SIZE,
    batches,
    capsules_to_draw,
    check_draws,
    draw,
    evaluating,
)
from capsmodel.model import Model

OFFSETS = tuple(step / 20 for step in range(-5, 6))
"""The paper's eleven: -0.25 to 0.25 in steps of 0.05."""


def perturb(
    model: Model,
    images: Tensor,
    target: Tensor | None = None,
    offsets: Sequence[float] | Tensor | None = None,
    dims: Sequence[int] | None = None,
    *,
    batch_size: int = BATCH_SIZE,
) -> Tensor:
    """Draw images with one dimension of a capsule changed at a time (figure 4).

    Where the offset is 0 the result is, bit for bit, what `reconstruct` draws in batches of the
    same size.

    Args:
        model: A model with a decoder.
        images: Floating point `[N, C, H, W]` in [0, 1].
        target: int64 `[N]`, the class whose capsule is changed and drawn; None takes the longest.
        offsets: K numbers, each added to each dimension; by default the paper's `OFFSETS`.
        dims: The dimensions to change, each in 0 .. D-1; by default all D of a capsule.
        batch_size: Images that go through the model at once.

    Returns:
        `[N, D, K, C, H, W]` in [0, 1], with `dims` so many in place of D. A thousand digits with
        the defaults take 0.55 GB.

    Raises:
        ValueError: The model has no decoder, or an argument has another shape, dtype or range.
    """
    check_draws(model)
    if target is not None and target.dim() != 1:
        raise ValueError(
            f"target is {list(target.shape)}, expected [N] = [{len(images)}]: the capsules of one "
            "class an image are changed, so call once for each class"
        )
    steps = _checked_offsets(OFFSETS if offsets is None else offsets)
    drawings = []
    with evaluating(model):
        for batch, given in batches(model, images, target, batch_size):
            poses, classes = capsules_to_draw(model, batch, given, 1)
            drawings.append(_perturbed(model, poses, classes, steps, _checked_dims(dims, poses)))
    return torch.cat(drawings)


def _perturbed(
    model: Model, poses: Tensor, classes: Tensor, offsets: list[float], dims: list[int]
) -> Tensor:
    """`[B, D, K, C, H, W]` from poses `[B, J, D]`.

    Each step is drawn by itself: a product's last bit depends on how many rows it has, and so the
    drawings at offset 0 are the plain ones.
    """
    samples = torch.arange(len(poses), device=poses.device)
    drawings = []
    for dim in dims:
        for offset in offsets:
            changed = poses.clone()
            changed[samples, classes, dim] += offset
            drawings.append(draw(model, changed, classes))
    return torch.stack(drawings, dim=1).view(-1, len(dims), len(offsets), *model.image_shape)


def _checked_offsets(offsets: Sequence[float] | Tensor) -> list[float]:
    values = [float(offset) for offset in offsets]
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError(f"offsets are {values}, expected finite numbers, at least one")
    return values


def _checked_dims(dims: Sequence[int] | None, poses: Tensor) -> list[int]:
    """The dimensions to change, after a look at how many there are."""
    size = poses.shape[2]
    values = [*range(size)] if dims is None else [*dims]
    if not values or min(values) < 0 or max(values) >= size:
        raise ValueError(
            f"dims are {values}, expected at least one, each in 0 .. {size - 1}: capsules of this "
            f"model have {size} dimensions"
        )
    return values
