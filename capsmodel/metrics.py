"""What a training measures: at a step, over an epoch, over a part of the data."""

import time
from collections import deque
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from capsmodel.distributed import Ranks
from capsmodel.losses import LossTerms
from capsmodel.model import predicted_classes

MEASURES = (
    "total_loss",
    "classification_loss",
    "reconstruction_loss",
    "accuracy",
    "per_digit_accuracy",
)
"""Order of the measures in a tensor `[5]`, the form in which they stay on the device."""


@dataclass(frozen=True)
class Evaluation:
    """Means over a number of images."""

    total_loss: float
    classification_loss: float
    reconstruction_loss: float
    """Squared error summed over an image, without its weight; 0 where there is no decoder."""
    accuracy: float
    """Share of images whose longest capsule is the label's, in [0, 1]; where two classes are
    present, whose two longest capsules are exactly those (section 6)."""
    per_digit_accuracy: float | None
    """Share of the classes present that are among the two longest; None with one target."""
    images: int


@dataclass(frozen=True)
class StepMetrics:
    """What one step measured on its batch.

    The measures stay on the device until one of them is asked for: on a GPU that waits for the
    step to end, so ask now and then, not at every step.
    """

    step: int
    """Completed steps, this one included."""
    epoch: int
    """Completed epochs: 0 throughout the first."""
    learning_rate: float
    images_per_s: float
    """Training images a second over the last steps."""
    measures: Tensor
    """float64 `[5]` in the order of `MEASURES`."""
    gradient: Tensor
    """Length of the gradient (L2, over all weights together) before any clipping; a scalar."""
    targets: int = 1
    """Classes present in an image."""

    @property
    def total_loss(self) -> float:
        """Loss that the step minimised."""
        return self._floats[0]

    @property
    def classification_loss(self) -> float:
        """Loss of the classification."""
        return self._floats[1]

    @property
    def reconstruction_loss(self) -> float:
        """Squared error summed over an image, without its weight."""
        return self._floats[2]

    @property
    def accuracy(self) -> float:
        """As in `Evaluation`, of the batch."""
        return self._floats[3]

    @property
    def per_digit_accuracy(self) -> float | None:
        """As in `Evaluation`, of the batch."""
        return self._floats[4] if self.targets > 1 else None

    @property
    def gradient_norm(self) -> float:
        """Length of the gradient before any clipping."""
        return float(self.gradient)

    @cached_property
    def _floats(self) -> list[float]:
        values: list[float] = self.measures.tolist()
        return values


@dataclass(frozen=True)
class EpochMetrics:
    """What one epoch measured."""

    epoch: int
    """Completed epochs, this one included: the first is 1."""
    step: int
    """Completed steps."""
    train: Evaluation
    """Means over the epoch's batches, each at the weights of its step."""
    validation: Evaluation | None
    """At the weights of the epoch's end; None without a validation part."""
    learning_rate: float
    """Of the epoch's last step."""
    images_per_s: float
    """Training images a second, the evaluation left out."""
    is_best: bool
    """Whether these weights are the best so far."""


@dataclass(frozen=True)
class Best:
    """The best epoch so far: highest validation accuracy, of equal ones the lower loss.

    Without a validation part it is the last epoch, with the training's running means.
    """

    epoch: int
    step: int
    accuracy: float
    total_loss: float

    def beaten_by(self, evaluation: Evaluation) -> bool:
        """Whether `evaluation` is better."""
        if evaluation.accuracy != self.accuracy:
            return evaluation.accuracy > self.accuracy
        return evaluation.total_loss < self.total_loss


def measure(terms: LossTerms, lengths: Tensor, labels: Tensor) -> Tensor:
    """The measures of a batch, without gradients.

    Args:
        terms: Its losses.
        lengths: `[B, J]`.
        labels: int64 `[B]` or `[B, T]`.

    Returns:
        float64 `[5]` in the order of `MEASURES`.
    """
    recognised = _recognised(lengths.detach(), labels.view(len(labels), -1))
    exact = recognised.all(dim=1).double().mean()
    each = recognised.double().mean()
    return torch.stack([*(term.detach().double() for term in terms), exact, each])


def _recognised(lengths: Tensor, labels: Tensor) -> Tensor:
    """Whether each of the T classes present is among the T longest capsules, bool `[B, T]`."""
    predicted = predicted_classes(lengths, labels.shape[1]).view(labels.shape)
    return (labels.unsqueeze(2) == predicted.unsqueeze(1)).any(dim=2)


class RunningMean:
    """Means of measures over batches of different sizes, summed on the device in float64."""

    def __init__(self, device: torch.device, targets: int = 1) -> None:
        self._sums = torch.zeros(len(MEASURES), dtype=torch.float64, device=device)
        self._images = 0
        self._targets = targets

    def add(self, measures: Tensor, images: int) -> None:
        """Add the means over a batch."""
        self._sums += measures * images
        self._images += images

    def sum_over(self, ranks: Ranks) -> None:
        """Add up what all ranks have; afterwards each has the same."""
        if ranks.alone:
            return
        images = self._sums.new_tensor([self._images])
        total = ranks.sum(torch.cat([self._sums, images]))
        self._sums, self._images = total[:-1], int(total[-1])

    def result(self) -> Evaluation:
        """The means so far; waits for the device."""
        total, classification, reconstruction, exact, each = self._sums.tolist()
        digits = self._images * self._targets
        # Whole again before the division, so that equal accuracies are equal.
        per_digit = round(each * self._targets) / digits if self._targets > 1 else None
        return Evaluation(
            total_loss=total / self._images,
            classification_loss=classification / self._images,
            reconstruction_loss=reconstruction / self._images,
            accuracy=round(exact) / self._images,
            per_digit_accuracy=per_digit,
            images=self._images,
        )

    def state_dict(self) -> dict[str, Tensor | int]:
        """Sums so far."""
        return {"sums": self._sums.clone(), "images": self._images}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """Go on from `state`."""
        self._sums.copy_(torch.as_tensor(state["sums"]))
        self._images = int(state["images"])


class Throughput:
    """Images a second over the last steps."""

    def __init__(self, steps: int = 50) -> None:
        self._points = deque([(time.perf_counter(), 0)], maxlen=steps + 1)

    def add(self, images: int) -> float:
        """Count a step's images; returns the rate."""
        seen = self._points[-1][1] + images
        self._points.append((time.perf_counter(), seen))
        started, seen_before = self._points[0]
        return (seen - seen_before) / max(1e-9, self._points[-1][0] - started)
