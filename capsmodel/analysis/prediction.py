"""What a model recognises in images, and how it draws them again."""

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
from capsmodel.model import Model, predicted_classes


class Prediction(NamedTuple):
    """What a model recognises in N images."""

    classes: Tensor
    """int64 `[N]`: the class of the longest capsule; with T targets `[N, T]`, longest first."""
    lengths: Tensor
    """`[N, J]` in [0, 1]: the probability of each class."""
    poses: Tensor | None
    """`[N, J, D]`: the class capsules; None where the model has none."""


def predict(model: Model, images: Tensor, *, batch_size: int = BATCH_SIZE) -> Prediction:
    """Classify images.

    Args:
        model: Any model.
        images: Floating point `[N, C, H, W]` in [0, 1].
        batch_size: Images that go through the model at once.

    Raises:
        ValueError: An argument has another shape, dtype or range.
    """
    lengths, poses = [], []
    with evaluating(model):
        for batch, _ in batches(model, images, None, batch_size):
            output = model.compute(batch)
            lengths.append(output.lengths)
            if output.poses is not None:
                poses.append(output.poses)
    presence = torch.cat(lengths)
    classes = predicted_classes(presence, model.targets)
    return Prediction(classes, presence, torch.cat(poses) if poses else None)


def reconstruct(
    model: Model, images: Tensor, target: Tensor | None = None, *, batch_size: int = BATCH_SIZE
) -> Tensor:
    """Draw images again from the poses of their capsules (section 4.1).

    Args:
        model: A model with a decoder.
        images: Floating point `[N, C, H, W]` in [0, 1].
        target: int64 `[N]`, the class from whose capsule each image is drawn, or `[N, T]` to draw
            several; None draws from the longest capsule, from the two longest where two classes
            are present.
        batch_size: Images that go through the model at once.

    Returns:
        `[N, C, H, W]`, or `[N, T, C, H, W]`, in [0, 1].

    Raises:
        ValueError: The model has no decoder, or an argument has another shape, dtype or range.
    """
    check_draws(model)
    drawings = []
    with evaluating(model):
        for batch, chosen in batches(model, images, target, batch_size):
            poses, classes = capsules_to_draw(model, batch, chosen, model.targets)
            drawings.append(draw(model, poses, classes))
    return torch.cat(drawings)
