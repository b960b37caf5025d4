"""Evaluation of a model on a part of a data set."""

from collections.abc import Callable

import torch
from torch import Tensor

from capsmodel.losses import MarginLoss
from capsmodel.metrics import Evaluation, RunningMean, measure
from capsmodel.model import Model
from capsmodel.precision import Precision, mixed_precision

BATCH_SIZE = 250
"""No gradients are kept, so it need not be the training's; the means do not depend on it."""


class EvaluationInterrupted(Exception):  # noqa: N818  (an event, not an error)
    """The caller wanted to stop in the middle of an evaluation."""


@torch.no_grad()
def evaluate(
    model: Model,
    loss: MarginLoss,
    images: Tensor,
    labels: Tensor,
    precision: Precision,
    interrupted: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Mean loss and accuracy, the model in evaluation mode.

    As in training, an image is reconstructed from the capsule of its label, so that the losses of
    both can be compared.

    Args:
        model: The model; its mode is restored afterwards.
        loss: The training's loss.
        images: uint8 `[N, C, H, W]`, N >= 1, on the model's device.
        labels: int64 `[N]`, there too.
        precision: The training's precision.
        interrupted: Asked before each batch.

    Raises:
        EvaluationInterrupted: `interrupted` said so.
    """
    means = RunningMean(images.device)
    was_training = model.training
    model.eval()
    try:
        for some_images, some_labels in zip(
            torch.split(images, BATCH_SIZE), torch.split(labels, BATCH_SIZE), strict=True
        ):
            if interrupted():
                raise EvaluationInterrupted
            pixels = as_pixels(some_images)
            with mixed_precision(images.device, precision):
                output = model.compute(pixels, some_labels)
            terms = loss(output, pixels, some_labels)
            means.add(measure(terms, output.lengths, some_labels), len(pixels))
    finally:
        model.train(was_training)
    return means.result()


def as_pixels(images: Tensor) -> Tensor:
    """Bytes as fp32 in [0, 1]."""
    return images.float() / 255
