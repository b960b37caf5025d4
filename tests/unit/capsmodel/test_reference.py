"""Outputs, losses and all gradients against the independent float64 nets of `support.reference`.

Every run draws images and weights anew; a failure names the seed, and CAPS_TEST_SEED repeats it.
"""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from capsmodel.batch import Batch
from capsmodel.config import (
    CapsNetConfig,
    CnnConfig,
    CrossEntropyLossConfig,
    DecoderConfig,
    DynamicRoutingConfig,
    LossConfig,
    MarginLossConfig,
    ModelConfig,
    RoutingConfig,
    SelfAttentionRoutingConfig,
    UniformRoutingConfig,
)
from capsmodel.functional import exponential_squash, lengths, squash
from capsmodel.kernels import force_kernels
from capsmodel.losses import LossTerms, build_loss
from capsmodel.model import Model, ModelOutput, build_model
from capsmodel.precision import Precision, mixed_precision
from capsmodel.routing import VoteShape, build_routing
from capsmodel.routing.trace import RoutingTrace
from support import reference
from support.compiler import HAS_COMPILER
from support.seed import SEED

Settings = TypeVar("Settings", bound=ModelConfig)
CPU = torch.device("cpu")
BATCH = 3

FP32_ERROR = 1e-4
"""Largest relative error of any output, loss or gradient in fp32."""
BF16_OUTPUT_ERROR = 1e-2
"""Largest relative error of an output in bf16, unless rounding the products alone costs as much."""
BF16_GRADIENT_RATIO = 1.5
"""A gradient's error in bf16 may be so many times that of the reference with the same rounding."""
KINK_DISTANCE = 1e-5
"""Nearer to the kink of a ReLU a rounding error may choose the other side, where the gradient is
another: such images are drawn again."""

DYNAMIC = [
    DynamicRoutingConfig(iterations=iterations, detach=detach, leaky=leaky)
    for iterations in range(1, 6)
    for detach in (False, True)
    for leaky in (False, True)
]
THREE_PASSES = DynamicRoutingConfig(iterations=3)
OTHER_ROUTINGS = [UniformRoutingConfig(), SelfAttentionRoutingConfig()]
ROUTINGS: list[RoutingConfig] = [*DYNAMIC, *OTHER_ROUTINGS]
LOSSES: list[LossConfig] = [
    MarginLossConfig(reconstruction_weight=0.01),
    CrossEntropyLossConfig(reconstruction_weight=0.01),
]
SMALL_NET = CapsNetConfig(
    image_shape=(1, 9, 10),
    classes=5,
    conv_channels=6,
    conv_kernel=3,
    primary_types=3,
    primary_dim=4,
    primary_kernel=3,
    primary_stride=2,
    class_dim=6,
    decoder=DecoderConfig(hidden=(12, 10)),
)
ODD_NETS: dict[str, dict[str, Any]] = {
    "7 capsules of 3 in one place": {
        "image_shape": (1, 7, 7),
        "classes": 2,
        "primary_types": 7,
        "primary_dim": 3,
        "primary_kernel": 5,
        "class_dim": 4,
    },
    "3 channels, 17 classes of 24, strides, padding": {
        "image_shape": (3, 13, 10),
        "classes": 17,
        "conv_stride": 2,
        "conv_padding": 2,
        "primary_padding": 1,
        "class_dim": 24,
    },
    "2 channels, 288 capsules of 8": {
        "image_shape": (2, 10, 10),
        "primary_types": 8,
        "primary_dim": 8,
        "primary_stride": 1,
        "decoder": DecoderConfig(hidden=(9,)),
    },
    "capsules of 1, classes of 1": {"primary_dim": 1, "class_dim": 1},
    "even kernels, no decoder": {
        "conv_kernel": 4,
        "conv_padding": 1,
        "primary_kernel": 2,
        "primary_stride": 3,
        "decoder": None,
    },
}
BIASES: dict[str, dict[str, Any]] = {
    "as in the paper": {"primary_coupling": "none", "class_bias": False},
    "as in the authors' code": {"primary_coupling": "uniform", "class_bias": True},
}
ROUNDED_NET: dict[str, Any] = {
    "image_shape": (2, 12, 12),
    "classes": 10,
    "conv_channels": 16,
    "primary_types": 8,
    "primary_dim": 8,
    "class_dim": 16,
    "class_bias": True,
    "decoder": DecoderConfig(hidden=(128, 128)),
}
ROUNDED_BATCH = 24
"""With `ROUNDED_NET` large enough that every gradient's error is the sum of many roundings and of
several ReLUs that they tip over. The ratio of two errors then varies little (300 draws gave at most
1.07), and no error is so small that it would need an absolute bound."""
CNN = CnnConfig(
    image_shape=(2, 9, 7), classes=6, channels=(5, 4), kernels=(3, 5), hidden=(11, 8), dropout=0
)


