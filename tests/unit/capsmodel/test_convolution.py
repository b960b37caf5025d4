"""The routes of a convolution against `conv2d` in float64, and which of them is taken."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from capsmodel.convolution import Convolution, frequency, unfolded
from capsmodel.convolution.transforms import planes_of
from capsmodel.kernels import force_kernels
from support.compiler import needs_compiler
from support.seed import SEED

pytestmark = pytest.mark.usefixtures("fresh_seed")

FP32_ERROR = 3e-6
BF16_RATIO = 1.7
"""The frequency route rounds spectra where the direct one rounds values: its errors may be so many
times as large (20 draws gave 1.3 to 1.55)."""


class Results(NamedTuple):
    """Of one convolution: the maps, and the gradients for random ones of the maps."""

    maps: Tensor
    of_features: Tensor
    of_weight: Tensor
    of_bias: Tensor


def primary(channels: int = 32, filters: int = 16, bias: bool = True) -> Convolution:
    return Convolution(channels, filters, 9, 2, bias=bias)


def run(layer: nn.Conv2d, features: Tensor, gradient: Tensor, bf16: bool = False) -> Results:
    features = features.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        maps = layer(features)
    assert layer.bias is not None
    wanted = (features, layer.weight, layer.bias)
    return Results(maps, *torch.autograd.grad(maps, wanted, gradient.to(maps.dtype)))


def in_float64(layer: nn.Conv2d, features: Tensor, gradient: Tensor) -> Results:
    exact = nn.Conv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding
    ).double()  # type: ignore[arg-type]
    exact.load_state_dict(layer.state_dict())
    return run(exact, features.double(), gradient.double())


def errors(actual: Results, expected: Results) -> list[float]:
    """Relative, of the maps and of each gradient."""
    return [
        ((ours.double() - exact).norm() / exact.norm()).item()
        for ours, exact in zip(actual, expected, strict=True)
    ]


@needs_compiler
@pytest.mark.parametrize(
    ("size", "batch", "channels", "filters"),
    [
        (20, 16, 16, 16),
        (20, 257, 16, 32),
        (20, 33, 144, 48),
        (28, 17, 48, 16),
        (28, 16, 160, 32),
        (32, 19, 16, 64),
    ],
)
def test_the_frequency_route_is_exact_but_for_rounding(
    size: int, batch: int, channels: int, filters: int
) -> None:
    layer = primary(channels, filters)
    features = torch.rand(batch, channels, size, size) - 0.3
    assert frequency.applies(layer, features)
    extent = size // 2 - 4
    gradient = torch.randn(batch, filters, extent, extent)
    expected = in_float64(layer, features, gradient)
    actual = run(layer, features, gradient)
    assert max(errors(actual, expected)) < FP32_ERROR, f"seed {SEED}"
    with force_kernels("torch"):
        direct = errors(run(layer, features, gradient, bf16=True), expected)
    fast = errors(run(layer, features, gradient, bf16=True), expected)
    for name, ours, theirs in zip(Results._fields, fast, direct, strict=True):
        assert ours < BF16_RATIO * theirs, f"{name}: {ours:.1e} and {theirs:.1e} (seed {SEED})"


@needs_compiler
def test_features_may_lie_in_any_order() -> None:
    layer, features = primary(), torch.rand(16, 32, 20, 20)
    expected = layer(features)
    last = features.contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer(last), expected)
    wider = torch.rand(16, 32, 20, 24)
    wider[..., :20] = features
    assert torch.equal(layer(wider[..., :20]), expected)
    with torch.no_grad():
        layer.weight.set_(layer.weight.contiguous(memory_format=torch.channels_last))
    assert torch.equal(layer(features), expected)


@needs_compiler
def test_blocks_change_no_more_than_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, features = primary(32, 48), torch.rand(37, 32, 20, 20)
    gradient = torch.randn(37, 48, 6, 6)
    expected = run(layer, features, gradient)
    row_bytes = planes_of(10) * 4 * 32 * 4
    for scratch in (1, 5 * row_bytes):  # a row at a time; and blocks of which the last is smaller
        monkeypatch.setattr(frequency, "SCRATCH_BYTES", scratch)
        for found, wanted in zip(run(layer, features, gradient), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(layer(features), expected.maps, rtol=1e-4, atol=1e-5)


@needs_compiler
def test_nothing_is_kept_where_no_gradient_is_wanted() -> None:
    features, weight = torch.rand(16, 20, 20, 16), torch.randn(16, 16, 9, 9)
    _, *planes = frequency.convolve_planes(features, weight, None, False)
    assert all(kept.numel() == 0 for kept in planes)


@needs_compiler
def test_two_ways_forward_before_one_back() -> None:
    layer = primary()
    first, second = torch.rand(2, 16, 32, 20, 20).unbind()
    gradient = torch.randn(16, 16, 6, 6)
    expected = run(layer, first, gradient)
    features = first.clone().requires_grad_()
    maps = layer(features)
    layer(second)
    of_features, of_weight = torch.autograd.grad(maps, (features, layer.weight), gradient)
    assert torch.equal(of_features, expected.of_features)
    assert torch.equal(of_weight, expected.of_weight)


@needs_compiler
@pytest.mark.parametrize("frozen", ["features", "weight"])
def test_a_gradient_of_one_alone(frozen: str) -> None:
    layer, features = primary(), torch.rand(16, 32, 20, 20)
    gradient = torch.randn(16, 16, 6, 6)
    expected = run(layer, features, gradient)
    if frozen == "features":
        (found,) = torch.autograd.grad(layer(features), layer.weight, gradient)
        assert torch.equal(found, expected.of_weight)
    else:
        layer.requires_grad_(False)
        features.requires_grad_()
        (found,) = torch.autograd.grad(layer(features), features, gradient)
        assert torch.equal(found, expected.of_features)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operators_keep_torchs_rules(dtype: torch.dtype) -> None:
    features = torch.rand(2, 20, 20, 16).to(dtype).requires_grad_()
    weight = torch.randn(16, 16, 9, 9, requires_grad=True)
    bias = torch.randn(16, requires_grad=True)
    torch.library.opcheck(frequency.convolve_planes, (features, weight, bias, True))
    plain = (features.detach(), weight.detach(), None, False)
    torch.library.opcheck(frequency.convolve_planes, plain)
    with torch.no_grad():
        maps, feature_planes, weight_planes = frequency.convolve_planes(
            features, weight, bias, True
        )
    arguments = (torch.randn_like(maps), feature_planes, weight_planes, [True, True, True])
    torch.library.opcheck(frequency.convolve_planes_backward, arguments)


@needs_compiler
def test_threads_do_not_change_the_transforms() -> None:
    features, weight = torch.rand(16, 20, 20, 48), torch.randn(32, 48, 9, 9)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(frequency.convolve_planes(features, weight, None, True)[1:])
    finally:
        torch.set_num_threads(before)
    for planes in found[1:]:
        assert all(map(torch.equal, planes, found[0]))


@needs_compiler
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("bf16", [False, True])
def test_what_is_not_finite_is_noticed(value: float, bf16: bool) -> None:
    layer, features = primary(), torch.rand(16, 32, 20, 20)
    features[3, 5, 7, 9] = value
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        maps = layer(features)
    assert not maps[3].isfinite().all()
    assert maps[4].isfinite().all()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (primary(channels=24), (16, 24, 20, 20)),
        (primary(filters=24), (16, 32, 20, 20)),
        (primary(), (15, 32, 20, 20)),
        (primary(), (16, 32, 21, 21)),
        (primary(), (16, 32, 20, 28)),
        (primary(), (16, 32, 24, 24)),
        (Convolution(32, 16, 9, 1), (16, 32, 20, 20)),
        (Convolution(32, 16, 7, 2), (16, 32, 20, 20)),
        (Convolution(32, 16, 9, 2, padding=1), (16, 32, 20, 20)),
        (Convolution(32, 16, 9, 2, groups=2), (16, 32, 20, 20)),
        (Convolution(32, 16, 9, 2, dilation=2), (16, 32, 20, 20)),
    ],
)
def test_other_shapes_take_the_direct_route(
    layer: Convolution, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    features = torch.rand(shape)
    monkeypatch.setattr(frequency, "convolve", None)
    expected = functional.conv2d(
        features,
        layer.weight,
        layer.bias,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
    )
    torch.testing.assert_close(layer(features), expected)


@pytest.mark.parametrize(
    "images",
    [
        torch.rand(16, 16, 20, 20),  # channels that the layer does not have
        torch.rand(16, 64, 20, 20),
        torch.rand(16, 32, 20, 20).bfloat16(),
        torch.rand(16, 32, 20, 20).double(),
    ],
    ids=lambda images: f"{list(images.shape)} {images.dtype}",
)
@pytest.mark.parametrize("gradients", [False, True])
def test_what_does_not_fit_gets_torchs_own_word(images: Tensor, gradients: bool) -> None:
    layer = primary()
    with torch.set_grad_enabled(gradients), pytest.raises(RuntimeError) as theirs:
        nn.Conv2d(32, 16, 9, 2)(images)
    with torch.set_grad_enabled(gradients), pytest.raises(RuntimeError) as ours:
        layer(images)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("gradients", [False, True])
def test_weights_elsewhere_or_a_bias_of_another_length_are_not_read(gradients: bool) -> None:
    features = torch.rand(16, 32, 20, 20)
    with torch.set_grad_enabled(gradients):
        elsewhere = primary().to("meta")
        assert elsewhere(features.to("meta")).shape == (16, 16, 6, 6)
        assert elsewhere(features).shape == (16, 16, 6, 6)  # PyTorch's own computes nothing
        shorter = primary()
        shorter.bias = nn.Parameter(torch.randn(1))
        with pytest.raises(RuntimeError, match="bias"):
            shorter(features)


@pytest.mark.parametrize("shape", [(32, 20, 20), (0, 32, 20, 20)])
def test_one_image_alone_and_none(shape: tuple[int, ...]) -> None:
    layer, features = primary(), torch.rand(shape)
    expected = functional.conv2d(features, layer.weight, layer.bias, 2)
    torch.testing.assert_close(layer(features), expected)
    assert Convolution(1, 12, 5)(torch.rand(1, 17, 20)).shape == (12, 13, 16)


@needs_compiler
def test_a_default_device_is_not_where_spectra_lie() -> None:
    layer, features = primary(), torch.rand(16, 32, 20, 20)
    first = Convolution(1, 32, 9)
    images = torch.rand(16, 1, 28, 28)
    with torch.no_grad():
        expected = layer(features)
        layer.spectra.drop()
    with torch.device("meta"), torch.no_grad():
        assert torch.equal(layer(features), expected)
    with torch.device("meta"):
        first(images).sum().backward()
    assert first.weight.grad is not None
    assert first.weight.grad.is_cpu


@needs_compiler
def test_operators_refuse_what_kernels_cannot_read() -> None:
    features, weight, bias = torch.rand(2, 20, 20, 16), torch.rand(16, 16, 9, 9), torch.rand(16)
    for changed in (
        (features[..., :8], weight, bias),
        (features, weight[:, :8], bias),
        (features, weight, bias[:1]),
        (features.double(), weight, bias),
        (features, weight.double(), bias),
        (features[:, :18, :18], weight, bias),
        (features[:0], weight, bias),
        (features[0], weight, bias),
    ):
        with pytest.raises(ValueError, match="expected features"):
            frequency.convolve_planes(*changed, False)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "padding"),
    [(1, 9, 1, 0), (3, 9, 1, 0), (1, 4, 2, 1), (2, 5, 3, 2)],
)
def test_unfolded_patches(
    channels: int, kernel: int, stride: int, padding: int, bf16: bool
) -> None:
    layer = Convolution(channels, 12, kernel, stride, padding)
    images = torch.rand(5, channels, 17, 20)
    dtype = torch.bfloat16 if bf16 else torch.float32
    assert unfolded.applies(layer, images)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        maps = layer(images)
    assert maps.dtype == dtype
    gradient = torch.randn(maps.shape)
    found = torch.autograd.grad(maps, (layer.weight, layer.bias), gradient.to(dtype))
    expected = in_float64(layer, images, gradient)
    limit = 1e-2 if bf16 else FP32_ERROR
    for ours, exact in zip((maps, *found), (expected[0], *expected[2:]), strict=True):
        assert (ours.double() - exact).norm() < limit * exact.norm(), f"seed {SEED}"


@pytest.mark.parametrize("block_bytes", [1, 64 * 12 * 4, 4 << 20])
@pytest.mark.parametrize("relu", [False, True])
def test_blocks_of_patches(relu: bool, block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfolded, "BLOCK_BYTES", block_bytes)
    layer, images = Convolution(1, 12, 5, relu=relu), torch.rand(3, 1, 13, 12)
    gradient = torch.randn(3, 12, 9, 8)
    maps = layer(images)
    found = torch.autograd.grad(maps, (layer.weight, layer.bias), gradient)
    exact = nn.Conv2d(1, 12, 5).double()
    exact.load_state_dict(layer.state_dict())
    expected = exact(images.double())
    if relu:
        expected = expected.relu()
    wanted = torch.autograd.grad(expected, (exact.weight, exact.bias), gradient.double())
    for ours, theirs in zip((maps, *found), (expected, *wanted), strict=True):
        assert (ours.double() - theirs).norm() < FP32_ERROR * theirs.norm(), f"seed {SEED}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_of_patches_keeps_torchs_rules(dtype: torch.dtype) -> None:
    patches = torch.rand(7, 5).to(dtype)
    weight = torch.randn(5, 4).to(dtype).requires_grad_()
    for relu in (False, True):
        torch.library.opcheck(unfolded.multiply_patches, (patches, weight, relu))
    gradient, maps = torch.randn(2, 7, 4).to(dtype)
    torch.library.opcheck(unfolded.multiply_patches_backward, (gradient, patches, maps))
    torch.library.opcheck(unfolded.multiply_patches_backward, (gradient, patches, None))


def test_images_with_a_gradient_are_not_unfolded() -> None:
    layer, images = Convolution(1, 8, 9), torch.rand(2, 1, 20, 20)
    expected = in_float64(layer, images, gradient := torch.randn(2, 8, 12, 12))
    images.requires_grad_()
    assert not unfolded.applies(layer, images)
    actual = run(layer, images, gradient)
    assert max(errors(actual, expected)) < FP32_ERROR


def test_a_double_precision_layer_stays_exact() -> None:
    layer = primary().double()
    features = torch.rand(16, 32, 20, 20, dtype=torch.float64)
    gradient = torch.randn(16, 16, 6, 6, dtype=torch.float64)
    assert (
        max(errors(run(layer, features, gradient), in_float64(layer, features, gradient))) < 1e-14
    )
