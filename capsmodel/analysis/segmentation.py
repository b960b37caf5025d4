"""Overlapping objects told apart: which pixel is of which (section 6, figure 5)."""

from typing import NamedTuple

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

COLOURS = ((1.0, 0.55, 0.0), (0.0, 0.45, 1.0))
"""Red, green and blue of the first object, orange, and of the second, blue.

Colour-blind readers tell them apart, and they add up to white: where both lie, it is white.
"""


class Segmentation(NamedTuple):
    """Two objects in each of N images, taken apart."""

    classes: Tensor
    """int64 `[N, 2]`: what was drawn, first and second."""
    reconstructions: Tensor
    """`[N, 2, C, H, W]` in [0, 1]: each object alone."""
    picture: Tensor
    """`[N, 3, H, W]` in [0, 1]: both on black in their `COLOURS`, added up where they overlap."""
    assignment: Tensor
    """int64 `[N, H, W]`: 0 background, 1 of the first, 2 of the second, 3 of both."""


def segment(
    model: Model,
    images: Tensor,
    target: Tensor | None = None,
    *,
    threshold: float = 0.5,
    batch_size: int = BATCH_SIZE,
) -> Segmentation:
    """Take two objects on one another apart by drawing each from its own capsule.

    Args:
        model: A model with a decoder, whether or not it learnt from images with two classes.
        images: Floating point `[N, C, H, W]` in [0, 1].
        target: int64 `[N, 2]`, any two classes an image; None takes the two longest capsules, the
            longer first.
        threshold: In [0, 1]: a pixel is of an object whose reconstruction is brighter there, in
            the brightest of its channels.
        batch_size: Images that go through the model at once.

    Raises:
        ValueError: The model has no decoder, or an argument has another shape, dtype or range.
    """
    check_draws(model)
    if target is not None and tuple(target.shape[1:]) != (2,):
        raise ValueError(
            f"target is {list(target.shape)}, expected [N, 2] = [{len(images)}, 2]: two classes "
            "an image"
        )
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}, expected a brightness in [0, 1]")
    classes, drawings = [], []
    with evaluating(model):
        for batch, given in batches(model, images, target, batch_size):
            poses, chosen = capsules_to_draw(model, batch, given, 2)
            classes.append(chosen)
            drawings.append(draw(model, poses, chosen))
    apart = torch.cat(drawings)
    picture = in_colours(apart).sum(dim=1).clamp(max=1)
    return Segmentation(torch.cat(classes), apart, picture, _assigned(apart, threshold))


def in_colours(drawings: Tensor) -> Tensor:
    """Two objects' drawings, each on black in its own of the `COLOURS`.

    Args:
        drawings: `[N, 2, C, H, W]` in [0, 1]; the brightest channel counts.

    Returns:
        `[N, 2, 3, H, W]` in [0, 1]; but for rounding, the sum of the two is too.
    """
    colours = torch.tensor(COLOURS, dtype=drawings.dtype, device=drawings.device)
    return drawings.amax(dim=2, keepdim=True) * colours[:, :, None, None]


def _assigned(drawings: Tensor, threshold: float) -> Tensor:
    """int64 `[N, H, W]`: the first object counts 1, the second 2."""
    first, second = (drawings.amax(dim=2) > threshold).long().unbind(dim=1)
    return first + 2 * second
