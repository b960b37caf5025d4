"""The mistakes that public CapsNets have made, one after another.

A function `check_...` says what is right. One test runs it on the library; another one plants the
mistake and sees that the same check catches it.
"""

import threading
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from capsmodel.batch import Batch
from capsmodel.capsnet import CapsNet
from capsmodel.config import (
    CapsNetConfig,
    DecoderConfig,
    DynamicRoutingConfig,
    MarginLossConfig,
    MnistConfig,
)
from capsmodel.datasets import load_dataset
from capsmodel.datasets.composition import Composition, Part
from capsmodel.datasets.download import RemoteFile, fetch
from capsmodel.datasets.multimnist import Overlaid
from capsmodel.decoder import Decoder
from capsmodel.functional import exponential_squash, lengths, squash
from capsmodel.layers import PrimaryCaps
from capsmodel.losses import build_loss, reconstruction_loss
from capsmodel.losses.margin import margin_loss
from capsmodel.model import Model, ModelOutput
from capsmodel.routing import VoteShape, build_routing
from capsmodel.routing.trace import RoutingTrace
from capsmodel.training import Trainer
from support import reference

HALF_PRECISION = [torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def digits(mnist_folder: Path) -> Batch:
    """The first 2,000 test digits of MNIST, pixels in [0, 1]."""
    dataset = load_dataset(MnistConfig(), mnist_folder)
    return Batch(dataset.test_images[:2000], dataset.test_labels[:2000]).as_pixels()


# Softmax over the inputs in place of the parents.

Route = Callable[..., tuple[Tensor, Tensor]]
"""From votes `[B, J, I, D]` and a number of passes to poses `[B, J, D]` and the coupling
coefficients `[R, B, J, I]` of every pass."""


def our_routing(votes: Tensor, iterations: int = 3, detach: bool = False) -> tuple[Tensor, Tensor]:
    _, classes, inputs, dim = votes.shape
    settings = DynamicRoutingConfig(iterations=iterations, detach=detach)
    trace = RoutingTrace()
    poses = build_routing(settings, VoteShape(inputs, classes, dim))(votes, trace=trace)
    return poses, trace.coupling


def textbook_routing(
    votes: Tensor, iterations: int = 3, softmax_axis: int = 1, shared: bool = False
) -> tuple[Tensor, Tensor]:
    """Procedure 1 as it is often written, with room for two mistakes."""
    logits = torch.zeros_like(votes[..., 0])
    couplings = []
    for _ in range(iterations):
        couplings.append(logits.softmax(dim=softmax_axis))
        poses = squash((couplings[-1].unsqueeze(-1) * votes).sum(dim=2))
        agreement = (votes * poses.unsqueeze(2)).sum(dim=-1)
        logits = logits + (agreement.mean(dim=0, keepdim=True) if shared else agreement)
    return poses, torch.stack(couplings)


RIGHT_ROUTINGS = [our_routing, textbook_routing]


def check_parents_share_each_capsule(route: Route) -> None:
    votes = 3 * torch.randn(2, 4, 7, 5)
    for iterations in (1, 2, 3):
        _, coupling = route(votes, iterations)
        torch.testing.assert_close(coupling.sum(dim=2), torch.ones(iterations, 2, 7))


def check_first_pass_gives_each_parent_the_same(route: Route) -> None:
    votes = torch.randn(2, 4, 7, 5)
    poses, coupling = route(votes, 1)
    torch.testing.assert_close(coupling, torch.full((1, 2, 4, 7), 1 / 4))
    torch.testing.assert_close(poses, reference.squash(votes.sum(dim=2) / 4))


SHARE_CHECKS = [check_parents_share_each_capsule, check_first_pass_gives_each_parent_the_same]


@pytest.mark.parametrize("check", SHARE_CHECKS)
@pytest.mark.parametrize("route", RIGHT_ROUTINGS)
def test_softmax_goes_over_the_parents(route, check) -> None:
    check(route)


@pytest.mark.parametrize("check", SHARE_CHECKS)
def test_softmax_over_the_inputs_is_caught(check) -> None:
    with pytest.raises(AssertionError):
        check(partial(textbook_routing, softmax_axis=2))


# NaN from the root of 0; overflow in half precision.


def squash_by_root(s: Tensor) -> Tensor:
    square = (s * s).sum(dim=-1, keepdim=True)
    return square / (1 + square) * s / square.sqrt()


def squash_by_safe_root(s: Tensor) -> Tensor:
    square = (s * s).sum(dim=-1, keepdim=True)
    return square / (1 + square) * s / (square + 1e-6).sqrt()


def exponential_squash_by_division(s: Tensor) -> Tensor:
    length = s.norm(dim=-1, keepdim=True)
    return (1 - (-length).exp()) * s / length


def length_by_root(vectors: Tensor) -> Tensor:
    return (vectors * vectors).sum(dim=-1).sqrt()


def check_zero_vectors(function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    vectors = torch.zeros(2, 8, dtype=dtype, requires_grad=True)
    result = function(vectors)
    assert (result == 0).all()
    (gradient,) = torch.autograd.grad(result.sum(), vectors)
    assert gradient.isfinite().all()


def check_large_vectors(function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    for size in (largest, largest / 4, largest**0.5):
        vectors = torch.full((2, 16), size, dtype=dtype, requires_grad=True)
        result = function(vectors)
        assert result.float().norm(dim=-1).tolist() == pytest.approx([1, 1], rel=1e-2)
        (gradient,) = torch.autograd.grad(result.sum(), vectors)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, *HALF_PRECISION])
@pytest.mark.parametrize("function", [squash, exponential_squash, lengths])
def test_zero_vectors_have_finite_gradients(function, dtype) -> None:
    check_zero_vectors(function, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF_PRECISION])
