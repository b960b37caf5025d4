"""How every analysis runs a model: checked, in evaluation mode, without gradients, in batches."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from capsmodel.model import Model, check_images, check_target, predicted_classes
from capsmodel.precision import exact_fp32

BATCH_SIZE = 250


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module has its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
    model.eval()
    try:
        with torch.no_grad(), exact_fp32(device, "fp32"):
            yield
    finally:
        for module, training in modes:
            module.training = training


def batches(
    model: Model, images: Tensor, target: Tensor | None, batch_size: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Images and their targets on the model's device, in its precision.

    Args:
        model: Says what is accepted.
        images: Floating point `[N, C, H, W]` in [0, 1].
        target: int64 `[N]` or `[N, T]`, or None.
        batch_size: Images of a batch; the last may be smaller.

    Raises:
        ValueError: An argument has another shape, dtype or range.
    """
    check_images(images, model.image_shape)
    if target is not None:
        check_target(target, len(images), model.classes)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
    weight = next(model.parameters(), images)
    for start in range(0, len(images), batch_size):
        batch = slice(start, start + batch_size)
        chosen = None if target is None else target[batch].to(weight.device)
        yield images[batch].to(weight), chosen


def check_draws(model: Model) -> None:
    """Refuse a model that can't reconstruct with a ValueError."""
    if not model.draws:
        raise ValueError(
            f"this {type(model).__name__} draws nothing: expected a model with a decoder, such as "
            "a CapsNet whose configuration has `decoder`"
        )


def capsules_to_draw(
    model: Model, images: Tensor, target: Tensor | None, count: int
) -> tuple[Tensor, Tensor]:
    """Poses `[B, J, D]`, and the classes to draw: those of `target`, else the `count` longest."""
    output = model.compute(images, target)
    if output.poses is None:
        raise ValueError(f"this {type(model).__name__} has no capsules, so nothing can be drawn")
    chosen = predicted_classes(output.lengths, count) if target is None else target
    return output.poses, chosen


def draw(model: Model, poses: Tensor, target: Tensor) -> Tensor:
    """What a model that draws makes of poses; see `Model.reconstruct`."""
    drawn = model.reconstruct(poses, target)
    if drawn is None:
        raise ValueError(f"this {type(model).__name__} says that it draws, but drew nothing")
    return drawn
