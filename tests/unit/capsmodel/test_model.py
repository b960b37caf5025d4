"""The network: its size, its order of capsules, its decoder, and the whole forward pass."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from capsmodel import CapsNet, CapsNetConfig, Cnn, CnnConfig
from capsmodel.config import DecoderConfig
from capsmodel.layers import PrimaryCaps
from capsmodel.model import Model, build_model
from capsmodel.presets import MULTIMNIST_CNN, OFFICIAL_NET


@pytest.fixture
def net(tiny_net) -> CapsNet:
    torch.manual_seed(0)
    return CapsNet(tiny_net)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(5, 1, 28, 28)


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def official(config: CapsNetConfig) -> CapsNetConfig:
    """The same net with what the authors' code does differently."""
    changes = {
        name: getattr(OFFICIAL_NET, name)
        for name in ("primary_coupling", "class_bias", "initialization")
    }
    return config.model_copy(update=changes)


@pytest.mark.parametrize(
    ("side", "paper", "of_the_code"),
    [
        (28, 8_215_568, 8_215_728),
        (36, 11_361_808, 11_361_968),
        (40, 13_475_648, 13_475_808),
    ],
)
def test_parameters_of_both_presets(side: int, paper: int, of_the_code: int) -> None:
    config = CapsNetConfig(image_shape=(1, side, side))
    assert parameters(CapsNet(config)) == paper
    assert parameters(CapsNet(official(config))) == of_the_code


def test_the_decoder_has_as_many_parameters_as_the_paper_says() -> None:
    assert parameters(CapsNet().decoder) == 1_411_344


def test_parameters_of_the_baselines() -> None:
    assert parameters(Cnn()) == 35_445_522
    assert parameters(Cnn(MULTIMNIST_CNN)) == 24_563_978


@pytest.mark.parametrize(
    ("settings", "grid"),
    [
        ({"image_shape": (1, 28, 28)}, (6, 6)),
        ({"image_shape": (1, 36, 36)}, (10, 10)),
        ({"image_shape": (1, 40, 40)}, (12, 12)),
        ({"image_shape": (2, 32, 32)}, (8, 8)),
        ({"image_shape": (3, 24, 24)}, (4, 4)),
        ({"image_shape": (1, 28, 20)}, (6, 2)),
        ({"image_shape": (1, 28, 28), "conv_padding": 4, "primary_padding": 4}, (14, 14)),
        ({"image_shape": (1, 12, 12), "conv_padding": 3}, (1, 1)),
        ({"image_shape": (1, 28, 28), "conv_stride": 2, "primary_kernel": 3}, (4, 4)),
    ],
    ids=str,
)
def test_nets_for_images_of_any_size(settings: dict[str, Any], grid: tuple[int, int]) -> None:
    small = {"conv_channels": 3, "primary_types": 2, "primary_dim": 3, "class_dim": 4}
    config = CapsNetConfig(**small, **settings, classes=7, decoder=DecoderConfig(hidden=(5,)))
    assert config.primary_grid == grid
    output = CapsNet(config)(torch.rand(2, *config.image_shape))
    assert output.poses.shape == (2, 7, 4)
    assert output.reconstruction.shape == (2, *config.image_shape)


def test_sizes_that_do_not_fit_are_refused_with_the_arithmetic() -> None:
    with pytest.raises(ValidationError) as refused:
        CapsNetConfig(image_shape=(1, 16, 16))
    message = str(refused.value)
    assert "floor((16 + 2 * conv_padding 0 - conv_kernel 9) / conv_stride 1) + 1 = 8" in message
    assert (
        "floor((8 + 2 * primary_padding 0 - primary_kernel 9) / primary_stride 2) + 1 = 0"
        in message
    )
    assert "17 pixels a side" in message
    assert CapsNetConfig(image_shape=(1, 17, 17)).primary_grid == (1, 1)


def test_a_net_with_two_targets_draws_both(tiny_net, images) -> None:
    net = CapsNet(tiny_net.model_copy(update={"targets": 2}))
    output = net(images)
    assert output.reconstruction.shape == (5, 2, 1, 28, 28)
    longest = output.lengths.topk(2, dim=1).indices
    for which in range(2):
        alone = net.reconstruct(output.poses, longest[:, which])
        torch.testing.assert_close(output.reconstruction[:, which], alone)


