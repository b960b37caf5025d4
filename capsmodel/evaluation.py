"""Evaluation of a model on a part of a data set."""

from collections.abc import Callable, Iterable, Iterator

import torch

from capsmodel.batch import Batch
from capsmodel.datasets.composition import Composition, Part
from capsmodel.losses import Loss
from capsmodel.metrics import Evaluation, RunningMean, measure
from capsmodel.model import Model
from capsmodel.precision import Precision, exact_fp32, mixed_precision

BATCH_SIZE = 250
"""No gradients are kept, so it need not be the training's; the means do not depend on it."""


class EvaluationInterrupted(Exception):  # noqa: N818  (an event, not an error)
    """The caller wanted to stop in the middle of an evaluation."""


def held_out_batches(composition: Composition, part: Part) -> Iterator[Batch]:
    """All held-out images of a part, bytes, in batches of `BATCH_SIZE`, the same every time."""
    count = composition.fixed_count(part)
    for start in range(0, count, BATCH_SIZE):
        stop = min(start + BATCH_SIZE, count)
        yield composition.fixed_batch(part, torch.arange(start, stop, device=part.images.device))


@torch.no_grad()
def evaluate(
    model: Model,
    loss: Loss,
    batches: Iterable[Batch],
    precision: Precision,
    interrupted: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Mean loss and accuracy, the model in evaluation mode.

    As in training, an image is reconstructed from the capsule of its label, so that the losses of
    both can be compared.

    Args:
        model: The model; its mode is restored afterwards.
        loss: The training's loss.
        batches: Bytes and labels on the model's device, at least one batch.
        precision: The training's precision.
        interrupted: Asked before each batch.

    Raises:
        EvaluationInterrupted: `interrupted` said so.
    """
    device = next(model.parameters()).device
    means = RunningMean(device, model.targets)
    was_training = model.training
    model.eval()
    try:
        for stored in batches:
            if interrupted():
                raise EvaluationInterrupted
            batch = stored.as_pixels()
            with exact_fp32(device, precision), mixed_precision(device, precision):
                output = model.compute(batch.images, batch.labels)
            terms = loss(output, batch)
            means.add(measure(terms, output.lengths, batch.labels), len(batch.labels))
    finally:
        model.train(was_training)
    return means.result()
