"""Losses against values worked out by hand and a float64 reference."""

import math

import pytest
import torch

from capsmodel.batch import Batch
from capsmodel.config import CrossEntropyLossConfig, MarginLossConfig
from capsmodel.losses import build_loss, reconstruction_loss
from capsmodel.losses.margin import margin_loss
from capsmodel.model import ModelOutput


def test_margin_loss_of_a_batch_worked_out_by_hand() -> None:
    lengths = torch.tensor([[0.6, 0.3, 0.05], [0.95, 0.5, 0.1]])
    labels = torch.tensor([0, 2])
    first = (0.9 - 0.6) ** 2 + 0.5 * (0.3 - 0.1) ** 2 + 0  # 0.05 < m-
    second = 0.5 * (0.95 - 0.1) ** 2 + 0.5 * (0.5 - 0.1) ** 2 + (0.9 - 0.1) ** 2
    assert margin_loss(lengths, labels).item() == pytest.approx((first + second) / 2)


def test_margin_loss_equals_equation_4_in_float64() -> None:
    lengths, labels = torch.rand(20, 10), torch.randint(10, (20,))
    expected = 0.0
    for row, label in zip(lengths.double().tolist(), labels.tolist(), strict=True):
        for k, length in enumerate(row):
            present = float(k == label)
            expected += present * max(0, 0.8 - length) ** 2
            expected += 0.3 * (1 - present) * max(0, length - 0.2) ** 2
    actual = margin_loss(lengths, labels, m_plus=0.8, m_minus=0.2, lambda_=0.3)
    assert actual.item() == pytest.approx(expected / 20, rel=1e-6)


def test_reconstruction_loss_sums_over_pixels_and_averages_over_the_batch() -> None:
    reconstruction, images = torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    reconstruction[0] = 0.5
    assert reconstruction_loss(reconstruction, images).item() == pytest.approx(16 * 0.25 / 2)


def test_the_terms_add_up() -> None:
    images, labels = torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 2])
    output = ModelOutput(torch.rand(3, 5), torch.rand(3, 5, 2), torch.rand(3, 1, 4, 4))
    terms = build_loss(MarginLossConfig(reconstruction_weight=0.01))(output, Batch(images, labels))
    assert terms.classification == margin_loss(output.lengths, labels)
    assert terms.reconstruction == reconstruction_loss(output.reconstruction, images)
    assert terms.total == terms.classification + 0.01 * terms.reconstruction


def test_without_a_reconstruction_the_total_is_the_margin() -> None:
    output = ModelOutput(torch.rand(3, 5), torch.rand(3, 5, 2), None)
    batch = Batch(torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 2]))
    terms = build_loss(MarginLossConfig())(output, batch)
    assert terms.total == terms.classification
    assert terms.reconstruction == 0


def test_half_the_mean_over_classes_as_in_the_authors_code() -> None:
    """(1/20) (margin + 0.01 SSE), capsnet's official release, for ten classes."""
    images, labels = torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 2])
    output = ModelOutput(torch.rand(3, 10), torch.rand(3, 10, 2), torch.rand(3, 1, 4, 4))
    terms = build_loss(MarginLossConfig(scale="half-mean"))(output, Batch(images, labels))
    margin = margin_loss(output.lengths, labels)
    squared_error = reconstruction_loss(output.reconstruction, images)
    torch.testing.assert_close(terms.total, (margin + 0.01 * squared_error) / 20)


def test_both_classes_present_are_targets_of_the_margin() -> None:
    lengths = torch.tensor([[0.6, 0.3, 0.05, 0.7]])
    loss = margin_loss(lengths, torch.tensor([[3, 0]]))
    expected = (0.9 - 0.6) ** 2 + (0.9 - 0.7) ** 2 + 0.5 * (0.3 - 0.1) ** 2
    assert loss.item() == pytest.approx(expected)


def test_cross_entropy_of_lengths_worked_out_by_hand() -> None:
    output = ModelOutput(torch.tensor([[0.9, 0.2, 0.1]]), None, None)
    loss = build_loss(CrossEntropyLossConfig(scale=10))
    one = loss.classification(output, torch.tensor([0])).item()
    assert one == pytest.approx(
        -math.log(math.exp(9) / (math.exp(9) + math.exp(2) + math.e)), rel=1e-4
    )
    two = loss.classification(output, torch.tensor([[0, 2]])).item()
    sigmoid = [1 / (1 + math.exp(-10 * (length - 0.5))) for length in (0.9, 0.2, 0.1)]
    expected = -math.log(sigmoid[0]) - math.log(1 - sigmoid[1]) - math.log(sigmoid[2])
    assert two == pytest.approx(expected, rel=1e-5)


def test_cross_entropy_takes_a_models_own_logits() -> None:
    logits = torch.randn(4, 3)
    output = ModelOutput(logits.softmax(dim=1), None, None, logits)
    labels = torch.tensor([0, 1, 2, 1])
    loss = build_loss(CrossEntropyLossConfig(scale=3)).classification(output, labels)
    expected = -output.lengths.log()[torch.arange(4), labels].mean()
    torch.testing.assert_close(loss, expected)


def test_the_errors_of_both_reconstructions_are_added() -> None:
    parts, drawn = torch.rand(2, 2, 1, 3, 3), torch.rand(2, 2, 1, 3, 3)
    batch = Batch(torch.rand(2, 1, 3, 3), torch.tensor([[0, 1], [2, 0]]), parts)
    terms = build_loss(MarginLossConfig())(ModelOutput(torch.rand(2, 3), None, drawn), batch)
    each = [reconstruction_loss(drawn[:, i], parts[:, i]) for i in range(2)]
    torch.testing.assert_close(terms.reconstruction, each[0] + each[1])
