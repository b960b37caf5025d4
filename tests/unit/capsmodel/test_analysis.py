"""The analysis functions against direct computation, on nets whose numbers can be followed."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from capsmodel.analysis import (
    COLOURS,
    OFFSETS,
    in_colours,
    perturb,
    predict,
    reconstruct,
    segment,
    trace_routing,
)
from capsmodel.capsnet import CapsNet
from capsmodel.cnn import Cnn
from capsmodel.config import (
    CapsNetConfig,
    CnnConfig,
    DynamicRoutingConfig,
    ModelConfig,
    SelfAttentionRoutingConfig,
    UniformRoutingConfig,
)
from capsmodel.functional import compute_votes
from capsmodel.model import Model, ModelOutput
from capsmodel.routing import Routing

IMAGES = 7
CLASSES, DIM = 10, 6


@pytest.fixture
def images() -> Tensor:
    return torch.rand(IMAGES, 1, 28, 28, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def make_net(tiny_net) -> Callable[..., CapsNet]:
    """A tiny net with poses long enough to matter."""

    def make(**changes: object) -> CapsNet:
        torch.manual_seed(0)
        net = CapsNet(CapsNetConfig(**{**tiny_net.model_dump(), **changes}))
        with torch.no_grad():
            net.class_caps.weight *= 20
        return net

    return make


@pytest.fixture
def net(make_net) -> CapsNet:
    return make_net()


@pytest.fixture
def cnn() -> Cnn:
    torch.manual_seed(0)
    return Cnn(CnnConfig(channels=(3,), kernels=(3,), pool=4, hidden=(5,)))


class Painter(Model):
    """Reads the lengths off the first row; class j paints row j and the last row in grey j / 10."""

    def __init__(self, targets: int = 1, channels: int = 1) -> None:
        super().__init__(ModelConfig(type="painter", image_shape=(channels, 8, 8), classes=8))
        self.targets = targets

    def compute(self, images: Tensor, target: Tensor | None = None) -> ModelOutput:
        return ModelOutput(images[:, 0, 0], torch.zeros(len(images), 8, 2), None)

    def reconstruct(self, poses: Tensor, target: Tensor) -> Tensor:
        drawn = torch.zeros(*target.shape, *self.image_shape)
        for place in np.ndindex(*target.shape):
            drawn[place][-1, [target[place], 7]] = target[place] / 10
        return drawn

    @property
    def draws(self) -> bool:
        return True


def lengths_shown(*lengths: float, channels: int = 1) -> Tensor:
    """An image of which `Painter` reads these lengths."""
    image = torch.zeros(1, channels, 8, 8)
    image[0, 0, 0, : len(lengths)] = torch.tensor(lengths)
    return image


def two_longest(lengths: Tensor) -> list[list[int]]:
    """By sorting, longest first."""
    return [sorted(range(len(row)), key=lambda j: -row[j])[:2] for row in lengths.tolist()]


# --- predict and reconstruct


def test_predict_is_what_the_model_says(net, images) -> None:
    output = net(images)
    prediction = predict(net, images)
    torch.testing.assert_close(prediction.lengths, output.lengths)
    torch.testing.assert_close(prediction.poses, output.poses)
    assert prediction.classes.tolist() == [row[0] for row in two_longest(output.lengths)]
    assert prediction.classes.dtype == torch.int64


def test_two_classes_are_predicted_longest_first(make_net, images) -> None:
    prediction = predict(make_net(targets=2), images)
    assert prediction.classes.tolist() == two_longest(prediction.lengths)


def test_a_cnn_is_predicted_without_its_dropout(cnn, images) -> None:
    expected = cnn.eval()(images)
    cnn.train()
    prediction = predict(cnn, images)
    torch.testing.assert_close(prediction.lengths, expected.lengths)
    assert prediction.poses is None


def test_every_module_keeps_its_mode_and_gradients_go_on(net, images) -> None:
    net.train()
    net.decoder.eval()  # as one who holds it fixed
    modes = [module.training for module in net.modules()]
    outcomes = [reconstruct(net, images), perturb(net, images[:1]), segment(net, images).picture]
    assert not any(tensor.requires_grad for tensor in [*outcomes, *predict(net, images)])
    assert [module.training for module in net.modules()] == modes
    assert net(images).lengths.requires_grad


def test_an_error_restores_the_mode_too(net, images) -> None:
    net.train()
    with pytest.raises(ValueError, match="dims"):
        perturb(net, images, dims=[DIM])
    assert all(module.training for module in net.modules())
    assert torch.is_grad_enabled()


def test_images_are_taken_in_the_weights_precision(net, images) -> None:
    lengths = predict(net, images).lengths
    wide = predict(net.double(), images).lengths
    assert wide.dtype == torch.float64
    torch.testing.assert_close(lengths.double(), wide, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("targets", [1, 2])
def test_reconstruct_is_what_the_model_draws(make_net, images, targets) -> None:
    net = make_net(targets=targets)
    torch.testing.assert_close(reconstruct(net, images), net(images).reconstruction)
    for shape in ((IMAGES,), (IMAGES, 2), (IMAGES, 3)):
        target = torch.randint(CLASSES, shape)
        drawn = reconstruct(net, images, target)
        assert drawn.shape == (*shape, 1, 28, 28)
        torch.testing.assert_close(drawn, net(images, target).reconstruction)


# --- perturb


def decoded(net: CapsNet, poses: np.ndarray, target: int) -> np.ndarray:
    """The decoder of section 4.1 in float64, for one sample's poses `[J, D]`."""
    weights = {name: value.double().numpy() for name, value in net.decoder.state_dict().items()}
    masked = np.zeros_like(poses)
    masked[target] = poses[target]
    hidden = np.maximum(0, weights["layers.0.weight"] @ masked.ravel() + weights["layers.0.bias"])
    pixels = weights["layers.2.weight"] @ hidden + weights["layers.2.bias"]
    return (1 / (1 + np.exp(-pixels))).reshape(1, 28, 28)