class Case(NamedTuple):
    """A net with random weights, a batch for it, and the reference's view of both."""

    model: Model
    loss: LossConfig
    batch: Batch
    settings: dict[str, Any]
    weights: dict[str, Tensor]


class Results(NamedTuple):
    """What a net made of a batch, by name."""

    outputs: dict[str, Tensor]
    losses: dict[str, Tensor]
    gradients: dict[str, Tensor]


@pytest.fixture(autouse=True, params=["native", "torch"])
def fresh_seed(request: pytest.FixtureRequest) -> Iterator[None]:
    """All of it with the compiled kernels, and again with PyTorch's own operations."""
    if request.param == "native" and not HAS_COMPILER:
        pytest.skip("there is no C++ compiler")
    torch.manual_seed(SEED)
    with force_kernels(request.param):
        yield


def draw_case(
    config: ModelConfig, loss: LossConfig, batch_size: int = BATCH, away_from_kinks: bool = True
) -> Case:
    """Fresh random weights and images, none of whose values lies at a kink unless said."""
    model = build_model(config)
    settings = config.model_dump()
    for _ in range(100):
        for name, weight in model.named_parameters():
            nn.init.normal_(weight, std=spread(name, weight, model, config))
        batch = draw_batch(config, batch_size)
        weights = {name: value.detach().double() for name, value in model.named_parameters()}
        case = Case(model, loss, batch, settings, weights)
        if not away_from_kinks:
            return case
        with torch.no_grad():
            kinks = run_reference(case).kinks
        if min(distance.min().item() for distance in kinks) > KINK_DISTANCE:
            return case
    raise AssertionError(f"no images away from every kink (seed {SEED})")


def spread(name: str, weight: Tensor, model: Model, config: ModelConfig) -> float:
    """Deviation of random weights that keeps every layer's values at about 1.

    Capsules are then neither tiny nor saturated, and the votes differ so much that routing decides.
    """
    if name == "class_caps.weight":
        inputs, classes, _, dim = weight.shape
        return 1.5 * classes / math.sqrt(inputs * dim)
    if name == "class_caps.routing.prior":
        return 0.3 / config.classes
    if weight.dim() <= 2 and not name.endswith("weight"):
        return 0.2
    fan_in = math.prod(weight.shape[1:])
    types = getattr(config, "primary_types", 1)
    uniform = getattr(config, "primary_coupling", "none") == "uniform"
    gain = types if uniform and name == "primary_caps.conv.weight" else 1
    return gain * math.sqrt(2 / fan_in)


def draw_batch(config: ModelConfig, batch_size: int) -> Batch:
    """Random images, and distinct random classes in random order."""
    images = torch.rand(batch_size, *config.image_shape)
    classes = torch.rand(batch_size, config.classes).argsort(dim=1)
    if config.targets == 1:
        return Batch(images, classes[:, 0])
    parts = torch.rand(batch_size, config.targets, *config.image_shape)
    return Batch(images, classes[:, : config.targets].contiguous(), parts)