def test_a_cnn_gives_probabilities(images) -> None:
    small = {"channels": (4, 3), "kernels": (5, 3), "hidden": (6,)}
    one = Cnn(CnnConfig(**small)).eval()(images)
    assert one.poses is None
    assert one.reconstruction is None
    torch.testing.assert_close(one.lengths.sum(dim=1), torch.ones(5))
    torch.testing.assert_close(one.lengths, one.logits.softmax(dim=1))
    two = Cnn(CnnConfig(**small, targets=2, pool=2)).eval()(images)
    torch.testing.assert_close(two.lengths, two.logits.sigmoid())


def test_a_cnn_leaves_units_out_in_training_alone(images) -> None:
    net = Cnn(CnnConfig(channels=(4,), kernels=(5,), hidden=(50,), dropout=0.5))
    assert not torch.equal(net(images).logits, net(images).logits)
    net.eval()
    assert torch.equal(net(images).logits, net(images).logits)


def test_primary_capsules_hold_neighbouring_channels_of_one_position() -> None:
    layer = PrimaryCaps(
        CapsNetConfig(
            conv_channels=3, primary_types=2, primary_dim=4, primary_kernel=3, primary_stride=2
        )
    )
    features = torch.randn(2, 3, 9, 7)
    channels = layer.conv(features)
    _, _, rows, columns = channels.shape
    capsules = layer(features).unflatten(1, (2, rows, columns))
    for kind in range(2):
        for y in range(rows):
            for x in range(columns):
                s = channels[:, 4 * kind : 4 * kind + 4, y, x]
                squared = s.pow(2).sum(1, keepdim=True)
                expected = squared / (1 + squared) * s / squared.sqrt()
                torch.testing.assert_close(capsules[:, kind, y, x], expected)


