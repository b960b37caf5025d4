"""Accuracies worked out by hand: which classes present count as recognised."""

import pytest
import torch
from torch import Tensor

from capsmodel import metrics
from capsmodel.losses import LossTerms
from capsmodel.metrics import MEASURES, RunningMean, measure

TERMS = LossTerms(torch.tensor(3.0), torch.tensor(2.0), torch.tensor(100.0))
LENGTHS = torch.tensor(
    [
        [0.9, 0.1, 0.2, 0.8, 0.3],  # longest: 0 and 3
        [0.1, 0.7, 0.6, 0.2, 0.3],  # 1 and 2
        [0.2, 0.1, 0.3, 0.8, 0.9],  # 4 and 3
        [0.5, 0.1, 0.4, 0.3, 0.2],  # 0 and 2
    ]
)
LABELS = torch.tensor([[3, 0], [2, 4], [0, 1], [0, 2]])
"""Of the two classes present 2, 1, 0 and 2 are among the two longest."""


def accuracies(lengths: Tensor, labels: Tensor) -> tuple[float, float]:
    measures = dict(zip(MEASURES, measure(TERMS, lengths, labels).tolist(), strict=True))
    return measures["accuracy"], measures["per_digit_accuracy"]


def check_two_targets() -> None:
    assert accuracies(LENGTHS, LABELS) == (2 / 4, 5 / 8)
    for row, (exact, each) in enumerate([(1, 1), (0, 1 / 2), (0, 0), (1, 1)]):
        assert accuracies(LENGTHS[row : row + 1], LABELS[row : row + 1]) == (exact, each)


def test_an_image_is_right_where_both_classes_are() -> None:
    check_two_targets()


def test_one_class_of_two_taken_for_both_is_caught(monkeypatch) -> None:
    recognised = metrics._recognised

    def any_for_all(lengths: Tensor, labels: Tensor) -> Tensor:
        return recognised(lengths, labels).any(dim=1, keepdim=True).expand(labels.shape)

    monkeypatch.setattr(metrics, "_recognised", any_for_all)
    with pytest.raises(AssertionError):
        check_two_targets()


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_with_one_target_the_longest_capsule_counts(shape) -> None:
    labels = torch.tensor([0, 2, 4, 2]).view(shape)
    assert accuracies(LENGTHS, labels) == (2 / 4, 2 / 4)


def test_the_losses_come_first() -> None:
    assert measure(TERMS, LENGTHS, LABELS).tolist()[:3] == [3, 2, 100]


def running_mean(targets: int, labels: Tensor) -> RunningMean:
    """Over a batch of three images and one of a single image, with other losses."""
    mean = RunningMean(torch.device("cpu"), targets)
    mean.add(measure(TERMS, LENGTHS[:3], labels[:3]), 3)
    other = LossTerms(*(5 * term for term in TERMS))
    mean.add(measure(other, LENGTHS[3:], labels[3:]), 1)
    return mean


def test_each_image_of_unequal_batches_counts_the_same() -> None:
    result = running_mean(2, LABELS).result()
    assert (result.accuracy, result.per_digit_accuracy, result.images) == (2 / 4, 5 / 8, 4)
    assert (result.total_loss, result.classification_loss) == (6, 4)
    assert result.reconstruction_loss == 200


def test_a_mean_goes_on_from_its_state() -> None:
    mean = RunningMean(torch.device("cpu"), 2)
    mean.load_state_dict(running_mean(2, LABELS).state_dict())
    assert mean.result() == running_mean(2, LABELS).result()


def test_with_one_target_there_is_no_accuracy_per_digit() -> None:
    result = running_mean(1, LABELS[:, 0]).result()
    assert result.accuracy == 1 / 4
    assert result.per_digit_accuracy is None
