"""The routings against procedure 1 of the paper, written out in float64."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from capsmodel.config import (
    DynamicRoutingConfig,
    RoutingConfig,
    SelfAttentionRoutingConfig,
    UniformRoutingConfig,
)
from capsmodel.functional import compute_votes, exponential_squash, squash
from capsmodel.routing import Routing, VoteShape, build_routing
from capsmodel.routing.dynamic import coupling_coefficients
from capsmodel.routing.trace import RoutingTrace

SHAPE = VoteShape(inputs=7, classes=4, dim=5)
CONFIGS = [
    DynamicRoutingConfig(iterations=1),
    DynamicRoutingConfig(iterations=2),
    DynamicRoutingConfig(iterations=3),
    UniformRoutingConfig(),
]
ALL = [*CONFIGS, DynamicRoutingConfig(leaky=True), SelfAttentionRoutingConfig()]


def build(config: RoutingConfig, shape: VoteShape = SHAPE) -> Routing:
    return build_routing(config, shape)


def procedure_1(votes: np.ndarray, iterations: int) -> np.ndarray:
    """Poses `[J, D]` of one sample's votes `[J, I, D]`, with logits that are stored and updated."""
    classes, inputs, _ = votes.shape
    logits = np.zeros((inputs, classes))
    for _ in range(iterations):
        exponentials = np.exp(logits)
        coupling = exponentials / exponentials.sum(axis=1, keepdims=True)
        poses = []
        for j in range(classes):
            s = sum(coupling[i, j] * votes[j, i] for i in range(inputs))
            norm = np.linalg.norm(s)
            poses.append(norm**2 / (1 + norm**2) * s / norm)
        for i in range(inputs):
            for j in range(classes):
                logits[i, j] += votes[j, i] @ poses[j]
    return np.array(poses)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_equals_procedure_1(config: RoutingConfig) -> None:
    votes = torch.randn(3, 4, 7, 5)
    iterations = getattr(config, "iterations", 1)
    expected = [procedure_1(sample.double().numpy(), iterations) for sample in votes]
    actual = build(config)(votes)
    np.testing.assert_allclose(actual.numpy(), np.stack(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_gradients_flow_through_every_pass(config: RoutingConfig) -> None:
    votes = torch.randn(2, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(build(config), (votes,))


def test_coupling_sums_to_one_over_the_parents() -> None:
    coupling = coupling_coefficients(torch.randn(2, 4, 7, 5), torch.randn(2, 4, 5))
    assert coupling.shape == (2, 4, 7)
    torch.testing.assert_close(coupling.sum(dim=1), torch.ones(2, 7))


def test_one_pass_is_uniform() -> None:
    votes = torch.randn(2, 4, 7, 5)
    one_pass = build(DynamicRoutingConfig(iterations=1))(votes)
    assert torch.equal(one_pass, build(UniformRoutingConfig())(votes))


@pytest.mark.parametrize("iterations", [2, 3])
def test_detach_changes_gradients_only_where_an_earlier_pass_has_coupling(iterations) -> None:
    votes = torch.randn(2, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    poses, gradients = {}, {}
    for detach in (False, True):
        routing = build(DynamicRoutingConfig(iterations=iterations, detach=detach))
        poses[detach] = routing(votes)
        (gradients[detach],) = torch.autograd.grad(poses[detach].square().sum(), votes)
    assert torch.equal(poses[False], poses[True])
    # The first pass has constant coefficients, so with two passes there is nothing to detach.
    assert torch.allclose(gradients[False], gradients[True]) == (iterations == 2)


def test_detach_holds_the_earlier_coefficients_constant() -> None:
    """Against finite differences of a routing whose second pass has fixed coefficients."""
    votes = torch.randn(1, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    routing = build(DynamicRoutingConfig(iterations=3, detach=True))
    first = build(DynamicRoutingConfig(iterations=1))
    constant = coupling_coefficients(votes, first(votes)).detach()

    def with_constant_second_pass(votes: torch.Tensor) -> torch.Tensor:
        pose_1 = first(votes)
        pose_2 = squash(torch.einsum("bji,bjid->bjd", constant, votes))
        coupling = coupling_coefficients(votes, pose_1 + pose_2)
        return squash(torch.einsum("bji,bjid->bjd", coupling, votes))

    assert gradcheck(with_constant_second_pass, (votes,))
    (expected,) = torch.autograd.grad(with_constant_second_pass(votes).sum(), votes)
    (actual,) = torch.autograd.grad(routing(votes).sum(), votes)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_samples_do_not_influence_each_other(config: RoutingConfig) -> None:
    routing = build(config)
    votes = torch.randn(6, 4, 7, 5)
    together = routing(votes)
    order = torch.randperm(6)
    torch.testing.assert_close(routing(votes[order]), together[order])
    torch.testing.assert_close(torch.cat([routing(votes[:2]), routing(votes[2:])]), together)


def test_route_makes_the_votes_and_stays_in_fp32_under_autocast() -> None:
    routing = build(DynamicRoutingConfig())
    capsules, weight = torch.randn(2, 7, 3), torch.randn(7, 4, 3, 5)
    expected = routing(compute_votes(capsules, weight))
    with torch.autocast("cpu", torch.bfloat16):
        poses = routing.route(capsules, weight)
    assert poses.dtype == torch.float32
    torch.testing.assert_close(poses, expected)


@pytest.mark.parametrize("config", ALL, ids=str)
def test_a_trace_records_every_pass_and_changes_nothing(config: RoutingConfig) -> None:
    votes, bias = torch.randn(2, 4, 7, 5), torch.randn(4, 5)
    routing, trace = build(config), RoutingTrace()
    poses = routing(votes, bias, trace)
    assert torch.equal(poses, routing(votes, bias))
    passes = getattr(config, "iterations", 1)
    assert len(trace) == passes
    assert trace.coupling.shape == trace.agreement.shape == (passes, 2, 4, 7)
    assert trace.entropy.shape == (passes, 2, 7)
    last_agreement = torch.einsum("bjid,bjd->bji", votes, poses)
    torch.testing.assert_close(trace.agreement[-1], last_agreement)
    s = torch.einsum("bji,bjid->bjd", trace.coupling[-1], votes) + bias
    squash_used = exponential_squash if config.type == "self-attention" else squash
    torch.testing.assert_close(squash_used(s), poses)


@pytest.mark.parametrize(("leaky", "choices"), [(False, 4), (True, 5)])
def test_entropy_starts_at_its_maximum_and_falls(leaky: bool, choices: int) -> None:
    trace = RoutingTrace()
    build(DynamicRoutingConfig(iterations=5, leaky=leaky))(3 * torch.randn(2, 4, 7, 5), None, trace)
    torch.testing.assert_close(trace.entropy[0], torch.full((2, 7), math.log(choices)))
    assert trace.entropy[4].mean() < trace.entropy[1].mean() < trace.entropy[0].mean()


def test_a_leak_takes_its_share() -> None:
    trace = RoutingTrace()
    build(DynamicRoutingConfig(iterations=2, leaky=True))(torch.randn(2, 4, 7, 5), None, trace)
    torch.testing.assert_close(trace.coupling[0], torch.full((2, 4, 7), 1 / 5))
    assert (trace.coupling[1].sum(dim=1) < 1).all()


def test_the_bias_is_added_in_every_pass() -> None:
    votes, bias = torch.randn(2, 4, 7, 5), torch.randn(4, 5)
    expected_first = squash(votes.mean(dim=2) * 7 / 4 + bias)
    torch.testing.assert_close(
        build(DynamicRoutingConfig(iterations=1))(votes, bias), expected_first
    )
    coupling = coupling_coefficients(votes, expected_first)
    expected = squash(torch.einsum("bji,bjid->bjd", coupling, votes) + bias)
    torch.testing.assert_close(build(DynamicRoutingConfig(iterations=2))(votes, bias), expected)