def run_reference(case: Case, multiply: reference.Multiply = reference.exactly) -> reference.Output:
    """The reference's forward pass."""
    net = reference.capsnet if case.settings["type"] == "capsnet" else reference.cnn
    images, labels = case.batch.images.double(), case.batch.labels
    return net(case.settings, case.weights, images, labels, multiply)


def reference_terms(case: Case, output: reference.Output) -> reference.Terms:
    """The reference's losses."""
    drawings = case.batch.drawings.double()
    return reference.loss_terms(case.loss.model_dump(), output, case.batch.labels, drawings)


def expected_results(case: Case, multiply: reference.Multiply = reference.exactly) -> Results:
    """Outputs, losses and gradients of the reference."""
    weights = {name: value.clone().requires_grad_() for name, value in case.weights.items()}
    output = run_reference(case._replace(weights=weights), multiply)
    return gather_results(output, reference_terms(case, output), weights)


def actual_results(case: Case, precision: Precision = "fp32") -> Results:
    """Outputs, losses and gradients of the library."""
    with mixed_precision(CPU, precision):
        output = case.model.compute(case.batch.images, case.batch.labels)
    terms = build_loss(case.loss)(output, case.batch)
    return gather_results(output, terms, dict(case.model.named_parameters()))


def gather_results(
    output: ModelOutput | reference.Output,
    terms: LossTerms | reference.Terms,
    weights: dict[str, Tensor],
) -> Results:
    """By name, with the gradients of the total loss; what a net has not is left out."""
    tensors = {name: getattr(output, name) for name in ModelOutput._fields}
    outputs = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    gradients = torch.autograd.grad(terms.total, list(weights.values()))
    return Results(outputs, terms._asdict(), dict(zip(weights, gradients, strict=True)))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected; 0 where both are 0."""
    assert actual.shape == expected.shape
    difference = (actual.double() - expected).norm()
    return float((difference / expected.norm()).detach()) if difference > 0 else 0.0


def errors(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Relative error of each tensor; both sides must have the same ones."""
    assert actual.keys() == expected.keys()
    return {name: relative_error(actual[name], expected[name]) for name in expected}


def check_fp32(case: Case) -> None:
    """Everything agrees within `FP32_ERROR`."""
    check_within(actual_results(case), expected_results(case))


def check_within(actual: Results, expected: Results) -> None:
    """Nothing is off by more than `FP32_ERROR`."""
    for kind, found, wanted in zip(Results._fields, actual, expected, strict=True):
        for name, error in errors(found, wanted).items():
            assert error <= FP32_ERROR, f"{kind}: {name} is off by {error:.1e} (seed {SEED})"


def check_bf16(case: Case) -> None:
    """Outputs agree roughly; gradients lose little more than bf16 products alone cost."""
    actual, expected = actual_results(case, "bf16"), expected_results(case)
    products_rounded = expected_results(case, reference.in_bf16)
    unavoidable = errors(products_rounded.outputs, expected.outputs)
    for name, error in errors(actual.outputs, expected.outputs).items():
        limit = max(BF16_OUTPUT_ERROR, BF16_GRADIENT_RATIO * unavoidable[name])
        assert error <= limit, f"{name} is off by {error:.1e} (seed {SEED})"
    unavoidable = errors(products_rounded.gradients, expected.gradients)
    for name, error in errors(actual.gradients, expected.gradients).items():
        ratio = error / unavoidable[name]
        assert ratio <= BF16_GRADIENT_RATIO, (
            f"gradient of {name} is off by {error:.1e}, {ratio:.2f} times what rounding the "
            f"products costs (seed {SEED})"
        )


def changed(config: Settings, **changes: Any) -> Settings:
    """The same settings but for some."""
    given = {name: getattr(config, name) for name in config.model_fields_set}
    return type(config)(**{**given, **changes})