def test_forward_equals_a_float64_reference(net, images) -> None:
    """Everything in numpy, from the definition of a convolution on."""
    target = torch.tensor([3, 1, 4, 1, 5])
    with torch.no_grad():
        output = net(images, target)
    weights = {name: value.double().numpy() for name, value in net.state_dict().items()}
    for sample, label in enumerate(target.tolist()):
        poses, reconstruction = reference_forward(weights, images[sample].double().numpy(), label)
        norms = np.linalg.norm(poses, axis=1)
        np.testing.assert_allclose(output.poses[sample], poses, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(output.lengths[sample], norms, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(output.reconstruction[sample, 0], reconstruction, rtol=1e-5)


def reference_forward(
    weights: dict[str, np.ndarray], image: np.ndarray, label: int
) -> tuple[np.ndarray, np.ndarray]:
    features = np.maximum(0, convolve(image, weights["conv.weight"], weights["conv.bias"], 2))
    kernel, bias = weights["primary_caps.conv.weight"], weights["primary_caps.conv.bias"]
    channels = convolve(features, kernel, bias, 3)  # [2 types x 4, rows, columns]
    by_type = channels.reshape(2, 4, *channels.shape[1:])
    capsules = reference_squash(by_type.transpose(0, 2, 3, 1).reshape(-1, 4))
    votes = np.einsum("ip,ijpd->jid", capsules, weights["class_caps.weight"])
    logits = np.zeros(votes.shape[:2])
    for _ in range(3):
        coupling = np.exp(logits) / np.exp(logits).sum(axis=0)
        poses = reference_squash(np.einsum("ji,jid->jd", coupling, votes))
        logits += np.einsum("jid,jd->ji", votes, poses)
    masked = np.zeros_like(poses)
    masked[label] = poses[label]
    hidden = np.maximum(
        0, weights["decoder.layers.0.weight"] @ masked.ravel() + weights["decoder.layers.0.bias"]
    )
    pixels = weights["decoder.layers.2.weight"] @ hidden + weights["decoder.layers.2.bias"]
    return poses, (1 / (1 + np.exp(-pixels))).reshape(28, 28)


def reference_squash(s: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(s, axis=-1, keepdims=True)
    return norm**2 / (1 + norm**2) * s / norm


def convolve(image: np.ndarray, kernels: np.ndarray, bias: np.ndarray, stride: int) -> np.ndarray:
    side = kernels.shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(image, (side, side), axis=(1, 2))
    windows = windows[:, ::stride, ::stride]
    return np.einsum("cyxkl,ockl->oyx", windows, kernels) + bias[:, None, None]


def test_shapes_and_ranges(net, images) -> None:
    output = net(images)
    assert output.lengths.shape == (5, 10)
    assert output.poses.shape == (5, 10, 6)
    assert output.reconstruction.shape == (5, 1, 28, 28)
    assert (output.lengths < 1).all()
    assert 0 <= output.reconstruction.min() <= output.reconstruction.max() <= 1


def test_splitting_or_permuting_a_batch_changes_nothing(net, images) -> None:
    together = net(images)
    order = torch.tensor([4, 2, 0, 1, 3])
    torch.testing.assert_close(net(images[order]).poses, together.poses[order])
    split = torch.cat([net(images[:2]).reconstruction, net(images[2:]).reconstruction])
    torch.testing.assert_close(split, together.reconstruction)


def test_without_a_target_the_longest_capsule_is_drawn(net, images) -> None:
    output = net(images)
    longest = output.lengths.argmax(dim=1)
    assert torch.equal(output.reconstruction, net(images, longest).reconstruction)
    other = (longest + 1) % 10
    assert not torch.equal(output.reconstruction, net(images, other).reconstruction)


def test_the_decoder_takes_all_capsules_and_sees_one(net, images) -> None:
    assert net.decoder.layers[0].in_features == 10 * 6
    poses = net(images).poses.detach()
    target = torch.full((5,), 7)
    drawn = net.reconstruct(poses, target)
    others = poses + torch.randn_like(poses)
    others[:, 7] = poses[:, 7]
    assert torch.equal(net.reconstruct(others, target), drawn)
    perturbed = poses.clone()
    perturbed[:, 7, 0] += 0.25
    assert not torch.equal(net.reconstruct(perturbed, target), drawn)


def test_without_a_decoder_there_is_no_reconstruction(tiny_net, images) -> None:
    net = build_model(tiny_net.model_copy(update={"decoder": None}))
    output = net(images)
    assert output.reconstruction is None
    assert net.reconstruct(output.poses, torch.zeros(5, dtype=torch.int64)) is None


def test_the_decoders_layers_follow_the_configuration(tiny_net) -> None:
    config = tiny_net.model_copy(update={"decoder": DecoderConfig(hidden=(3, 5, 7))})
    sizes = [layer.out_features for layer in CapsNet(config).decoder.layers[::2]]
    assert sizes == [3, 5, 7, 784]


def test_capsules_stay_fp32_under_autocast(net, images) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        output = net(images)
    tensors = (output.lengths, output.poses, output.reconstruction)
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    torch.testing.assert_close(output.poses, net(images).poses, rtol=0.1, atol=1e-3)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.full((2, 1, 28, 28), 255.0), r"from 255 to 255, expected \[0, 1\]"),
        (torch.full((2, 1, 28, 28), -0.5), "from -0.5"),
        (torch.full((2, 1, 28, 28), float("nan")), "nan"),
        (torch.zeros(2, 1, 28, 28, dtype=torch.uint8), "torch.uint8, expected floating point"),
        (torch.zeros(2, 28, 28), r"\[2, 28, 28\]"),
        (torch.zeros(2, 3, 28, 28), r"\[B, 1, 28, 28\]"),
        (torch.zeros(0, 1, 28, 28), "B >= 1"),
    ],
)
def test_unfit_images_are_refused(net, images, message) -> None:
    with pytest.raises(ValueError, match=message):
        net(images)


@pytest.mark.parametrize(
    "target", [torch.zeros(5), torch.zeros(4, dtype=torch.int64), torch.full((5,), 10)]
)
def test_unfit_targets_are_refused(net, images, target) -> None:
    with pytest.raises(ValueError, match="target"):
        net(images, target)


def test_build_model_makes_the_named_model(tiny_net) -> None:
    assert isinstance(build_model(tiny_net), CapsNet)
    assert isinstance(build_model(tiny_net), Model)
