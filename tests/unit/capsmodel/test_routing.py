"""The routings against procedure 1 of the paper, written out in float64."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from capsmodel.config import DynamicRoutingConfig, RoutingConfig, UniformRoutingConfig
from capsmodel.functional import compute_votes, squash
from capsmodel.routing import build_routing
from capsmodel.routing.dynamic import coupling_coefficients

CONFIGS = [
    DynamicRoutingConfig(iterations=1),
    DynamicRoutingConfig(iterations=2),
    DynamicRoutingConfig(iterations=3),
    UniformRoutingConfig(),
]


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
    actual = build_routing(config)(votes)
    np.testing.assert_allclose(actual.numpy(), np.stack(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_gradients_flow_through_every_pass(config: RoutingConfig) -> None:
    votes = torch.randn(2, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(build_routing(config), (votes,))


def test_coupling_sums_to_one_over_the_parents() -> None:
    coupling = coupling_coefficients(torch.randn(2, 4, 7, 5), torch.randn(2, 4, 5))
    assert coupling.shape == (2, 4, 7)
    torch.testing.assert_close(coupling.sum(dim=1), torch.ones(2, 7))


def test_one_pass_is_uniform() -> None:
    votes = torch.randn(2, 4, 7, 5)
    one_pass = build_routing(DynamicRoutingConfig(iterations=1))(votes)
    assert torch.equal(one_pass, build_routing(UniformRoutingConfig())(votes))


@pytest.mark.parametrize("iterations", [2, 3])
def test_detach_changes_gradients_only_where_an_earlier_pass_has_coupling(iterations) -> None:
    votes = torch.randn(2, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    poses, gradients = {}, {}
    for detach in (False, True):
        routing = build_routing(DynamicRoutingConfig(iterations=iterations, detach=detach))
        poses[detach] = routing(votes)
        (gradients[detach],) = torch.autograd.grad(poses[detach].square().sum(), votes)
    assert torch.equal(poses[False], poses[True])
    # The first pass has constant coefficients, so with two passes there is nothing to detach.
    assert torch.allclose(gradients[False], gradients[True]) == (iterations == 2)


def test_detach_holds_the_earlier_coefficients_constant() -> None:
    """Against finite differences of a routing whose second pass has fixed coefficients."""
    votes = torch.randn(1, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    routing = build_routing(DynamicRoutingConfig(iterations=3, detach=True))
    first = build_routing(DynamicRoutingConfig(iterations=1))
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
    routing = build_routing(config)
    votes = torch.randn(6, 4, 7, 5)
    together = routing(votes)
    order = torch.randperm(6)
    torch.testing.assert_close(routing(votes[order]), together[order])
    torch.testing.assert_close(torch.cat([routing(votes[:2]), routing(votes[2:])]), together)


def test_route_makes_the_votes_and_stays_in_fp32_under_autocast() -> None:
    routing = build_routing(DynamicRoutingConfig())
    capsules, weight = torch.randn(2, 7, 3), torch.randn(7, 4, 3, 5)
    expected = routing(compute_votes(capsules, weight))
    with torch.autocast("cpu", torch.bfloat16):
        poses = routing.route(capsules, weight)
    assert poses.dtype == torch.float32
    assert torch.equal(poses, expected)