def test_the_offsets_are_the_papers() -> None:
    np.testing.assert_allclose(OFFSETS, np.linspace(-0.25, 0.25, 11), atol=1e-15)
    assert OFFSETS[5] == 0


def test_perturb_adds_each_offset_to_each_dimension(net, images) -> None:
    target = torch.tensor([3, 1, 4, 1, 5, 9, 2])
    drawn = perturb(net, images, target)
    assert drawn.shape == (IMAGES, DIM, 11, 1, 28, 28)
    poses = predict(net, images).poses.double().numpy()
    for sample in range(IMAGES):
        for dim in range(DIM):
            for step in range(11):
                moved = poses[sample].copy()
                moved[target[sample], dim] += -0.25 + 0.05 * step
                expected = decoded(net, moved, int(target[sample]))
                np.testing.assert_allclose(drawn[sample, dim, step], expected, atol=2e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 250])
def test_the_middle_column_is_the_plain_reconstruction_to_the_bit(net, images, batch_size) -> None:
    drawn = perturb(net, images, batch_size=batch_size)
    plain = reconstruct(net, images, batch_size=batch_size)
    assert torch.equal(drawn[:, :, 5], plain.unsqueeze(1).expand(-1, DIM, -1, -1, -1))
    others = [column for column in range(11) if column != 5]
    assert (drawn[:, :, others] != plain[:, None, None]).flatten(3).any(dim=-1).all()


def test_the_capsules_of_the_other_classes_stay() -> None:
    class Sum(Painter):
        """Draws the sum of all capsules as a grey."""

        def reconstruct(self, poses: Tensor, target: Tensor) -> Tensor:
            return poses.sum(dim=(1, 2)).view(-1, 1, 1, 1).expand(-1, *self.image_shape)

    drawn = perturb(Sum(), lengths_shown(1), offsets=[0.1])
    torch.testing.assert_close(drawn, torch.full((1, 2, 1, 1, 8, 8), 0.1))


def test_offsets_and_dimensions_can_be_chosen(net, images) -> None:
    everything = perturb(net, images)
    for offsets in ((0.1, 0, -0.2), torch.tensor([0.1, 0, -0.2], dtype=torch.float64)):
        drawn = perturb(net, images, offsets=offsets, dims=[4, 0])
        assert torch.equal(drawn, everything[:, [4, 0]][:, :, [7, 5, 1]])


def test_with_two_classes_the_longest_capsule_is_perturbed(make_net, images) -> None:
    net = make_net(targets=2)
    longest = predict(net, images).classes[:, 0]
    assert torch.equal(perturb(net, images), perturb(net, images, longest))


# --- segment


def test_segment_draws_the_two_longest_each_from_its_capsule(net, images) -> None:
    found = segment(net, images)
    assert found.classes.tolist() == two_longest(net(images).lengths)
    torch.testing.assert_close(found.reconstructions, net(images, found.classes).reconstruction)


@pytest.mark.parametrize("targets", [1, 2])
def test_pixels_are_told_apart(targets) -> None:
    shown = lengths_shown(0, 0.2, 0, 0, 0, 0.9, 0.8)
    found = segment(Painter(targets), shown, threshold=0.4)
    assert found.classes.tolist() == [[5, 6]]
    by_row = [0, 0, 0, 0, 0, 1, 2, 3]
    assert torch.equal(found.assignment[0], torch.tensor(by_row).view(8, 1).expand(8, 8))
    first, second = np.array(COLOURS)
    expected = np.zeros((8, 3))
    expected[5], expected[6], expected[7] = 0.5 * first, 0.6 * second, 0.5 * first + 0.6 * second
    np.testing.assert_allclose(found.picture[0].amax(dim=-1).T, expected, atol=1e-6)
    np.testing.assert_allclose(found.picture[0].amin(dim=-1).T, expected, atol=1e-6)


