"""`torch.compile` follows a net from images to drawings without a break, kernels included."""

import pytest
import torch

from capsmodel import CapsNet
from capsmodel.config import CapsNetConfig
from capsmodel.kernels import force_kernels


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["auto", "torch"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_whole_net_is_one_graph(kernels: str, backend: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(3)
    net = CapsNet(CapsNetConfig(conv_channels=32, primary_types=4))
    images, target = torch.rand(16, 1, 28, 28), torch.arange(16) % 10
    with force_kernels(kernels):  # type: ignore[arg-type]
        compiled = torch.compile(net.compute, backend=backend, fullgraph=True)
        for gradients in (False, True):
            with torch.set_grad_enabled(gradients):
                found, expected = compiled(images, target), net.compute(images, target)
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        weights = list(net.parameters())
        gradients_found = torch.autograd.grad(found[0].sum() + found[2].sum(), weights)
        wanted = torch.autograd.grad(expected[0].sum() + expected[2].sum(), weights)
    for ours, theirs in zip(gradients_found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
