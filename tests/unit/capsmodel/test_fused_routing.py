"""The fused routing against procedure 1 in float64, its gradients, and what PyTorch asks of it.

Every run draws its numbers anew; a failure names the seed, and CAPS_TEST_SEED repeats it.
"""

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from capsmodel.capsnet import CapsNet
from capsmodel.config import CapsNetConfig, DynamicRoutingConfig, UniformRoutingConfig
from capsmodel.kernels import KernelError, compiler, force_kernels
from capsmodel.routing import VoteShape, build_routing
from capsmodel.routing.fused import (
    can_fuse,
    dynamic_routing,
    dynamic_routing_backward,
    fused_routing,
    routing_lanes,
)
from capsmodel.routing.trace import RoutingTrace
from support import reference
from support.seed import SEED

POSE_ERROR = 1e-5
"""Largest relative error of poses; seen: 4e-7."""
GRADIENT_ERROR = 1e-4
"""Largest relative error of any gradient; seen: 6e-7."""


class Sizes(NamedTuple):
    """B, I, J, P, D."""

    batch: int
    inputs: int
    classes: int
    capsule_dim: int
    dim: int


SMALL = Sizes(batch=5, inputs=21, classes=4, capsule_dim=3, dim=6)
SHAPES = [
    Sizes(1, 7, 2, 1, 4),
    Sizes(257, 7, 17, 3, 24),
    Sizes(16, 50, 100, 16, 4),
    Sizes(1, 4000, 2, 8, 16),
    Sizes(33, 19, 3, 3, 1),
    Sizes(257, 40, 10, 8, 16),
    Sizes(2, 9, 17, 16, 24),
    Sizes(17, 1, 1, 1, 2),
]
PASSES = [
    DynamicRoutingConfig(iterations=iterations, leaky=leaky, detach=detach)
    for iterations in range(1, 6)
    for leaky in (False, True)
    for detach in (False, True)
]
THREE_PASSES = DynamicRoutingConfig(iterations=3)


@pytest.fixture(autouse=True)
def native_kernels(record_property: Callable[[str, object], None]) -> Iterator[None]:
    """Kernels that cannot be compiled fail the test, but where there is no compiler at all."""
    if "CXX" not in os.environ and not any(map(shutil.which, ("g++", "c++", "clang++"))):
        pytest.skip("no C++ compiler is installed")
    record_property("seed", SEED)
    torch.manual_seed(SEED)
    print(f"CAPS_TEST_SEED={SEED}")
    with force_kernels("native"):
        yield