def test_a_pixel_as_bright_as_the_threshold_is_background() -> None:
    shown, target = lengths_shown(1), torch.tensor([[5, 6]])
    found = segment(Painter(), shown, target, threshold=0.5)
    assert found.assignment[0, :, 0].tolist() == [0, 0, 0, 0, 0, 0, 2, 2]
    assert found.classes.tolist() == [[5, 6]]


def test_any_two_classes_can_be_segmented(net, images) -> None:
    target = torch.tensor([[8, 3]] * IMAGES)
    found = segment(net, images, target)
    assert torch.equal(found.classes, target)
    turned = segment(net, images, target.flip(1))
    assert torch.equal(turned.reconstructions, found.reconstructions.flip(1))
    assert not torch.equal(turned.picture, found.picture)


def test_colours_take_the_brightest_channel_and_add_up_to_white() -> None:
    drawings = torch.rand(2, 2, 3, 4, 5)
    coloured = in_colours(drawings)
    assert coloured.shape == (2, 2, 3, 4, 5)
    brightest = drawings.numpy().max(axis=2)
    for which, colour in enumerate(COLOURS):
        for channel, share in enumerate(colour):
            np.testing.assert_allclose(
                coloured[:, which, channel], share * brightest[:, which], rtol=1e-6
            )
    torch.testing.assert_close(
        in_colours(torch.ones(1, 2, 1, 1, 1)).sum(dim=1).flatten(), torch.ones(3)
    )


def test_several_channels_are_segmented() -> None:
    shown = lengths_shown(0, 0, 0, 0, 0, 0.9, 0.8, channels=2)
    found = segment(Painter(channels=2), shown, threshold=0.4)
    assert found.picture.shape == (1, 3, 8, 8)
    assert found.assignment[0, :, 3].tolist() == [0, 0, 0, 0, 0, 1, 2, 3]


# --- trace_routing


def votes_of(net: CapsNet, images: Tensor) -> np.ndarray:
    """Votes `[B, J, I, D]` in float64."""
    with torch.no_grad():
        capsules = net.primary_caps(net.conv(images))
        votes = compute_votes(capsules.double(), net.class_caps.weight.double())
    return votes.numpy()


