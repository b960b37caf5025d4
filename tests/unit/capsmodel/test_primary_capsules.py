"""Squash and order of the primary capsules, by the kernel and by PyTorch's operations."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from capsmodel import primary_capsules
from capsmodel.functional import squash
from capsmodel.kernels import force_kernels
from capsmodel.primary_capsules import maps_to_capsules
from support.compiler import HAS_COMPILER, needs_compiler


@pytest.fixture(autouse=True, params=["native", "torch"])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "native" and not HAS_COMPILER:
        pytest.skip("there is no C++ compiler")
    with force_kernels(request.param):
        yield request.param


def one_by_one(maps: Tensor, dim: int) -> Tensor:
    """Capsules `[B, I, P]`, cut from the maps place by place."""
    _, channels, rows, columns = maps.shape
    capsules = [
        maps[:, first : first + dim, y, x]
        for first in range(0, channels, dim)
        for y in range(rows)
        for x in range(columns)
    ]
    return squash(torch.stack(capsules, dim=1))


def results(maps: Tensor, dim: int, gradient: Tensor, function=maps_to_capsules) -> list[Tensor]:
    """The capsules, and the gradient of the maps."""
    maps = maps.detach().requires_grad_()
    capsules = function(maps, dim)
    return [capsules.detach(), *torch.autograd.grad(capsules, maps, gradient.to(capsules.dtype))]


@pytest.mark.parametrize(
    ("batch", "types", "dim", "rows", "columns"),
    [(1, 1, 1, 1, 1), (17, 3, 8, 2, 5), (257, 2, 4, 3, 3), (16, 4, 16, 6, 6), (5, 2, 3, 4, 1)],
)
def test_every_capsule_is_a_place_of_the_maps(
    batch: int, types: int, dim: int, rows: int, columns: int
) -> None:
    maps = 2 * torch.randn(batch, types * dim, rows, columns)
    gradient = torch.randn(batch, types * rows * columns, dim)
    actual = results(maps, dim, gradient)
    expected = results(maps.double(), dim, gradient, one_by_one)
    for found, wanted in zip(actual, expected, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


def test_maps_may_lie_in_any_order() -> None:
    maps, gradient = torch.randn(18, 8, 3, 3), torch.randn(18, 18, 4)
    expected = results(maps, 4, gradient)
    for order in ((0, 1, 2, 3), (0, 2, 3, 1), (2, 3, 1, 0), (3, 0, 2, 1)):
        back = [order.index(axis) for axis in range(4)]
        turned = maps.permute(order).contiguous().permute(back)
        for found, wanted in zip(results(turned, 4, gradient), expected, strict=True):
            assert torch.equal(found, wanted)


def test_nothing_has_no_length_and_no_gradient() -> None:
    capsules, of_maps = results(torch.zeros(3, 8, 2, 2), 4, torch.ones(3, 8, 4))
    assert not capsules.any()
    assert not of_maps.any()


@pytest.mark.parametrize("size", [1e-12, 1e-5, 1e3, 1e8])
def test_tiny_and_huge_maps(size: float) -> None:
    maps, gradient = size * torch.randn(4, 8, 2, 2), torch.randn(4, 8, 4)
    actual = results(maps, 4, gradient)
    expected = results(maps.double(), 4, gradient, one_by_one)
    for found, wanted in zip(actual, expected, strict=True):
        difference = (found.double() - wanted).norm()
        assert difference <= 1e-5 * wanted.norm() + 1e-38


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_is_noticed(value: float) -> None:
    maps = torch.randn(20, 8, 2, 2)
    maps[18, 5, 1, 0] = value
    capsules = maps_to_capsules(maps, 4)
    found = capsules.isnan().any(dim=2).nonzero().tolist()
    assert found == [[18, 1 * 4 + 1 * 2 + 0]]


def test_two_ways_forward_before_one_back() -> None:
    first, second = torch.randn(2, 16, 8, 3, 3).unbind()
    gradient = torch.randn(16, 18, 4)
    _, expected = results(first, 4, gradient)
    maps = first.clone().requires_grad_()
    capsules = maps_to_capsules(maps, 4)
    maps_to_capsules(second, 4)
    (found,) = torch.autograd.grad(capsules, maps, gradient)
    assert torch.equal(found, expected)


def test_threads_change_nothing() -> None:
    maps, gradient = torch.randn(33, 24, 5, 5), torch.randn(33, 75, 8)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(results(maps, 8, gradient))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


@needs_compiler
def test_the_operators_keep_torchs_rules() -> None:
    with force_kernels("native"):
        maps = torch.randn(2, 3, 8, 5, requires_grad=True)
        torch.library.opcheck(primary_capsules.arrange, (maps, 4))
        gradient = torch.randn(12, 4, 5)
        torch.library.opcheck(primary_capsules.arrange_backward, (maps.detach(), gradient))


def test_double_precision_stays_exact() -> None:
    maps, gradient = torch.randn(3, 8, 2, 2).double(), torch.randn(3, 8, 4).double()
    for found, wanted in zip(
        results(maps, 4, gradient), results(maps, 4, gradient, one_by_one), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-14, atol=1e-14)