def describe(value: Any) -> str:
    """Name of a routing in a test's."""
    if not isinstance(value, DynamicRoutingConfig):
        return str(getattr(value, "type", value))
    marks = [name for name in ("detach", "leaky") if getattr(value, name)]
    return "-".join([f"dynamic{value.iterations}", *marks])


@pytest.mark.parametrize("targets", [1, 2])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.type)
@pytest.mark.parametrize("biases", BIASES)
@pytest.mark.parametrize("routing", ROUTINGS, ids=describe)
def test_every_routing_in_fp32(routing, biases, loss, targets) -> None:
    net = changed(SMALL_NET, routing=routing, targets=targets, **BIASES[biases])
    check_fp32(draw_case(net, loss))


@pytest.mark.parametrize("class_bias", [False, True])
@pytest.mark.parametrize("coupling", ["none", "uniform"])
def test_every_bias_in_fp32(coupling, class_bias) -> None:
    net = changed(SMALL_NET, primary_coupling=coupling, class_bias=class_bias)
    check_fp32(draw_case(net, LOSSES[0]))


@pytest.mark.parametrize("routing", [THREE_PASSES, *OTHER_ROUTINGS], ids=describe)
@pytest.mark.parametrize("shape", ODD_NETS)
def test_odd_shapes_in_fp32(shape, routing) -> None:
    net = changed(SMALL_NET, routing=routing, class_bias=True, **ODD_NETS[shape])
    check_fp32(draw_case(net, LOSSES[0]))


@pytest.mark.parametrize("scale", ["sum", "half-mean"])
def test_other_margins_in_fp32(scale) -> None:
    loss = MarginLossConfig(m_plus=0.7, m_minus=0.3, lambda_=0.2, scale=scale)
    check_fp32(draw_case(SMALL_NET, loss))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.type)
@pytest.mark.parametrize("targets", [1, 2])
@pytest.mark.parametrize(
    "changes",
    [{}, {"pool": 2}, {"pool": 3, "kernels": (4, 1)}, {"hidden": ()}],
    ids=["plain", "pooled", "even kernel", "no hidden layer"],
)
def test_the_cnn_in_fp32(changes, targets, loss) -> None:
    check_fp32(draw_case(changed(CNN, targets=targets, **changes), loss))


@pytest.mark.parametrize("targets", [1, 2])
def test_without_labels_the_longest_capsules_are_drawn(targets) -> None:
    case = draw_case(changed(SMALL_NET, targets=targets), LOSSES[0])
    with torch.no_grad():
        drawn = case.model.compute(case.batch.images).reconstruction
        by_length = run_reference(case).lengths.argsort(dim=1, descending=True)
        longest = by_length[:, 0] if targets == 1 else by_length[:, :targets]
        expected = run_reference(case._replace(batch=case.batch._replace(labels=longest)))
    assert relative_error(drawn, expected.reconstruction) <= FP32_ERROR, f"seed {SEED}"


PRESETS_PIXELS = (28, 36, 40)
"""Sides of images for whose primary capsules there is a route through the frequency domain."""


@pytest.mark.parametrize("pixels", PRESETS_PIXELS)
def test_the_presets_images_in_fp32(pixels) -> None:
    net = CapsNetConfig(
        image_shape=(1, pixels, pixels),
        classes=3,
        conv_channels=16,
        primary_types=4,
        primary_dim=4,
        class_dim=6,
        decoder=DecoderConfig(hidden=(24,)),
    )
    check_fp32(draw_case(net, LOSSES[0], batch_size=16))