def squashed(s: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(s, axis=-1, keepdims=True)
    return norm**2 / (1 + norm**2) * s / norm


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_the_trace_follows_procedure_1(make_net, images, iterations) -> None:
    net = make_net(routing=DynamicRoutingConfig(iterations=iterations))
    trace = trace_routing(net, images)
    votes = votes_of(net, images)
    assert len(trace) == iterations
    assert trace.coupling.shape == trace.agreement.shape == (iterations, *votes.shape[:3])
    logits = np.zeros(votes.shape[:3])
    for number in range(iterations):
        coupling = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        poses = squashed(np.einsum("bji,bjid->bjd", coupling, votes))
        agreement = np.einsum("bjid,bjd->bji", votes, poses)
        entropy = -(coupling * np.log(coupling)).sum(axis=1)
        logits += agreement
        np.testing.assert_allclose(trace.coupling[number], coupling, rtol=1e-4)
        np.testing.assert_allclose(trace.agreement[number], agreement, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(trace.entropy[number], entropy, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(predict(net, images).poses, poses, rtol=1e-4, atol=1e-6)


def test_the_first_pass_is_undecided_and_later_ones_are_not(net, images) -> None:
    trace = trace_routing(net, images)
    torch.testing.assert_close(trace.coupling.sum(dim=2), torch.ones_like(trace.entropy))
    torch.testing.assert_close(trace.entropy[0], torch.full_like(trace.entropy[0], math.log(10)))
    means = trace.entropy.mean(dim=(1, 2))
    assert means[0] > means[1] > means[2] > 0


def test_a_leak_counts_as_one_more_parent(make_net, images) -> None:
    trace = trace_routing(make_net(routing=DynamicRoutingConfig(leaky=True)), images)
    assert (trace.coupling.sum(dim=2) < 1).all()
    torch.testing.assert_close(trace.entropy[0], torch.full_like(trace.entropy[0], math.log(11)))


@pytest.mark.parametrize(
    ("routing", "passes"),
    [
        (DynamicRoutingConfig(), 3),
        (UniformRoutingConfig(), 1),
        (SelfAttentionRoutingConfig(), 1),
    ],
    ids=str,
)
def test_tracing_changes_nothing(make_net, images, routing, passes) -> None:
    net = make_net(routing=routing)
    before = net(images)
    trace = trace_routing(net, images)
    after = net(images)
    assert len(trace) == passes
    assert torch.equal(before.poses, after.poses)
    assert not trace.coupling.requires_grad
    poses = torch.from_numpy(
        np.einsum("bji,bjid->bjd", trace.coupling[-1].double(), votes_of(net, images))
    )
    cosine = torch.nn.functional.cosine_similarity(poses, after.poses.double(), dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


# --- all of them


@pytest.mark.parametrize("batch_size", [1, 3, 6, 8])
def test_results_do_not_depend_on_the_batches(net, images, batch_size) -> None:
    def everything(**sizes: int) -> list[Tensor]:
        trace = trace_routing(net, images, **sizes)
        target = torch.arange(IMAGES)
        return [
            *predict(net, images, **sizes),
            *segment(net, images, **sizes),
            *segment(net, images, torch.stack([target, target + 1], dim=1), **sizes),
            reconstruct(net, images, target, **sizes),
            perturb(net, images, target, **sizes),
            *(trace.coupling, trace.agreement, trace.entropy),
        ]

    for split, whole in zip(everything(batch_size=batch_size), everything(), strict=True):
        torch.testing.assert_close(split, whole, rtol=1e-4, atol=1e-5)


ALL = [predict, reconstruct, perturb, segment, trace_routing]


@pytest.mark.parametrize("analyse", ALL)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(2, 1, 28, 28, dtype=torch.uint8), "torch.uint8, expected floating point"),
        (torch.full((2, 1, 28, 28), 255.0), "from 255 to 255"),
        (torch.zeros(2, 1, 36, 36), r"\[2, 1, 36, 36\]"),
        (torch.zeros(0, 1, 28, 28), "B >= 1"),
    ],
)
def test_unfit_images_are_refused(net, analyse, wrong, message) -> None:
    with pytest.raises(ValueError, match=message):
        analyse(net, wrong)


@pytest.mark.parametrize("analyse", ALL)
def test_an_unfit_batch_size_is_refused(net, images, analyse) -> None:
    with pytest.raises(ValueError, match="batch_size is 0, expected at least 1"):
        analyse(net, images, batch_size=0)


@pytest.mark.parametrize("analyse", [reconstruct, perturb, segment])
def test_a_model_that_draws_nothing_is_refused(make_net, cnn, images, analyse) -> None:
    for model in (cnn, make_net(decoder=None)):
        with pytest.raises(ValueError, match=f"this {type(model).__name__} draws nothing.*decoder"):
            analyse(model, images)


@pytest.mark.parametrize(
    ("analyse", "target", "message"),
    [
        (reconstruct, torch.full((IMAGES,), CLASSES), "from 10 to 10, expected 0 to 9"),
        (reconstruct, torch.zeros(IMAGES - 1, dtype=torch.int64), r"expected torch.int64 \[7\]"),
        (perturb, torch.zeros(IMAGES), "torch.float32"),
        (perturb, torch.zeros(IMAGES, 2, dtype=torch.int64), r"\[7, 2\], expected \[N\] = \[7\]"),
        (segment, torch.zeros(IMAGES, dtype=torch.int64), r"\[7\], expected \[N, 2\] = \[7, 2\]"),
        (segment, torch.zeros(IMAGES, 3, dtype=torch.int64), r"\[7, 3\], expected \[N, 2\]"),
        (segment, torch.full((IMAGES, 2), -1), "from -1 to -1"),
    ],
)
def test_unfit_targets_are_refused(net, images, analyse, target, message) -> None:
    with pytest.raises(ValueError, match=message):
        analyse(net, images, target)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"offsets": []}, r"offsets are \[\], expected finite numbers"),
        ({"offsets": [0.1, float("nan")]}, "nan"),
        ({"dims": []}, "at least one"),
        ({"dims": [0, 6]}, r"dims are \[0, 6\], expected at least one, each in 0 .. 5"),
        ({"dims": [-1]}, r"each in 0 .. 5"),
    ],
)
def test_unfit_perturbations_are_refused(net, images, settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        perturb(net, images, **settings)


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_an_unfit_threshold_is_refused(net, images, threshold) -> None:
    with pytest.raises(ValueError, match=f"threshold is {threshold}"):
        segment(net, images, threshold=threshold)


def test_only_routings_can_be_traced(net, cnn, images) -> None:
    with pytest.raises(TypeError, match="this Cnn routes nothing: expected a CapsNet"):
        trace_routing(cnn, images)

    class Silent(Routing):
        def forward(self, votes: Tensor, bias: object = None, trace: object = None) -> Tensor:
            return votes.mean(dim=2)

    net.class_caps.routing = Silent(DynamicRoutingConfig(), None)
    with pytest.raises(ValueError, match="Silent records no pass"):
        trace_routing(net, images)
