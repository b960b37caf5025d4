"""Evaluation of a model on a part of a data set."""

from collections.abc import Callable, Iterable, Iterator

import torch

from capsmodel.batch import Batch
from capsmodel.datasets.composition import Composition, Part
from capsmodel.distributed import Ranks
from capsmodel.losses import Loss
from capsmodel.metrics import Evaluation, RunningMean, measure
from capsmodel.model import Model
from capsmodel.precision import Precision, exact_fp32, mixed_precision

BATCH_SIZE = 250
"""No gradients are kept, so it need not be the training's; the means do not depend on it."""


class EvaluationInterrupted(Exception):  # noqa: N818  (an event, not an error)
    """The caller wanted to stop in the middle of an evaluation."""


def held_out_batches(
    composition: Composition, part: Part, ranks: Ranks | None = None
) -> Iterator[Batch | None]:
    """The held-out images of a part, bytes, in batches of `BATCH_SIZE`, the same every time.

    Several ranks divide them. Each gets as many batches as the others, with None for a last one of
    which no image is its own.
    """
    ranks = ranks or Ranks()
    count, together = composition.fixed_count(part), BATCH_SIZE * ranks.size
    for start in range(0, count, together):
        stop = min(start + together, count)
        numbers = torch.arange(start, stop, device=part.images.device)[ranks.own]
        yield composition.fixed_batch(part, numbers) if len(numbers) else None


@torch.no_grad()
def evaluate(
    model: Model,
    loss: Loss,
    batches: Iterable[Batch | None],
    precision: Precision,
    interrupted: Callable[[], bool] = lambda: False,
    ranks: Ranks | None = None,
) -> Evaluation:
    """Mean loss and accuracy, the model in evaluation mode.

    As in training, an image is reconstructed from the capsule of its label, so that the losses of
    both can be compared.

    Args:
        model: The model; its mode is restored afterwards.
        loss: The training's loss.
        batches: Bytes and labels on the model's device, at least one batch; None is skipped.
        precision: The training's precision.
        interrupted: Asked before each batch, a skipped one too.
        ranks: Over all of which the means are taken, each with batches of its own; by default
            this process alone.

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
            if stored is None:
                continue
            batch = stored.as_pixels()
            with exact_fp32(device, precision), mixed_precision(device, precision):
                output = model.compute(batch.images, batch.labels)
            terms = loss(output, batch)
            means.add(measure(terms, output.lengths, batch.labels), len(batch.labels))
    finally:
        model.train(was_training)
    means.sum_over(ranks or Ranks())
    return means.result()