@pytest.mark.parametrize(
    "function", [squash_by_root, exponential_squash_by_division, length_by_root]
)
def test_the_root_of_zero_is_caught(function, dtype) -> None:
    with pytest.raises(AssertionError):
        check_zero_vectors(function, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF_PRECISION])
@pytest.mark.parametrize("function", [squash, exponential_squash])
def test_squash_of_large_vectors_does_not_overflow(function, dtype) -> None:
    check_large_vectors(function, dtype)


@pytest.mark.parametrize("dtype", HALF_PRECISION)
@pytest.mark.parametrize(
    "function", [squash_by_root, squash_by_safe_root, exponential_squash_by_division]
)
def test_overflow_in_half_precision_is_caught(function, dtype) -> None:
    with pytest.raises(AssertionError):
        check_large_vectors(function, dtype)


# Squash along the wrong axis; capsules cut out of the channels by view.

PRIMARY_NET = CapsNetConfig(
    image_shape=(1, 12, 12),
    conv_channels=3,
    conv_kernel=3,
    primary_types=2,
    primary_dim=4,
    primary_kernel=3,
    primary_stride=2,
)


class SquashedAcrossCapsules(PrimaryCaps):
    """Shortens each component over all capsules, not each capsule."""

    def forward(self, features: Tensor) -> Tensor:
        maps = self.conv(features).unflatten(1, (self.types, self.dim))
        return squash(maps.permute(0, 1, 3, 4, 2).flatten(1, 3), dim=1)


class SquashedAcrossTypes(PrimaryCaps):
    """Takes the axis of the types for that of the capsules' dimensions."""

    def forward(self, features: Tensor) -> Tensor:
        maps = squash(self.conv(features).unflatten(1, (self.types, self.dim)), dim=1)
        return maps.permute(0, 1, 3, 4, 2).flatten(1, 3)


class ViewedWithoutPermute(PrimaryCaps):
    """Cuts the channels' memory into pieces: neighbours in one map become one capsule."""

    def forward(self, features: Tensor) -> Tensor:
        maps = self.conv(features).contiguous()
        return squash(maps.view(len(maps), -1, self.dim))


def check_large_capsules_are_just_shorter_than_1(layer: PrimaryCaps) -> None:
    capsules = layer(100 * torch.randn(2, 3, 10, 10))
    assert capsules.shape == (2, 2 * 4 * 4, 4)
    assert capsules.norm(dim=2).max() < 1 + 1e-6
    assert capsules.norm(dim=2).min() > 0.9


def check_capsules_are_channels_of_one_place(layer: PrimaryCaps) -> None:
    features = torch.randn(2, 3, 10, 10)
    maps = layer.conv(features)
    rows, columns = maps.shape[2:]
    capsules = layer(features)
    for number, (kind, y, x) in enumerate(product(range(2), range(rows), range(columns))):
        s = maps[:, 4 * kind : 4 * kind + 4, y, x]
        torch.testing.assert_close(capsules[:, number], reference.squash(s))


