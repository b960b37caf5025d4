"""The spectra of weights are kept between inferences, and never those of other weights."""

import copy
import io
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from capsmodel.convolution import Convolution, frequency
from capsmodel.convolution.transforms import Transforms, fingerprint
from support.compiler import needs_compiler
from support.seed import SEED

pytestmark = [needs_compiler, pytest.mark.usefixtures("fresh_seed")]


@pytest.fixture
def transformed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the transforms that ran."""
    names: list[str] = []
    run = Transforms.run

    def noted(transforms: Transforms, name: str, *arguments: Tensor | int) -> None:
        names.append(name)
        run(transforms, name, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Transforms, "run", noted)
    return names


@pytest.fixture
def layer() -> Convolution:
    return Convolution(32, 16, 9, 2)


@pytest.fixture
def features() -> Tensor:
    return torch.rand(16, 32, 20, 20)


def infer(layer: Convolution, features: Tensor, bf16: bool = False) -> Tensor:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        maps: Tensor = layer(features)
    return maps


def test_weights_are_transformed_once(
    layer: Convolution, features: Tensor, transformed: list[str]
) -> None:
    first = infer(layer, features)
    assert torch.equal(infer(layer, features), first)
    with torch.inference_mode():
        assert torch.equal(layer(features), first)
    assert transformed.count("analyse_weights") == 1
    assert transformed.count("analyse_features") == 3
    torch.testing.assert_close(first, layer(features), rtol=0, atol=0)


def flip_signs(weight: Tensor) -> None:
    weight.data.neg_()


def flip_two_signs(weight: Tensor) -> None:
    weight.data[[2, 5]] *= -1


def swap_filters(weight: Tensor) -> None:
    weight.data[[0, 1]] = weight.data[[1, 0]]


def nudge_the_last(weight: Tensor) -> None:
    value = weight.detach().numpy().reshape(-1)
    value[-1] += 1e-4  # enough to show in the sums, however small the value


def other_memory(weight: Tensor) -> None:
    weight.data = torch.randn_like(weight)


def under_no_grad(weight: Tensor) -> None:
    with torch.no_grad():
        weight.mul_(2)


def step(weight: Tensor) -> None:
    weight.grad = torch.randn_like(weight)
    torch.optim.Adam([weight], fused=True).step()


@pytest.mark.parametrize(
    "change",
    [flip_signs, flip_two_signs, swap_filters, nudge_the_last, other_memory, under_no_grad, step],
)
def test_every_change_of_the_weights_is_seen(
    layer: Convolution, features: Tensor, change: Callable[[Tensor], None]
) -> None:
    before = infer(layer, features)
    change(layer.weight)
    found = infer(layer, features)
    assert not torch.equal(found, before), f"seed {SEED}"
    fresh = Convolution(32, 16, 9, 2)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(found, infer(fresh, features)), f"seed {SEED}"
    other = Convolution(32, 16, 9, 2).state_dict()
    layer.load_state_dict(other)
    fresh.load_state_dict(other)
    assert torch.equal(infer(layer, features), infer(fresh, features))


def test_each_precision_and_size_has_its_own(layer: Convolution, features: Tensor) -> None:
    larger = torch.rand(16, 32, 28, 28)
    for images, bf16 in ((features, False), (features, True), (larger, True), (features, False)):
        alone = Convolution(32, 16, 9, 2)
        alone.load_state_dict(layer.state_dict())
        assert torch.equal(infer(layer, images, bf16), infer(alone, images, bf16))


def test_training_gives_the_memory_back(
    layer: Convolution, features: Tensor, transformed: list[str]
) -> None:
    infer(layer, features)
    layer(features)
    infer(layer, features)
    assert transformed.count("analyse_weights") == 3


def test_spectra_larger_than_the_scratch_memory_are_not_kept(
    layer: Convolution,
    features: Tensor,
    transformed: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(frequency, "SCRATCH_BYTES", 148 * 16 * 4 * 32 * 4 - 1)
    infer(layer, features)
    once = transformed.count("analyse_weights")
    infer(layer, features)
    assert transformed.count("analyse_weights") == 2 * once


def test_copies_and_files_hold_no_spectra(layer: Convolution, features: Tensor) -> None:
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    expected = infer(layer, features)
    kept = io.BytesIO()
    torch.save(layer, kept)
    assert kept.tell() == buffer.tell()
    assert torch.equal(infer(copy.deepcopy(layer), features), expected)
    assert "spectra" not in " ".join(layer.state_dict())


def test_threads_may_share_a_layer(layer: Convolution, features: Tensor) -> None:
    weights = [torch.randn(16, 32, 9, 9) for _ in range(3)]
    expected = []
    for weight in weights:
        layer.weight.data = weight
        expected.append(infer(layer, features, bf16=True))
    layer.spectra.drop()
    found: list[Tensor] = []
    threads = [
        threading.Thread(target=lambda: found.append(infer(layer, features, bf16=True)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert all(torch.equal(maps, expected[-1]) for maps in found)


def test_a_compiler_that_looks_on_sees_the_whole_computation(
    layer: Convolution, features: Tensor
) -> None:
    expected = infer(layer, features)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(features), expected)
        layer.weight.mul_(2)
        assert torch.equal(compiled(features), infer(layer, features))


@pytest.mark.parametrize("count", [1, 15, 127, 128, 129, 32767, 32768, 70001])
def test_a_fingerprint_tells_any_one_value(count: int) -> None:
    values = torch.randn(count)
    known = fingerprint(values, side=10)
    assert known == fingerprint(values.clone(), side=10)
    for place in {0, count // 2, count - 1}:
        changed = values.clone()
        changed[place] = -changed[place]
        assert fingerprint(changed, side=10) != known, f"seed {SEED}"
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert fingerprint(values, side=10) == known
    finally:
        torch.set_num_threads(before)