@pytest.mark.parametrize("pixels", PRESETS_PIXELS)
@pytest.mark.slow
def test_the_presets_images_in_bf16(pixels) -> None:
    """Of the sums of two draws' errors; without the decoder, whose few values vary a lot."""
    net = CapsNetConfig(
        image_shape=(1, pixels, pixels), conv_channels=48, primary_types=8, decoder=None
    )
    found: dict[str, float] = {}
    unavoidable: dict[str, float] = {}
    for _ in range(2):
        case = draw_case(net, LOSSES[0], batch_size=16, away_from_kinks=False)
        expected, rounded = expected_results(case), expected_results(case, reference.in_bf16)
        for results, total in ((actual_results(case, "bf16"), found), (rounded, unavoidable)):
            for name, error in errors(results.gradients, expected.gradients).items():
                total[name] = total.get(name, 0) + error
    for name, error in found.items():
        ratio = error / unavoidable[name]
        assert ratio <= BF16_GRADIENT_RATIO, f"gradient of {name}: {ratio:.2f} (seed {SEED})"


ROUNDED_ROUTINGS = [
    *(routing for routing in DYNAMIC if not (routing.detach or routing.leaky)),
    DynamicRoutingConfig(leaky=True),
    DynamicRoutingConfig(detach=True),
    *OTHER_ROUTINGS,
]