@pytest.mark.parametrize(
    "check",
    [check_large_capsules_are_just_shorter_than_1, check_capsules_are_channels_of_one_place],
)
def test_primary_capsules_are_squashed_channels_of_one_place(check) -> None:
    check(PrimaryCaps(PRIMARY_NET))


@pytest.mark.parametrize("layer", [SquashedAcrossCapsules, SquashedAcrossTypes])
def test_squash_along_the_wrong_axis_is_caught(layer) -> None:
    with pytest.raises(AssertionError):
        check_large_capsules_are_just_shorter_than_1(layer(PRIMARY_NET))


def test_view_without_permute_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_capsules_are_channels_of_one_place(ViewedWithoutPermute(PRIMARY_NET))


# Logits shared among the samples of a batch.


class KeptLogits:
    """Routes with logits that live on from one call to the next."""

    def __init__(self) -> None:
        self.logits = torch.zeros(4, 7)

    def __call__(self, votes: Tensor) -> tuple[Tensor, Tensor]:
        coupling = self.logits.softmax(dim=0)
        poses = squash(torch.einsum("ji,bjid->bjd", coupling, votes))
        self.logits = self.logits + torch.einsum("bjid,bjd->ji", votes, poses)
        return poses, coupling


def check_samples_do_not_meet(route: Route) -> None:
    votes = torch.randn(6, 4, 7, 5)
    together, _ = route(votes)
    order = torch.randperm(6)
    permuted, _ = route(votes[order])
    torch.testing.assert_close(permuted, together[order])
    halves = [route(half)[0] for half in (votes[:3], votes[3:])]
    torch.testing.assert_close(torch.cat(halves), together)


@pytest.mark.parametrize("route", RIGHT_ROUTINGS)
def test_a_batch_is_routed_sample_by_sample(route) -> None:
    check_samples_do_not_meet(route)


@pytest.mark.parametrize("route", [partial(textbook_routing, shared=True), KeptLogits()])
def test_logits_shared_across_samples_are_caught(route) -> None:
    with pytest.raises(AssertionError):
        check_samples_do_not_meet(route)


# A hinge that is not squared, a mean for a sum.


def margin_not_squared(presence: Tensor, labels: Tensor) -> Tensor:
    present = nn.functional.one_hot(labels, presence.shape[1])
    loss = present * (0.9 - presence).relu() + 0.5 * (1 - present) * (presence - 0.1).relu()
    return loss.sum(dim=1).mean()


def margin_mean_over_classes(presence: Tensor, labels: Tensor) -> Tensor:
    return margin_loss(presence, labels) / presence.shape[1]


def margin_sum_over_batch(presence: Tensor, labels: Tensor) -> Tensor:
    return margin_loss(presence, labels) * len(labels)


