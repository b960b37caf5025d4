"""Squash, length and votes against float64 references written out by hand."""

import pytest
import torch
from torch.autograd import gradcheck

from capsmodel.functional import compute_votes, exponential_squash, lengths, squash

HALF_PRECISION = [torch.float16, torch.bfloat16]


def test_squash_equals_equation_1() -> None:
    s = torch.randn(4, 5, 8)
    wide = s.double()
    norm = wide.pow(2).sum(-1, keepdim=True).sqrt()
    expected = norm**2 / (1 + norm**2) * wide / norm
    torch.testing.assert_close(squash(s).double(), expected, rtol=1e-6, atol=1e-7)


def test_squash_of_a_known_vector() -> None:
    # |s| = 5, so |v| = 25/26 in the direction (3, 4) / 5.
    expected = torch.tensor([3.0, 4.0]) / 5 * 25 / 26
    torch.testing.assert_close(squash(torch.tensor([3.0, 4.0])), expected)


def test_squash_works_along_the_axis_it_is_given() -> None:
    s = 100 * torch.randn(3, 8, 5)
    v = squash(s, dim=1)
    assert (v.norm(dim=1) < 1).all()
    torch.testing.assert_close(v, squash(s.transpose(1, 2)).transpose(1, 2))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF_PRECISION])
@pytest.mark.parametrize("function", [squash, lengths])
def test_zero_vectors_give_zero_and_a_finite_gradient(function, dtype) -> None:
    s = torch.zeros(2, 8, dtype=dtype, requires_grad=True)
    result = function(s)
    result.sum().backward()
    assert result.dtype == dtype
    assert (result == 0).all()
    assert s.grad.isfinite().all()


@pytest.mark.parametrize("dtype", HALF_PRECISION)
def test_squash_of_large_norms_does_not_overflow(dtype) -> None:
    s = torch.full((2, 16), torch.finfo(dtype).max, dtype=dtype, requires_grad=True)
    v = squash(s)
    v.sum().backward()
    assert v.float().norm(dim=-1).tolist() == pytest.approx([1, 1], rel=1e-2)
    assert s.grad.isfinite().all()


@pytest.mark.parametrize("function", [squash, exponential_squash])
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_is_not_hidden(function, bad: float) -> None:
    s = torch.ones(2, 8)
    s[0, 3] = bad
    assert function(s)[0].isnan().any()
    assert function(s)[1].isfinite().all()


@pytest.mark.parametrize("dtype", HALF_PRECISION)
def test_squash_of_tiny_norms_is_finite(dtype) -> None:
    s = torch.full((2, 16), torch.finfo(dtype).tiny, dtype=dtype, requires_grad=True)
    squash(s).sum().backward()
    assert s.grad.isfinite().all()


@pytest.mark.parametrize("function", [squash, lengths])
def test_gradients_agree_with_finite_differences(function) -> None:
    s = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(function, (s,))


def test_votes_multiply_each_capsule_by_the_matrix_of_its_pair() -> None:
    capsules = torch.randn(2, 3, 4, dtype=torch.float64)
    weight = torch.randn(3, 5, 4, 6, dtype=torch.float64)
    votes = compute_votes(capsules, weight)
    assert votes.shape == (2, 5, 3, 6)
    for sample in range(2):
        for i in range(3):
            for j in range(5):
                expected = weight[i, j].T @ capsules[sample, i]
                torch.testing.assert_close(votes[sample, j, i], expected)