@pytest.mark.parametrize(("number", "routing"), list(enumerate(ROUNDED_ROUTINGS)), ids=describe)
def test_every_routing_in_bf16(number, routing) -> None:
    """Couplings, losses and numbers of targets take turns."""
    net = changed(
        SMALL_NET,
        **ROUNDED_NET,
        routing=routing,
        primary_coupling=("none", "uniform")[number % 2],
        targets=1 + number // 2 % 2,
    )
    check_bf16(draw_case(net, LOSSES[number // 3 % 2], ROUNDED_BATCH))


@pytest.mark.parametrize("targets", [1, 2])
def test_the_cnn_in_bf16(targets) -> None:
    net = changed(
        CNN, targets=targets, image_shape=(2, 12, 12), channels=(16, 16), hidden=(128, 96)
    )
    check_bf16(draw_case(net, LOSSES[1], ROUNDED_BATCH))


@pytest.mark.slow
def test_capsules_in_bf16_would_be_noticed(monkeypatch) -> None:
    """Four draws in ten then break the bound, so that thirty in a row do not all keep it.

    With PyTorch's own operations: the compiled kernels know fp32 alone.
    """
    for module in ("capsmodel.layers", "capsmodel.routing"):
        monkeypatch.setattr(f"{module}.full_precision", lambda device: nullcontext())
    net = changed(SMALL_NET, **ROUNDED_NET, routing=THREE_PASSES)

    def check_thirty_draws() -> None:
        for _ in range(30):
            check_bf16(draw_case(net, LOSSES[0], ROUNDED_BATCH))

    with (
        force_kernels("torch"),
        pytest.raises(AssertionError, match="times what rounding the products costs"),
    ):
        check_thirty_draws()


@pytest.mark.parametrize(
    "change",
    [{"iterations": 2}, {"iterations": 4}, {"leaky": True}, {"detach": True}, {"type": "uniform"}],
    ids=str,
)
def test_another_routing_would_be_noticed(change) -> None:
    case = draw_case(changed(SMALL_NET, routing=THREE_PASSES), LOSSES[0])
    case.settings["routing"].update(change)
    with pytest.raises(AssertionError, match="is off by"):
        check_fp32(case)


@pytest.mark.parametrize(
    "change",
    [
        {"m_plus": 0.8},
        {"lambda_": 0.6},
        {"scale": "half-mean"},
        {"reconstruction_weight": 0.011},
    ],
    ids=str,
)
def test_another_loss_would_be_noticed(change) -> None:
    """The shortest capsules are the labels', so that both terms of the margin count."""
    case = draw_case(SMALL_NET, LOSSES[0])
    shortest = run_reference(case).lengths.argmin(dim=1)
    case = case._replace(batch=case.batch._replace(labels=shortest))
    other = MarginLossConfig(**{"reconstruction_weight": 0.01, **change})
    expected = expected_results(case)
    with pytest.raises(AssertionError, match="is off by"):
        check_within(actual_results(case._replace(loss=other)), expected)


def test_the_weights_drawn_let_the_routing_decide() -> None:
    """In the most decided of ten draws: a single one may happen to be undecided."""
    coupling, spread = [], []
    for _ in range(10):
        case = draw_case(changed(SMALL_NET, routing=THREE_PASSES), LOSSES[0])
        trace = RoutingTrace()
        with torch.no_grad():
            presence = lengths(case.model.encode(case.batch.images, trace))
        coupling.append(float(trace.coupling[-1].max()))
        spread.append(float(presence.max() - presence.min()))
    assert max(coupling) > 0.25, f"all about 1/5 (seed {SEED})"
    assert max(spread) > 0.1, f"all of one length (seed {SEED})"


REFERENCE_NETS: dict[str, dict[str, Any]] = {
    "dynamic": {"routing": THREE_PASSES, "class_bias": True},
    "leaky": {"routing": DynamicRoutingConfig(leaky=True), "primary_coupling": "uniform"},
    "uniform": {"routing": UniformRoutingConfig(), "targets": 2},
    "self-attention": {"routing": SelfAttentionRoutingConfig()},
}


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.type)
@pytest.mark.parametrize("net", REFERENCE_NETS)
def test_the_references_gradients_agree_with_finite_differences(net, loss) -> None:
    case = draw_case(changed(SMALL_NET, **REFERENCE_NETS[net]), loss)
    gradients = expected_results(case).gradients
    for name, weight in case.weights.items():
        for index in torch.randint(weight.numel(), (3,)).tolist():
            slope = finite_difference(case, weight.view(-1), index)
            error = abs(slope - gradients[name].flatten()[index].item())
            bound = 1e-5 * gradients[name].abs().max().item()
            assert error <= bound, f"{name}[{index}]: off by {error:.1e} (seed {SEED})"


def finite_difference(case: Case, weight: Tensor, index: int) -> float:
    """Slope of the reference's total loss in one entry of a weight, from two values around it."""
    value, step = weight[index].item(), 1e-6
    totals: list[float] = []
    for moved in (value + step, value - step):
        weight[index] = moved
        with torch.no_grad():
            totals.append(reference_terms(case, run_reference(case)).total.item())
    weight[index] = value
    return (totals[0] - totals[1]) / (2 * step)


def test_the_references_detach_acts_from_the_third_pass_on() -> None:
    """With one or two passes the only detached coefficients are the first ones: constants."""
    for iterations in range(1, 6):
        errors = [detached_error(iterations, SEED + draw) for draw in range(5)]
        acts = max(errors) > 10 * FP32_ERROR
        assert acts == (iterations >= 3), f"{iterations} passes: {errors} (seed {SEED})"


def detached_error(iterations: int, seed: int) -> float:
    """How far the reference's gradients with and without detaching lie apart."""
    gradients = []
    for detach in (False, True):
        torch.manual_seed(seed)
        routing = DynamicRoutingConfig(iterations=iterations, detach=detach)
        case = draw_case(changed(SMALL_NET, routing=routing), LOSSES[0])
        gradients.append(expected_results(case).gradients["conv.weight"])
    return relative_error(*gradients)


@pytest.mark.parametrize("function", [squash, exponential_squash, lengths])
def test_elementary_functions_pass_gradcheck(function) -> None:
    vectors = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert gradcheck(function, (vectors,)), f"seed {SEED}"
    assert gradcheck(partial(function, dim=1), (vectors,)), f"seed {SEED}"


@pytest.mark.parametrize(
    "routing", [each for each in ROUTINGS if not getattr(each, "detach", False)], ids=describe
)
def test_every_routing_passes_gradcheck(routing) -> None:
    implementation = build_routing(routing, VoteShape(4, 3, 3)).double()
    for parameter in implementation.parameters():
        nn.init.normal_(parameter, std=0.1)
    votes = torch.randn(2, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(implementation, (votes, bias)), f"seed {SEED}"
