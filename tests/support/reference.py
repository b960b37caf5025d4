"""The nets and losses written out from their equations: float64, slow, independent of the library.

Nothing of the library is imported, and none of its shortcuts is taken: convolutions are sums over
the positions of the kernel, the logits of the routing are stored and updated as in procedure 1,
softmax is written with exponentials, losses go class by class. Gradients come from autograd
through these formulas.

A net is described by the plain values of its settings, named as in a job's specification, and by
its state dict. `multiply` says how the products of convolutions and fully connected layers are
rounded: `exactly` not at all, `in_bf16` as mixed precision does. Sections and equations are those
of Sabour et al. 2017; shape letters: B batch, I primary capsules, P their dimensions, J classes,
D their dimensions, T targets, C, H, W channels, height and width of an image.
"""

import math
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

Settings = Mapping[str, Any]
Weights = Mapping[str, Tensor]
Multiply = Callable[..., Tensor]


class Output(NamedTuple):
    """What a net makes of a batch; float64."""

    lengths: Tensor
    """`[B, J]`: lengths of the class capsules, or the CNN's probabilities."""
    poses: Tensor | None
    """`[B, J, D]`."""
    reconstruction: Tensor | None
    """`[B, C, H, W]`, or `[B, T, C, H, W]` for targets `[B, T]`."""
    logits: Tensor | None
    """`[B, J]`, of the CNN."""
    kinks: list[Tensor]
    """For every value that goes into a ReLU or a maximum, how far it is from where the gradient
    jumps, in units of its layer's root mean square."""


class Terms(NamedTuple):
    """The terms of a loss, scalars."""

    total: Tensor
    classification: Tensor
    reconstruction: Tensor


def exactly(function: Multiply, *operands: Tensor) -> Tensor:
    """The product as it is."""
    return function(*operands)


def in_bf16(function: Multiply, *operands: Tensor) -> Tensor:
    """The product with its operands, its result and their gradients stored in bf16."""
    result: Tensor = RoundedProduct.apply(function, *operands)  # type: ignore[no-untyped-call]
    return result