def check_margin_loss(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    presence = torch.tensor([[0.6, 0.3, 0.05], [0.95, 0.5, 0.1]])
    first = (0.9 - 0.6) ** 2 + 0.5 * (0.3 - 0.1) ** 2  # 0.05 is short enough
    second = 0.5 * (0.95 - 0.1) ** 2 + 0.5 * (0.5 - 0.1) ** 2 + (0.9 - 0.1) ** 2
    value = loss(presence, torch.tensor([0, 2])).item()
    assert value == pytest.approx((first + second) / 2, rel=1e-6)


def check_reconstruction_loss(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    drawn, wanted = torch.zeros(2, 1, 4, 5), torch.zeros(2, 1, 4, 5)
    drawn[0] = 0.5
    wanted[1, 0, 0, 0] = 1
    assert loss(drawn, wanted).item() == pytest.approx((20 * 0.25 + 1) / 2)


def test_losses_have_the_values_of_the_paper() -> None:
    check_margin_loss(margin_loss)
    check_reconstruction_loss(reconstruction_loss)


@pytest.mark.parametrize(
    "loss", [margin_not_squared, margin_mean_over_classes, margin_sum_over_batch]
)
def test_another_margin_loss_is_caught(loss) -> None:
    with pytest.raises(AssertionError):
        check_margin_loss(loss)


def test_a_mean_over_pixels_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_reconstruction_loss(nn.functional.mse_loss)


# A decoder that is fed one capsule only, or all of them.

DECODED_NET = CapsNetConfig(classes=5, class_dim=6, decoder=DecoderConfig(hidden=(8, 8)))


class OneCapsuleDecoder(Decoder):
    """Takes the D values of the target's capsule and so cannot know its class."""

    def __init__(self, config: DecoderConfig, net: CapsNetConfig) -> None:
        super().__init__(config, net)
        self.layers[0] = nn.Linear(net.class_dim, config.hidden[0])

    def forward(self, poses: Tensor, target: Tensor) -> Tensor:
        pixels: Tensor = self.layers(poses[torch.arange(len(poses)), target])
        return pixels.sigmoid().unflatten(-1, self.image_shape)


class UnmaskedDecoder(Decoder):
    """Takes all capsules as they are."""

    def forward(self, poses: Tensor, target: Tensor) -> Tensor:
        pixels: Tensor = self.layers(poses.flatten(1))
        return pixels.sigmoid().unflatten(-1, self.image_shape)


def check_decoder(kind: type[Decoder]) -> None:
    assert DECODED_NET.decoder is not None
    decoder = kind(DECODED_NET.decoder, DECODED_NET)
    poses, target = torch.randn(3, 5, 6), torch.tensor([3, 0, 4])
    drawn = decoder(poses, target)
    others = torch.randn(3, 5, 6)
    others[torch.arange(3), target] = poses[torch.arange(3), target]
    assert torch.equal(decoder(others, target), drawn)
    assert not torch.equal(decoder(poses.roll(1, dims=1), (target + 1) % 5), drawn)
    assert decoder.layers[0].in_features == 5 * 6


def test_the_decoder_takes_all_capsules_and_sees_one() -> None:
    check_decoder(Decoder)


@pytest.mark.parametrize("kind", [OneCapsuleDecoder, UnmaskedDecoder])
def test_a_decoder_of_one_capsule_or_of_all_is_caught(kind) -> None:
    with pytest.raises(AssertionError):
        check_decoder(kind)


# Training that draws from the predicted capsule.


class DrawsThePredicted(CapsNet):
    """Draws from the longest capsule, whatever the label."""

    def compute(self, images: Tensor, target: Tensor | None = None) -> ModelOutput:
        return super().compute(images)


class DrawsAllAtInference(CapsNet):
    """Masks where there is a label, and nothing where there is none."""

    def compute(self, images: Tensor, target: Tensor | None = None) -> ModelOutput:
        output = super().compute(images, target)
        if target is not None or self.decoder is None or output.poses is None:
            return output
        pixels = self.decoder.layers(output.poses.flatten(1))
        return output._replace(reconstruction=pixels.sigmoid().unflatten(1, self.image_shape))


def check_training_draws_from_the_label(trainer: Trainer) -> None:
    """Other capsules go into the decoder as zeros, where its weights get no gradient."""
    images = torch.rand(4, 1, 28, 28)
    presence = trainer.model.compute(images).lengths
    label = int(presence.sum(dim=0).argmin())
    assert not (presence.argmax(dim=1) == label).any()
    trainer.train_on(Batch(images, torch.full((4,), label)))
    decoder = trainer.model.get_submodule("decoder")
    assert isinstance(decoder, Decoder)
    gradient = decoder.layers[0].weight.grad
    assert isinstance(gradient, Tensor)
    by_class = gradient.abs().sum(dim=0).view(10, -1).sum(dim=1)
    touched = by_class.nonzero().flatten()
    assert touched.tolist() == [label]


def check_inference_takes_no_label(net: Model) -> None:
    images = torch.rand(4, 1, 28, 28)
    presence, poses, drawn, _ = net(images)
    assert torch.equal(drawn, net.reconstruct(poses, presence.argmax(dim=1)))


def test_training_draws_from_the_label(tiny_config, tiny_dataset) -> None:
    check_training_draws_from_the_label(Trainer(tiny_config(), tiny_dataset, device="cpu"))


def test_training_that_draws_from_the_prediction_is_caught(tiny_config, tiny_dataset) -> None:
    trainer = Trainer(tiny_config(), tiny_dataset, device="cpu")
    trainer.model.__class__ = DrawsThePredicted
    with pytest.raises(AssertionError):
        check_training_draws_from_the_label(trainer)


def test_inference_takes_no_label(tiny_net) -> None:
    check_inference_takes_no_label(CapsNet(tiny_net))


def test_inference_without_a_mask_is_caught(tiny_net) -> None:
    with pytest.raises(AssertionError):
        check_inference_takes_no_label(DrawsAllAtInference(tiny_net))


# Gradients stopped without being asked.


def check_gradients_flow_through_every_pass(route: Route) -> None:
    votes = torch.randn(2, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda votes: route(votes)[0], (votes,), raise_exception=False)


def test_gradients_flow_unless_the_settings_say_otherwise() -> None:
    assert not DynamicRoutingConfig().detach
    for route in RIGHT_ROUTINGS:
        check_gradients_flow_through_every_pass(route)


def test_a_detach_left_on_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_gradients_flow_through_every_pass(partial(our_routing, detach=True))


# Pixels that nobody divided by 255.


class TakesAnyPixels(CapsNet):
    """Computes without a look at the images."""

    def forward(self, images: Tensor, target: Tensor | None = None) -> ModelOutput:
        return self.compute(images.float(), target)


def check_unscaled_pixels_are_refused(net: Model) -> None:
    pixels = torch.rand(2, 1, 28, 28)
    net(pixels)
    for images in (255 * pixels, (255 * pixels).to(torch.uint8), pixels - 0.5, pixels * torch.nan):
        assert refused(net, images), f"took pixels of {images.dtype} up to {images.max()}"


def refused(net: Model, images: Tensor) -> bool:
    try:
        net(images)
    except ValueError as error:
        return "divide bytes by 255" in str(error)
    return False


def test_unscaled_pixels_are_refused(tiny_net) -> None:
    check_unscaled_pixels_are_refused(CapsNet(tiny_net))


def test_a_net_that_takes_unscaled_pixels_is_caught(tiny_net) -> None:
    with pytest.raises(AssertionError, match="took pixels"):
        check_unscaled_pixels_are_refused(TakesAnyPixels(tiny_net))


# Weights too small to start from.

OFFICIAL_LENGTHS = {"uniform": 0.098, "none": 0.976}
"""Median length of the primary capsules of the full-size net at its official weights, with and
without the division by 32. Over seeds we see 0.100 to 0.114 and 0.974 to 0.980 on MNIST."""
THIN_NETS = {
    "scaled": CapsNetConfig(conv_channels=16, primary_types=4, decoder=DecoderConfig(hidden=(32,))),
    "official": CapsNetConfig(
        conv_channels=16,
        primary_types=4,
        primary_coupling="uniform",
        class_bias=True,
        initialization="official",
        decoder=DecoderConfig(hidden=(32,)),
    ),
}


def shrink(net: nn.Module) -> None:
    """A deviation thirty times too small, in every layer."""
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(1 / 30)


def official_net(coupling: Literal["none", "uniform"]) -> CapsNet:
    return CapsNet(
        CapsNetConfig(primary_coupling=coupling, initialization="official", decoder=None)
    )


def check_lengths_at_the_start(net: CapsNet, images: Tensor, expected: float) -> None:
    with torch.no_grad():
        capsules = net.primary_caps(net.conv(images))
    assert capsules.norm(dim=2).median().item() == pytest.approx(expected, abs=0.02)


def check_loss_falls_within_50_steps(net: CapsNet, digits: Batch) -> None:
    """To less than half of what it was, on average over the last five steps."""
    loss = build_loss(MarginLossConfig())
    optimizer = torch.optim.Adam(net.parameters())
    values = []
    for _ in range(50):
        chosen = torch.randint(len(digits.labels), (16,))
        batch = Batch(digits.images[chosen], digits.labels[chosen])
        terms = loss(net.compute(batch.images, batch.labels), batch)
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        values.append(terms.classification.item())
    assert sum(values[-5:]) / 5 < 0.5 * values[0]


@pytest.mark.parametrize("coupling", OFFICIAL_LENGTHS)
def test_lengths_at_the_start_are_those_of_the_authors_code(coupling, digits) -> None:
    check_lengths_at_the_start(
        official_net(coupling), digits.images[:16], OFFICIAL_LENGTHS[coupling]
    )


@pytest.mark.parametrize("coupling", OFFICIAL_LENGTHS)
def test_lengths_of_too_small_weights_are_caught(coupling, digits) -> None:
    net = official_net(coupling)
    shrink(net)
    with pytest.raises(AssertionError):
        check_lengths_at_the_start(net, digits.images[:16], OFFICIAL_LENGTHS[coupling])


@pytest.mark.parametrize("initialization", THIN_NETS)
def test_the_loss_falls_within_50_steps(initialization, digits) -> None:
    check_loss_falls_within_50_steps(CapsNet(THIN_NETS[initialization]), digits)


@pytest.mark.parametrize("initialization", THIN_NETS)
def test_weights_too_small_to_start_are_caught(initialization, digits) -> None:
    net = CapsNet(THIN_NETS[initialization])
    shrink(net)
    with pytest.raises(AssertionError):
        check_loss_falls_within_50_steps(net, digits)


# Pairs of one class in MultiMNIST.


class AnyPartner(Overlaid):
    """Draws the partner among all pictures, those of the same class too."""

    def compose(self, part: Part, pictures: Tensor, drawn: Tensor) -> Batch:
        partners = drawn[:, 0] % len(part)
        labels = torch.stack([part.labels[pictures], part.labels[partners]], dim=1)
        return super().compose(part, pictures, drawn)._replace(labels=labels)


def check_every_pair_has_two_classes(composition: Composition) -> None:
    part = Part(torch.zeros(50, 1, 28, 28, dtype=torch.uint8), torch.arange(50) % 5)
    generator = torch.Generator().manual_seed(7)
    everything = torch.arange(50)
    batches = [composition.training_batch(part, everything, generator) for _ in range(4)]
    batches.append(composition.fixed_batch(part, everything))
    for batch in batches:
        assert (batch.labels[:, 0] != batch.labels[:, 1]).all()


def test_every_pair_has_two_classes() -> None:
    check_every_pair_has_two_classes(Overlaid())


def test_pairs_of_one_class_are_caught() -> None:
    with pytest.raises(AssertionError):
        check_every_pair_has_two_classes(AnyPartner())


# Two processes that download the same file.

CONTENT = bytes(range(256)) * 40


class HesitantServer(ThreadingHTTPServer):
    """Sends half of a file, and the rest when it is told to."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HesitantHandler)
        self.requests = 0
        self.half_sent = threading.Event()
        self.go_on = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class HesitantHandler(BaseHTTPRequestHandler):
    server: HesitantServer

    def do_GET(self) -> None:
        self.server.requests += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        middle = len(CONTENT) // 2
        self.wfile.write(CONTENT[:middle])
        self.server.half_sent.set()
        self.server.go_on.wait(timeout=10)
        self.wfile.write(CONTENT[middle:])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HesitantServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("CAPS_DATA_MIRROR", raising=False)
    found = HesitantServer()
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


Download = Callable[[Path, str], None]
"""Brings `digits` into a folder, from an address."""


def our_download(folder: Path, address: str) -> None:
    fetch("digits", folder, [RemoteFile("digits", lambda content, name: None)], [address])


def download_under_the_final_name(folder: Path, address: str) -> None:
    path = folder / "digits"
    if path.is_file():
        return
    folder.mkdir(exist_ok=True)
    with urllib.request.urlopen(f"{address}/digits") as response, path.open("wb", 0) as file:
        while block := response.read1(1024):
            file.write(block)


def check_second_user_waits(download: Download, folder: Path, server: HesitantServer) -> None:
    """The second one comes when half of the file is there."""
    seen: list[bytes] = []

    def use() -> None:
        download(folder, server.address)
        seen.append((folder / "digits").read_bytes())

    users = [threading.Thread(target=use, daemon=True) for _ in range(2)]
    users[0].start()
    assert server.half_sent.wait(timeout=10)
    users[1].start()
    users[1].join(timeout=0.5)
    server.go_on.set()
    for user in users:
        user.join(timeout=10)
    assert seen == [CONTENT, CONTENT]
    assert server.requests == 1


def test_two_users_get_one_whole_copy(tmp_path, server) -> None:
    check_second_user_waits(our_download, tmp_path / "set", server)


def test_a_file_seen_before_it_is_whole_is_caught(tmp_path, server) -> None:
    with pytest.raises(AssertionError):
        check_second_user_waits(download_under_the_final_name, tmp_path / "set", server)