def draw(sizes: Sizes, bias: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:
    """Capsules, weight and bias that make poses neither short nor 1 long."""
    batch, inputs, classes, capsule_dim, dim = sizes
    scale = (inputs * dim) ** -0.25 * capsule_dim**-0.5
    capsules = torch.randn(batch, inputs, capsule_dim) * scale
    weight = torch.randn(inputs, classes, capsule_dim, dim) * scale * classes**0.5
    return capsules, weight, torch.randn(classes, dim) * 0.2 if bias else None


def fused(config: DynamicRoutingConfig) -> Callable[..., Tensor]:
    """`fused_routing` with the settings of `config`."""

    def route(capsules: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        settings = {name: getattr(config, name) for name in ("iterations", "leaky", "detach")}
        return fused_routing(capsules, weight, bias, **settings)

    return route


def expected(config: Any) -> Callable[..., Tensor]:
    """The reference with these settings, as a function of the same arguments."""

    def route(capsules: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        votes = torch.einsum("bip,ijpd->bijd", capsules, weight)
        zero = torch.zeros((), dtype=votes.dtype)
        return reference.route(config.model_dump(), votes, zero if bias is None else bias)

    return route


def poses_and_gradients(
    route: Callable[..., Tensor], given: tuple[Tensor | None, ...], upstream: Tensor
) -> list[Tensor]:
    """Poses and the gradients of all that is given."""
    leaves = [None if each is None else each.detach().clone().requires_grad_() for each in given]
    poses = route(*leaves)
    return [
        poses.detach(),
        *torch.autograd.grad(poses, [leaf for leaf in leaves if leaf is not None], upstream),
    ]


def assert_equals_reference(
    config: Any, route: Callable[..., Tensor], given: tuple[Tensor | None, ...]
) -> None:
    capsules, weight, _ = given
    assert capsules is not None
    assert weight is not None
    upstream = torch.randn(len(capsules), weight.shape[1], weight.shape[3])
    actual = poses_and_gradients(route, given, upstream)
    exact = tuple(None if each is None else each.double() for each in given)
    wanted = poses_and_gradients(expected(config), exact, upstream.double())
    limits = [POSE_ERROR, *[GRADIENT_ERROR] * 3]
    for found, right, limit in zip(actual, wanted, limits, strict=False):
        assert found.dtype == torch.float32
        assert relative_error(found, right) < limit


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """Of all elements together."""
    return float((actual - exact).detach().norm() / exact.detach().norm())


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("config", PASSES, ids=str)
def test_equals_procedure_1_in_float64(config: DynamicRoutingConfig, bias: bool) -> None:
    assert_equals_reference(config, fused(config), draw(SMALL, bias))


@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_equals_procedure_1_in_every_shape(sizes: Sizes) -> None:
    assert_equals_reference(THREE_PASSES, fused(THREE_PASSES), draw(sizes))


def test_the_papers_shape_equals_procedure_1() -> None:
    assert_equals_reference(
        THREE_PASSES, fused(THREE_PASSES), draw(Sizes(19, 1152, 10, 8, 16), bias=False)
    )


def test_uniform_routing_equals_its_reference() -> None:
    config = UniformRoutingConfig()
    routing = build_routing(config, VoteShape(SMALL.inputs, SMALL.classes, SMALL.dim))
    assert_equals_reference(config, routing.route, draw(SMALL))


def test_many_classes_of_many_dimensions() -> None:
    """Votes of one capsule that fill megabytes."""
    assert_equals_reference(THREE_PASSES, fused(THREE_PASSES), draw(Sizes(2, 3, 1000, 2, 256)))


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    capsules, weight, bias = draw(SMALL)
    assert bias is not None
    upstream = torch.randn(SMALL.batch, SMALL.classes, SMALL.dim)
    every = poses_and_gradients(fused(THREE_PASSES), (capsules, weight, bias), upstream)[1:]
    for number, gradient in enumerate(every):
        given = [capsules, weight, bias]
        leaf = given[number] = given[number].clone().requires_grad_()
        fused(THREE_PASSES)(*given).backward(upstream)
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, gradient)


def test_two_forwards_before_one_backward() -> None:
    first, second = draw(SMALL), draw(SMALL)
    upstream = torch.randn(SMALL.batch, SMALL.classes, SMALL.dim)
    alone = [
        poses_and_gradients(fused(THREE_PASSES), given, upstream)[1] for given in (first, second)
    ]
    leaves = [given[0].clone().requires_grad_() for given in (first, second)]
    poses = [
        fused(THREE_PASSES)(leaf, *given[1:])
        for leaf, given in zip(leaves, (first, second), strict=True)
    ]
    total = sum((each * upstream).sum() for each in poses)
    assert isinstance(total, Tensor)
    for found, right in zip(torch.autograd.grad(total, leaves), alone, strict=True):
        assert torch.equal(found, right)


def test_a_backward_may_be_repeated() -> None:
    capsules, weight, bias = draw(SMALL)
    capsules.requires_grad_()
    poses = fused(THREE_PASSES)(capsules, weight, bias)
    upstream = torch.randn_like(poses)
    (first,) = torch.autograd.grad(poses, capsules, upstream, retain_graph=True)
    (second,) = torch.autograd.grad(poses, capsules, upstream)
    assert torch.equal(first, second)


@pytest.mark.parametrize("sizes", [Sizes(1, 700, 10, 8, 16), Sizes(100, 333, 5, 8, 16)], ids=str)
def test_threads_do_not_change_a_bit(sizes: Sizes) -> None:
    given = draw(sizes)
    upstream = torch.randn(sizes.batch, sizes.classes, sizes.dim)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)  # set back by the fixture `one_thread`
        results.append(poses_and_gradients(fused(THREE_PASSES), given, upstream))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_other_layouts_in_memory_are_read_rightly_and_nothing_is_changed() -> None:
    given = draw(SMALL)
    upstream = torch.randn(SMALL.classes, SMALL.dim, SMALL.batch).permute(2, 0, 1)
    turned = tuple(
        each.permute(*range(each.dim())[::-1]).contiguous().permute(*range(each.dim())[::-1])
        for each in given
        if each is not None
    )
    assert not any(each.is_contiguous() for each in (*turned, upstream))
    before = [each.clone() for each in (*turned, upstream)]
    leaves = [each.detach().requires_grad_() for each in turned]
    poses = fused(THREE_PASSES)(*leaves)
    gradients = torch.autograd.grad(poses, leaves, upstream)
    right = poses_and_gradients(fused(THREE_PASSES), given, upstream)
    assert all(map(torch.equal, (poses, *gradients), right))
    assert all(map(torch.equal, (*turned, upstream), before))


def samples_last(capsules: Tensor) -> Tensor:
    """The same capsules `[B, I, P]`, in memory `[I, P, B]`: as primary capsules come."""
    return capsules.permute(1, 2, 0).contiguous().permute(2, 0, 1)


@pytest.mark.parametrize("batch", [1, 2, 15, 16, 17, 32, 48])
@pytest.mark.parametrize("capsule_dim", [1, 3, 8, 19])
def test_capsules_whose_samples_are_last_in_memory(batch: int, capsule_dim: int) -> None:
    """Where they fill whole vectors they are read in place; their gradient lies as they do."""
    sizes = Sizes(batch, inputs=21, classes=4, capsule_dim=capsule_dim, dim=6)
    given = draw(sizes)
    turned = samples_last(given[0])
    upstream = torch.randn(batch, sizes.classes, sizes.dim)
    before = turned.clone()
    results = []
    for capsules in (given[0], turned):
        tensors = [capsules, *(each for each in given[1:] if each is not None)]
        leaves = [each.detach().requires_grad_() for each in tensors]
        poses = fused(THREE_PASSES)(*leaves)
        results.append([poses, *torch.autograd.grad(poses, leaves, upstream)])
    assert all(map(torch.equal, *results))
    assert results[0][1].is_contiguous()
    assert results[1][1].stride() == turned.stride()
    assert torch.equal(turned, before)


def arguments(
    keep: bool, requires_grad: bool, turned: bool = False, batch: int = SMALL.batch
) -> tuple[Any, ...]:
    capsules, weight, bias = draw(SMALL._replace(batch=batch))
    tensors = [samples_last(capsules) if turned else capsules, weight, bias]
    leaves = [each.requires_grad_(requires_grad) for each in tensors if each is not None]
    return (*leaves, 3, True, False, keep)


@pytest.mark.parametrize("turned", [False, True], ids=["samples first", "samples last"])
@pytest.mark.parametrize(("keep", "requires_grad"), [(True, True), (True, False), (False, False)])
def test_pytorchs_checks_of_the_operator(keep: bool, requires_grad: bool, turned: bool) -> None:
    checked = torch.library.opcheck(dynamic_routing, arguments(keep, requires_grad, turned))
    assert set(checked.values()) == {"SUCCESS"}


@pytest.mark.parametrize(("turned", "batch"), [(False, 5), (True, 5), (True, 16), (True, 1)])
@pytest.mark.parametrize("wanted", [[True, True, True], [False, True, False]])
def test_pytorchs_checks_of_the_gradients_operator(
    wanted: list[bool], turned: bool, batch: int
) -> None:
    capsules, weight, bias, *settings = arguments(True, False, turned, batch)
    poses, *kept = dynamic_routing(capsules, weight, bias, *settings)
    given = (torch.randn_like(poses), capsules, weight, *kept, True, False, wanted)
    checked = torch.library.opcheck(dynamic_routing_backward, given)
    assert set(checked.values()) == {"SUCCESS"}


def test_nothing_is_kept_where_no_gradient_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []

    def watched(*given: Any) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...] = dynamic_routing(*given)
        kept.append(sum(result.numel() for result in results[1:]))
        return results

    monkeypatch.setattr("capsmodel.routing.fused.dynamic_routing", watched)
    capsules, weight, bias = draw(SMALL)
    leaf = capsules.clone().requires_grad_()
    without = fused(THREE_PASSES)(capsules, weight, bias)
    with torch.no_grad():
        also_without = fused(THREE_PASSES)(leaf, weight, bias)
    with_gradient = fused(THREE_PASSES)(leaf, weight, bias)
    assert kept[:2] == [0, 0]
    groups = -(-SMALL.batch // routing_lanes())
    per_lane = 3 * SMALL.classes * SMALL.dim + 2 * SMALL.inputs * SMALL.classes
    assert kept[2] == per_lane * groups * routing_lanes()
    assert torch.equal(without, with_gradient)
    assert torch.equal(also_without, with_gradient)
    assert not without.requires_grad


def test_a_gradient_of_the_gradient_is_refused() -> None:
    capsules, weight, bias = draw(SMALL)
    capsules.requires_grad_()
    poses = fused(THREE_PASSES)(capsules, weight, bias)
    (gradient,) = torch.autograd.grad(poses.square().sum(), capsules, create_graph=True)
    with pytest.raises(NotImplementedError, match="CAPS_KERNELS=torch"):
        gradient.sum().backward()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("iterations", [1, 3])
def test_what_is_not_finite_comes_out_as_nan(value: float, iterations: int) -> None:
    capsules, weight, bias = draw(SMALL)
    capsules[2, 5, 1] = value
    config = DynamicRoutingConfig(iterations=iterations)
    poses = fused(config)(capsules, weight, bias)
    assert poses[2].isnan().all()
    others = [sample for sample in range(SMALL.batch) if sample != 2]
    assert poses[others].isfinite().all()
    weight[4, 1, 2, 3] = value
    assert fused(config)(capsules, weight, bias)[:, 1].isnan().all()


def test_zeros_give_zeros() -> None:
    capsules, weight, _ = draw(SMALL)
    given = (torch.zeros_like(capsules), weight, None)
    upstream = torch.randn(SMALL.batch, SMALL.classes, SMALL.dim)
    poses, *gradients = poses_and_gradients(fused(THREE_PASSES), given, upstream)
    assert not poses.any()
    assert all(not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("leaky", [False, True])
def test_extreme_logits_do_not_overflow(leaky: bool) -> None:
    capsules, weight, bias = draw(SMALL)
    given = (capsules, weight * 1e4, bias)
    config = DynamicRoutingConfig(iterations=3, leaky=leaky)
    upstream = torch.randn(SMALL.batch, SMALL.classes, SMALL.dim)
    poses, *gradients = poses_and_gradients(fused(config), given, upstream)
    assert all(each.isfinite().all() for each in (poses, *gradients))
    routing = build_routing(config, VoteShape(SMALL.inputs, SMALL.classes, SMALL.dim))
    with force_kernels("torch"):
        torch.testing.assert_close(poses, routing.route(*given), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-9, 1e8, 1e15])
def test_short_and_long_sums_are_as_exact(scale: float) -> None:
    capsules, weight, _ = draw(SMALL)
    one_pass = DynamicRoutingConfig(iterations=1)
    assert_equals_reference(one_pass, fused(one_pass), (capsules * scale, weight, None))


def test_longer_sums_count_as_in_pytorchs_own_squash() -> None:
    capsules, weight, _ = draw(SMALL)
    given = (capsules * 1e30, weight, None)
    one_pass = DynamicRoutingConfig(iterations=1)
    upstream = torch.randn(SMALL.batch, SMALL.classes, SMALL.dim)
    poses, *gradients = poses_and_gradients(fused(one_pass), given, upstream)
    routing = build_routing(one_pass, VoteShape(SMALL.inputs, SMALL.classes, SMALL.dim))
    with force_kernels("torch"):
        torch.testing.assert_close(poses, routing.route(*given))
    assert all(not gradient.any() for gradient in gradients)


def test_where_it_applies() -> None:
    capsules, weight, _ = draw(SMALL)
    assert can_fuse(capsules, weight)
    assert can_fuse(capsules.bfloat16(), weight)
    assert not can_fuse(capsules, weight, RoutingTrace())
    assert not can_fuse(capsules.double(), weight.double())
    assert not can_fuse(capsules[:0], weight)
    assert not can_fuse(capsules.to("meta"), weight.to("meta"))
    with force_kernels("torch"):
        assert not can_fuse(capsules, weight)


@pytest.mark.parametrize("config", [THREE_PASSES, UniformRoutingConfig()], ids=str)
def test_route_takes_the_fused_routing_and_pytorchs_where_it_must(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def watched(*given: Any, **settings: Any) -> Tensor:
        taken.append(settings["iterations"])
        return fused_routing(*given, **settings)

    monkeypatch.setattr("capsmodel.routing.choice.fused_routing", watched)
    routing = build_routing(config, VoteShape(SMALL.inputs, SMALL.classes, SMALL.dim))
    capsules, weight, bias = draw(SMALL)
    assert bias is not None
    poses = routing.route(capsules, weight, bias)
    assert len(taken) == 1
    trace = RoutingTrace()
    torch.testing.assert_close(routing.route(capsules, weight, bias, trace), poses)
    assert len(trace) == taken[0]
    exact = routing.route(capsules.double(), weight.double(), bias.double())
    torch.testing.assert_close(exact.float(), poses)
    assert len(taken) == 1
    with torch.autocast("cpu", torch.bfloat16):
        rounded = routing.route(capsules.bfloat16(), weight, bias)
    assert len(taken) == 2
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, routing.route(capsules.bfloat16().float(), weight, bias))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_a_net_computes_the_same_with_either_kernels(
    tiny_net: CapsNetConfig, training: bool, bf16: bool
) -> None:
    net = CapsNet(tiny_net).train(training)
    images, target = torch.rand(6, 1, 28, 28), torch.arange(6)
    results: dict[str, list[Tensor]] = {}
    for kernels in ("native", "torch"):
        rounding = torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()
        with force_kernels(kernels), rounding, torch.set_grad_enabled(training):  # type: ignore[arg-type]
            output = net(images, target)
        assert output.poses is not None
        assert output.reconstruction is not None
        results[kernels] = [output.lengths, output.poses, output.reconstruction]
        if training:
            loss = output.lengths.square().sum() + output.reconstruction.float().square().sum()
            results[kernels] += torch.autograd.grad(loss, list(net.parameters()))
    limit = 3e-2 if bf16 else GRADIENT_ERROR
    for found, right in zip(results["native"], results["torch"], strict=True):
        assert relative_error(found.float(), right.float()) < limit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"capsules": torch.zeros(2, 3)}, r"\[2, 3\]"),
        ({"weight": torch.zeros(21, 4, 2, 6)}, r"expected \[I, J, P, D\] = \[21, J, 3, D\]"),
        ({"bias": torch.zeros(4, 5)}, r"bias has shape \[4, 5\]"),
        ({"capsules": torch.zeros(0, 21, 3)}, "empty"),
        ({"capsules": torch.zeros(2, 21, 3).double()}, "capsules is torch.float64"),
        ({"bias": torch.zeros(4, 6).bfloat16()}, "bias is torch.bfloat16"),
        ({"iterations": 0}, "iterations is 0"),
    ],
    ids=str,
)
def test_unfit_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    capsules, weight, bias = draw(SMALL)
    given = {"capsules": capsules, "weight": weight, "bias": bias, "iterations": 3, **change}
    with pytest.raises(ValueError, match=message):
        fused_routing(**given)