class RoundedProduct(torch.autograd.Function):
    """What mixed precision does to one layer.

    The sums inside are taken in float64; hardware takes them in fp32, which is as good as exact
    beside a rounding to bf16.
    """

    @staticmethod
    def forward(ctx: Any, function: Multiply, *operands: Tensor) -> Tensor:
        """The rounded product of the rounded operands."""
        ctx.function = function
        stored = [rounded(operand) for operand in operands]
        ctx.save_for_backward(*stored)
        return rounded(function(*stored))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The rounded gradients, which the rounded gradient of the result gives."""
        operands = [operand.detach().requires_grad_() for operand in ctx.saved_tensors]
        with torch.enable_grad():
            result = ctx.function(*operands)
        gradients = torch.autograd.grad(result, operands, rounded(gradient))
        return (None, *(rounded(gradient) for gradient in gradients))


def rounded(values: Tensor) -> Tensor:
    """To the nearest bf16, kept as float64."""
    return values.to(torch.bfloat16).double()


def capsnet(
    settings: Settings,
    weights: Weights,
    images: Tensor,
    target: Tensor,
    multiply: Multiply = exactly,
) -> Output:
    """The CapsNet of section 4.

    Args:
        settings: Settings of the net as plain values.
        weights: Its state dict in float64.
        images: `[B, C, H, W]`, float64 in [0, 1].
        target: int64 `[B]`, or `[B, T]`: the classes from whose capsules is drawn.
        multiply: How products are rounded.
    """
    kinks: list[Tensor] = []
    convolution = Convolution(settings["conv_stride"], settings["conv_padding"])
    maps = multiply(convolution, images, weights["conv.weight"], weights["conv.bias"])
    capsules = primary_capsules(settings, weights, relu(maps, kinks), multiply)
    votes = torch.einsum("bip,ijpd->bijd", capsules, weights["class_caps.weight"])
    bias = weights.get("class_caps.bias", torch.zeros((), dtype=torch.float64))
    poses = route(settings["routing"], votes, bias, weights.get("class_caps.routing.prior"))
    drawn = None
    if settings["decoder"] is not None:
        drawn = draw(settings["image_shape"], weights, poses, target, multiply, kinks)
    return Output(length(poses), poses, drawn, None, kinks)


class Convolution:
    """A convolution with a stride and zeros around the image.

    As a function of images `[B, C, H, W]`, kernels `[F, C, k, k]` and biases `[F]` it gives
    `[B, F, rows, columns]`: the sum over the kernel's positions of what each contributes.
    """

    def __init__(self, stride: int, padding: int) -> None:
        self.stride = stride
        self.padding = (padding, padding)

    def __call__(self, images: Tensor, kernels: Tensor, bias: Tensor | None = None) -> Tensor:
        """Convolve."""
        side = kernels.shape[-1]
        padded = surround(images, *self.padding)
        rows = (padded.shape[2] - side) // self.stride + 1
        columns = (padded.shape[3] - side) // self.stride + 1
        maps = torch.zeros(len(images), len(kernels), rows, columns, dtype=torch.float64)
        for y, x in product(range(side), range(side)):
            seen = padded[:, :, y :: self.stride, x :: self.stride][:, :, :rows, :columns]
            maps = maps + torch.einsum("bcyx,fc->bfyx", seen, kernels[:, :, y, x])
        return maps if bias is None else maps + bias[:, None, None]


class SameConvolution(Convolution):
    """A convolution of stride 1 that keeps the size; of odd padding the larger half comes last."""

    def __init__(self, side: int) -> None:
        super().__init__(stride=1, padding=0)
        self.padding = ((side - 1) // 2, side // 2)


def surround(images: Tensor, before: int, after: int, value: float = 0) -> Tensor:
    """Rows and columns of `value` before and after those of images `[B, C, H, W]`."""
    batch, channels, height, width = images.shape
    size = (batch, channels, before + height + after, before + width + after)
    padded = torch.full(size, value, dtype=torch.float64)
    padded[:, :, before : before + height, before : before + width] = images
    return padded


def relu(values: Tensor, kinks: list[Tensor]) -> Tensor:
    """0 where a value is negative."""
    kinks.append(values.detach().abs().flatten() / values.detach().square().mean().sqrt())
    return values * (values > 0)


def primary_capsules(
    settings: Settings, weights: Weights, features: Tensor, multiply: Multiply
) -> Tensor:
    """Primary capsules `[B, I, P]` in the order type, row, column, gathered one by one."""
    types = settings["primary_types"]
    convolution = Convolution(settings["primary_stride"], settings["primary_padding"])
    operands = [features, weights["primary_caps.conv.weight"]]
    if settings["primary_coupling"] == "none":
        operands.append(weights["primary_caps.conv.bias"])
    maps = multiply(convolution, *operands)
    dim = maps.shape[1] // types
    inputs = []
    for kind, y, x in product(range(types), range(maps.shape[2]), range(maps.shape[3])):
        s = maps[:, dim * kind : dim * kind + dim, y, x]
        if settings["primary_coupling"] == "uniform":
            s = s / types + weights["primary_caps.bias"][kind]
        inputs.append(s)
    return squash(torch.stack(inputs, dim=1))


def squash(s: Tensor) -> Tensor:
    """Equation 1 along the last axis."""
    norm = length(s).unsqueeze(-1)
    return norm**2 / (1 + norm**2) * s / norm


def length(vectors: Tensor) -> Tensor:
    """Euclidean length along the last axis."""
    return (vectors * vectors).sum(dim=-1).sqrt()


def route(settings: Settings, votes: Tensor, bias: Tensor, prior: Tensor | None = None) -> Tensor:
    """Poses `[B, J, D]` from votes `[B, I, J, D]` by the routing that the settings name."""
    if settings["type"] == "self-attention":
        assert prior is not None
        return route_by_attention(votes, bias, prior)
    if settings["type"] == "uniform":
        return squash(votes.sum(dim=1) / votes.shape[2] + bias)
    return route_by_agreement(settings, votes, bias)


def route_by_agreement(settings: Settings, votes: Tensor, bias: Tensor) -> Tensor:
    """Procedure 1; `leaky` and `detach` as the settings of the dynamic routing say."""
    logits = torch.zeros(votes.shape[:3], dtype=torch.float64)
    for iteration in range(1, settings["iterations"] + 1):
        last = iteration == settings["iterations"]
        exponentials = logits.exp()
        leak = 1 if settings["leaky"] else 0  # the exponential of one more logit, 0
        coupling = exponentials / (exponentials.sum(dim=2, keepdim=True) + leak)
        if settings["detach"] and not last:
            coupling = coupling.detach()
        s = torch.einsum("bij,bijd->bjd", coupling, votes) + bias
        poses = squash(s)
        if not last:
            logits = logits + torch.einsum("bijd,bjd->bij", votes, poses)
    return poses


def route_by_attention(votes: Tensor, bias: Tensor, prior: Tensor) -> Tensor:
    """Self-attention routing (Efficient-CapsNet, section 3.2), with its I x I agreements."""
    agreements = torch.einsum("bijd,bkjd->bjik", votes, votes) / math.sqrt(votes.shape[-1])
    exponentials = agreements.sum(dim=3).exp()  # [B, J, I]
    coupling = exponentials / exponentials.sum(dim=1, keepdim=True) + prior.T
    s = torch.einsum("bji,bijd->bjd", coupling, votes) + bias
    norm = length(s).unsqueeze(-1)
    return (1 - torch.exp(-norm)) * s / norm


def draw(
    image_shape: tuple[int, int, int],
    weights: Weights,
    poses: Tensor,
    target: Tensor,
    multiply: Multiply,
    kinks: list[Tensor],
) -> Tensor:
    """The decoder of section 4.1: every target is drawn from its own capsule alone."""
    several = target if target.dim() == 2 else target.unsqueeze(1)
    masked = torch.zeros(*several.shape, *poses.shape[1:], dtype=torch.float64)  # [B, T, J, D]
    for sample, labels in enumerate(several.tolist()):
        for number, label in enumerate(labels):
            masked[sample, number, label] = poses[sample, label]
    values = masked.reshape(several.numel(), -1)
    pixels = fully_connected("decoder.layers.", weights, values, multiply, kinks)
    return (1 / (1 + torch.exp(-pixels))).reshape(*target.shape, *image_shape)


def fully_connected(
    prefix: str, weights: Weights, values: Tensor, multiply: Multiply, kinks: list[Tensor]
) -> Tensor:
    """Fully connected layers in the order of their numbers, with ReLU between them."""
    layers = numbered(prefix, weights)
    for layer in layers:
        if layer != layers[0]:
            values = relu(values, kinks)
        values = multiply(affine, values, weights[f"{layer}.weight"], weights[f"{layer}.bias"])
    return values


def affine(values: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    """`[B, N]` from `[B, M]`, a matrix `[N, M]` and a bias `[N]`."""
    return torch.einsum("bm,nm->bn", values, matrix) + bias


def numbered(prefix: str, weights: Weights) -> list[str]:
    """Names of the layers `prefix0`, `prefix2`, ... that have weights, in order."""
    names = {name.rpartition(".")[0] for name in weights if name.startswith(prefix)}
    return sorted(names, key=lambda name: int(name.removeprefix(prefix)))


def cnn(
    settings: Settings,
    weights: Weights,
    images: Tensor,
    target: Tensor,
    multiply: Multiply = exactly,
) -> Output:
    """The baseline of section 5.1 without its dropout; `target` says by its shape how many."""
    kinks: list[Tensor] = []
    values = images
    for layer in numbered("features.", weights):
        kernels, bias = weights[f"{layer}.weight"], weights[f"{layer}.bias"]
        maps = multiply(SameConvolution(kernels.shape[-1]), values, kernels, bias)
        values = pool(relu(maps, kinks), settings["pool"], kinks)
    logits = fully_connected("head.", weights, values.flatten(1), multiply, kinks)
    exponentials = logits.exp()
    probabilities = exponentials / exponentials.sum(dim=1, keepdim=True)
    if target.dim() == 2:
        probabilities = exponentials / (1 + exponentials)
    return Output(probabilities, None, None, logits, kinks)


def pool(values: Tensor, side: int, kinks: list[Tensor]) -> Tensor:
    """The largest value of each side x side window; windows at the edge may be smaller."""
    if side == 1:
        return values
    batch, channels, height, width = values.shape
    rows, columns = math.ceil(height / side), math.ceil(width / side)
    padded = torch.full((batch, channels, rows * side, columns * side), -1.0, dtype=torch.float64)
    padded[:, :, :height, :width] = values  # of a ReLU: none is below 0
    windows = padded.reshape(batch, channels, rows, side, columns, side)
    windows = windows.transpose(3, 4).flatten(4)  # [B, channels, rows, columns, side * side]
    largest, second = windows.detach().topk(2, dim=-1).values.unbind(dim=-1)
    kinks.append((largest - second)[largest > 0] / values.detach().square().mean().sqrt())
    kept: Tensor = windows.max(dim=-1).values
    return kept


def loss_terms(settings: Settings, output: Output, labels: Tensor, drawings: Tensor) -> Terms:
    """The loss that the settings name, averaged over the batch.

    Args:
        settings: Settings of the loss as plain values.
        output: What a net made of the images.
        labels: int64 `[B]`, or `[B, T]`.
        drawings: What should have been drawn, of the shape of `output.reconstruction`.
    """
    batch, classes = output.lengths.shape
    present = torch.zeros(batch, classes, dtype=torch.float64)
    for sample, label in enumerate(labels.tolist()):
        present[sample, label] = 1
    classification = (
        margin(settings, output.lengths, present)
        if settings["type"] == "margin"
        else cross_entropy(settings, output, present, several=labels.dim() == 2)
    )
    if output.reconstruction is None:
        return Terms(classification, classification, torch.zeros((), dtype=torch.float64))
    errors = (drawings - output.reconstruction) ** 2
    reconstruction = errors.sum() / batch
    total = classification + settings["reconstruction_weight"] * reconstruction
    return Terms(total, classification, reconstruction)


def margin(settings: Settings, lengths: Tensor, present: Tensor) -> Tensor:
    """Equation 4, class by class."""
    batch, classes = lengths.shape
    total = torch.zeros((), dtype=torch.float64)
    for k in range(classes):
        shortage = torch.clamp(settings["m_plus"] - lengths[:, k], min=0)
        excess = torch.clamp(lengths[:, k] - settings["m_minus"], min=0)
        loss = present[:, k] * shortage**2
        loss = loss + settings["lambda"] * (1 - present[:, k]) * excess**2
        total = total + loss.sum() / batch
    return total / (2 * classes) if settings["scale"] == "half-mean" else total


def cross_entropy(settings: Settings, output: Output, present: Tensor, several: bool) -> Tensor:
    """Of a softmax over the classes; where several are present, of a sigmoid for each class."""
    logits = output.logits
    if logits is None:
        logits = settings["scale"] * (output.lengths - 0.5)
    exponentials = logits.exp()
    if several:
        share = exponentials / (1 + exponentials)
        loss = -(present * share.log() + (1 - present) * (1 - share).log())
    else:
        share = exponentials / exponentials.sum(dim=1, keepdim=True)
        loss = -present * share.log()
    return loss.sum() / len(logits)
