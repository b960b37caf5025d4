"""What the stopwatch times is what the library does."""

import os
import platform
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from capsmodel import bench
from capsmodel.allocator import ALLOCATOR_ENVIRONMENT
from capsmodel.analysis import predict, reconstruct
from capsmodel.batch import Batch
from capsmodel.bench import inference_step, training_step
from capsmodel.config import (
    CapsNetConfig,
    CnnConfig,
    EarlyStoppingConfig,
    MnistConfig,
    OptimizerConfig,
    TrainingConfig,
)
from capsmodel.datasets import Dataset
from capsmodel.divergence import DivergedError
from capsmodel.model import build_model
from capsmodel.training import Trainer
from support.nets import TINY_NET


def some_images(count: int = 6, size: int = 28) -> tuple[Tensor, Tensor]:
    """Bytes and labels; label 9 is among them."""
    generator = torch.Generator().manual_seed(count)
    shape = (count, 1, size, size)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    return images, 9 - torch.arange(count) % 10


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[Trainer]:
    """Those that `training_step` makes, to look at their weights."""
    made: list[Trainer] = []

    def noted(*args, **kwargs) -> Trainer:
        made.append(Trainer(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(bench, "Trainer", noted)
    return made


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("clipped", [False, True])
def test_steps_leave_the_trainers_weights_bit_for_bit(
    precision, clipped, trainers, tiny_dataset: Dataset
) -> None:
    optimizer = OptimizerConfig(learning_rate=0.02, max_gradient_norm=0.01 if clipped else None)
    config = TrainingConfig(
        seed=5,
        dataset=MnistConfig(validation_fraction=0.2, per_class=3),
        model=TINY_NET,
        optimizer=optimizer,
        precision=precision,
        early_stopping=EarlyStoppingConfig(patience=2),
    )
    other = "fp32" if precision == "bf16" else "bf16"
    images, labels = some_images()
    step = training_step(images, labels, config.model_copy(update={"precision": other}), precision)
    losses = [step().item() for _ in range(4)]
    expected = Trainer(config, tiny_dataset, device="cpu")
    batch = Batch(images.float() / 255, labels)
    assert losses == [expected.train_on(batch)[0][0].item() for _ in range(4)]
    assert losses[3] < losses[0]
    (ours,) = trainers
    for own, other_weight in zip(ours.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(own, other_weight)
    assert ours.step == 4


def test_pixels_count_as_the_bytes_that_they_come_from() -> None:
    images, labels = some_images()
    as_bytes, as_floats, as_doubles = (
        training_step(shown, labels, TINY_NET)
        for shown in (images, images.float() / 255, images.double() / 255)
    )
    for _ in range(2):
        loss = as_bytes()
        assert torch.equal(loss, as_floats())
        torch.testing.assert_close(loss, as_doubles(), rtol=1e-4, atol=0)


def test_pixels_between_two_bytes_are_not_rounded() -> None:
    images, labels = some_images()
    pixels = images.float() / 255
    between = (pixels + 0.001).clamp(max=1)
    losses = [training_step(shown, labels, TINY_NET, "fp32")() for shown in (pixels, between)]
    assert losses[0] != losses[1]


def test_a_models_settings_may_differ_from_any_data_sets() -> None:
    net = CapsNetConfig(**{**TINY_NET.model_dump(), "image_shape": (1, 31, 31), "classes": 17})
    images, labels = some_images(size=31)
    step = training_step(images, labels + 7, net, "fp32")
    assert step().item() > step().item() > 0
    output = inference_step(images, net)()
    assert output.lengths.shape == (6, 17)
    assert output.reconstruction is not None
    assert output.reconstruction.shape == (6, 1, 31, 31)


def test_a_cnn_is_trained_by_cross_entropy(trainers) -> None:
    config = CnnConfig(channels=(4,), kernels=(3,), pool=4, hidden=(8,))
    step = training_step(*some_images(), config)
    assert step().item() > 0
    assert trainers[0].config.loss.type == "cross-entropy"
    assert inference_step(some_images()[0], config)().reconstruction is None


def test_without_settings_it_is_the_papers_net(trainers) -> None:
    step = training_step(*some_images(2))
    weights = sum(weight.numel() for weight in trainers[0].model.parameters())
    assert weights == 8_215_568
    assert trainers[0].config.precision == "bf16"
    assert torch.isfinite(step())


def test_inference_is_what_the_predictor_computes() -> None:
    images, _ = some_images()
    output = inference_step(images, TrainingConfig(seed=3, model=TINY_NET), "fp32")()
    torch.manual_seed(3)
    model = build_model(TINY_NET)
    expected = predict(model, images.float() / 255)
    assert torch.equal(output.lengths, expected.lengths)
    assert torch.equal(output.poses, expected.poses)
    assert torch.equal(output.reconstruction, reconstruct(model, images.float() / 255))
    assert not output.lengths.requires_grad


def test_bf16_rounds_the_inference_too() -> None:
    images, _ = some_images()
    exact, rounded = (
        inference_step(images, TINY_NET, precision)().lengths for precision in ("fp32", "bf16")
    )
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(exact, rounded, rtol=0.1, atol=0.01)


@pytest.mark.parametrize(
    ("images", "labels", "complaint"),
    [
        (torch.rand(2, 1, 28, 27), torch.tensor([1, 2]), r"images have shape \[2, 1, 28, 27\]"),
        (255 * torch.rand(2, 1, 28, 28), torch.tensor([1, 2]), "divide bytes by 255"),
        (torch.ones(2, 1, 28, 28, dtype=torch.int64), torch.tensor([1, 2]), "floating point"),
        (torch.rand(2, 1, 28, 28), torch.tensor([1, 10]), "from 1 to 10, expected 0 to 9"),
        (torch.rand(2, 1, 28, 28), torch.tensor([1]), r"expected torch.int64 \[2\]"),
    ],
)
def test_data_that_do_not_fit_are_refused(images, labels, complaint) -> None:
    with pytest.raises(ValueError, match=complaint):
        training_step(images, labels, TINY_NET)


def test_images_of_two_classes_are_refused_with_a_hint() -> None:
    net = TINY_NET.model_copy(update={"targets": 2})
    images, labels = some_images()
    with pytest.raises(ValueError, match=r"targets are 2, expected 1.*Trainer\.train_on"):
        training_step(images, torch.stack([labels, labels - 1], dim=1), net)


def test_divergence_is_told(trainers) -> None:
    step = training_step(*some_images(), TINY_NET, "fp32")
    step()
    with torch.no_grad():
        trainers[0].model.conv.bias[1] = torch.nan
    with pytest.raises(DivergedError, match=r"step 2, first seen in the weights conv\.bias"):
        step()


def test_the_allocators_settings_stand_alone() -> None:
    code = "import sys, capsmodel.allocator; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "False", found.stderr


ONE_BLOCK_AGAIN_AND_AGAIN = """
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
libc.sbrk.argtypes = [ctypes.c_ssize_t]

def aligned():
    address = ctypes.c_void_p()
    assert libc.posix_memalign(ctypes.byref(address), 64, 100 << 20) == 0
    return address

begin, block, neighbour = libc.sbrk(0), aligned(), libc.malloc(1 << 20)
for _ in range(10):
    libc.free(block)
    block = aligned()
end = libc.sbrk(0)
print((end - begin) >> 20)
libc.free(aligned())
libc.free(libc.malloc(1 << 20))
print(end <= libc.sbrk(0))
"""
"""Prints the MiB by which the heap grew, and whether it then keeps what is free at its end."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc's allocator")
def test_the_allocators_settings_leave_no_holes_in_the_heap() -> None:
    command = [sys.executable, "-c", ONE_BLOCK_AGAIN_AND_AGAIN]
    environment = {**os.environ, "LD_PRELOAD": "", **ALLOCATOR_ENVIRONMENT}
    grown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    size, keeps = grown.stdout.split()
    # The block, its neighbour, and at most one block more; without the tunable there are nine.
    assert 100 <= int(size) < 300
    assert keeps == "True"