def test_without_kernels_the_operator_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capsmodel.kernels._loaded", {("routing",): KernelError("no C++ compiler")})
    with pytest.raises(KernelError, match=r"no C\+\+ compiler"):
        fused_routing(*draw(SMALL), iterations=3)


def test_scratch_memory_that_cannot_be_had_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        routing_declared = True

        def routing_lanes(self) -> int:
            return routing_lanes_here

        def routing_forward(self, *_: object) -> int:
            return 1

    routing_lanes_here = routing_lanes()
    monkeypatch.setattr("capsmodel.routing.fused.loaded_library", lambda source: Library())
    with pytest.raises(MemoryError, match="smaller batch"):
        fused_routing(*draw(SMALL), iterations=3)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names processors of this family")
@pytest.mark.parametrize(("processor", "lanes"), [("x86-64-v3", 8), ("x86-64", 4)])
@pytest.mark.slow
def test_processors_with_narrower_vectors_compute_the_same(
    processor: str, lanes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lanes == 8 and " avx2 " not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no AVX2")
    flags = [flag for flag in compiler.FLAGS if not flag.startswith("-march")]
    monkeypatch.setattr(compiler, "FLAGS", (*flags, f"-march={processor}"))
    monkeypatch.setenv(compiler.CACHE_VARIABLE, str(tmp_path))
    library = compiler.load_library("routing")
    monkeypatch.setattr("capsmodel.routing.fused.loaded_library", lambda source: library)
    assert routing_lanes() == lanes
    for sizes in (SMALL, *SHAPES[:3]):
        capsules, weight, bias = draw(sizes)
        for each in (capsules, samples_last(capsules)):
            assert_equals_reference(THREE_PASSES, fused(THREE_PASSES), (each, weight, bias))
