"""Losses against values worked out by hand and a float64 reference."""

import pytest
import torch

from capsmodel.config import MarginLossConfig
from capsmodel.losses import build_loss, margin_loss, reconstruction_loss
from capsmodel.model import CapsNetOutput


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
    output = CapsNetOutput(torch.rand(3, 5), torch.rand(3, 5, 2), torch.rand(3, 1, 4, 4))
    terms = build_loss(MarginLossConfig(reconstruction_weight=0.01))(output, images, labels)
    assert terms.margin == margin_loss(output.lengths, labels)
    assert terms.reconstruction == reconstruction_loss(output.reconstruction, images)
    assert terms.total == terms.margin + 0.01 * terms.reconstruction


def test_without_a_reconstruction_the_total_is_the_margin() -> None:
    output = CapsNetOutput(torch.rand(3, 5), torch.rand(3, 5, 2), None)
    terms = build_loss(MarginLossConfig())(output, torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 2]))
    assert terms.total == terms.margin
    assert terms.reconstruction == 0
