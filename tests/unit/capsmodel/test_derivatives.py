"""Derivatives beyond the first way back: forward mode, `torch.func`, gradients of gradients.

The library's own operators have none of these; PyTorch's operations take their place unasked where
that can be known before, and an error says what to do where it cannot.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, vmap

from capsmodel import CapsNet
from capsmodel.config import CapsNetConfig
from capsmodel.kernels import force_kernels
from support.compiler import needs_compiler


@pytest.fixture
def net() -> CapsNet:
    torch.manual_seed(5)
    return CapsNet(CapsNetConfig(conv_channels=16, primary_types=2, decoder=None))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(16, 1, 28, 28)


def score(net: nn.Module, images: Tensor) -> Tensor:
    return net.compute(images).lengths.square().sum()  # type: ignore[operator]


def score_of_weights(net: nn.Module, images: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
    class Scored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, images: Tensor) -> Tensor:
            return score(self.net, images)

    scored = Scored()
    return lambda weights: functional_call(scored, weights, (images,))


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    return {f"net.{name}": weight.detach() for name, weight in net.named_parameters()}


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_forward_mode(net: CapsNet, images: Tensor, kernels: str) -> None:
    direction = torch.randn_like(images)
    with force_kernels(kernels):  # type: ignore[arg-type]
        _, found = jvp(lambda pixels: score(net, pixels), (images,), (direction,))
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(images, direction)
            outside = torch.autograd.forward_ad.unpack_dual(score(net, dual)).tangent
        pixels = images.clone().requires_grad_()
        (slope,) = torch.autograd.grad(score(net, pixels), pixels)
    expected = (slope * direction).sum()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(outside, expected, rtol=1e-3, atol=1e-6)
    weights = weights_of(net)
    of_weights = score_of_weights(net, images)
    directions = {name: torch.randn_like(weight) for name, weight in weights.items()}
    with force_kernels(kernels):  # type: ignore[arg-type]
        _, found = jvp(of_weights, (weights,), (directions,))
        slopes = torch.autograd.grad(score(net, images), list(net.parameters()))
    expected = sum((s * d).sum() for s, d in zip(slopes, directions.values(), strict=True))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_transforms_of_functions(net: CapsNet, images: Tensor, kernels: str) -> None:
    weights = weights_of(net)
    with force_kernels(kernels):  # type: ignore[arg-type]
        found = grad(score_of_weights(net, images))(weights)
        expected = torch.autograd.grad(score(net, images), list(net.parameters()))
        for ours, theirs in zip(found.values(), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
        each = vmap(grad(lambda image: score(net, image[None])))(images[:3])
        whole = jacrev(lambda pixels: score(net, pixels))(images[:3])
    torch.testing.assert_close(each, whole, rtol=1e-3, atol=1e-5)


def penalty(net: CapsNet, images: Tensor) -> Tensor:
    weights = list(net.parameters())
    gradients = torch.autograd.grad(score(net, images), weights, create_graph=True)
    return torch.stack([gradient.square().sum() for gradient in gradients]).sum()


def test_gradients_of_gradients_by_torchs_operations(net: CapsNet, images: Tensor) -> None:
    with force_kernels("torch"):
        penalty(net, images).backward()
    slope = net.class_caps.weight.grad
    assert slope is not None
    with torch.no_grad():
        direction = torch.randn_like(slope)
        direction *= 1e-2 / direction.norm()
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            net.class_caps.weight += sign * direction
        with force_kernels("torch"):
            values.append(penalty(net, images).item())
        with torch.no_grad():
            net.class_caps.weight -= sign * direction
    expected = (values[0] - values[1]) / 2
    assert (slope * direction).sum().item() == pytest.approx(expected, rel=0.02)


@needs_compiler
@pytest.mark.parametrize("part", ["conv", "primary_caps", "class_caps"])
def test_gradients_of_gradients_of_kernels_say_what_to_do(
    net: CapsNet, images: Tensor, part: str
) -> None:
    net.requires_grad_(False)
    getattr(net, part).requires_grad_()
    weights = list(getattr(net, part).parameters())
    gradients = torch.autograd.grad(score(net, images), weights, create_graph=True)
    with pytest.raises(NotImplementedError, match="CAPS_KERNELS=torch"):
        sum(gradient.square().sum() for gradient in gradients).backward()  # type: ignore[union-attr]


@needs_compiler
def test_a_way_back_follows_its_way_forward(net: CapsNet, images: Tensor) -> None:
    expected = torch.autograd.grad(score(net, images), list(net.parameters()))
    value = score(net, images)
    with force_kernels("torch"):
        found = torch.autograd.grad(value, list(net.parameters()))
    assert all(map(torch.equal, found, expected))
