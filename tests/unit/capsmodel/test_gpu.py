"""The same on a GPU: data, steps, evaluation, resume, divergence. `pytest -m gpu`.

CAPS_TEST_DEVICE=cpu runs them on a CPU, to try the tests themselves.
"""

import os
from collections.abc import Callable

import pytest
import torch

from capsmodel.batch import Batch
from capsmodel.callbacks import Callback
from capsmodel.config import (
    CnnConfig,
    DynamicRoutingConfig,
    ModelConfig,
    MultiMnistConfig,
    OptimizerConfig,
    SelfAttentionRoutingConfig,
    TrainingConfig,
    UniformRoutingConfig,
)
from capsmodel.datasets import Dataset
from capsmodel.divergence import DivergedError
from capsmodel.metrics import StepMetrics
from capsmodel.training import GUARD_STEPS, Trainer
from support.killable import overlapping_digits
from support.nets import TINY_NET

pytestmark = pytest.mark.gpu

NETS: dict[str, ModelConfig] = {
    "dynamic": TINY_NET,
    "leaky": TINY_NET.model_copy(update={"routing": DynamicRoutingConfig(leaky=True)}),
    "uniform": TINY_NET.model_copy(update={"routing": UniformRoutingConfig()}),
    "self-attention": TINY_NET.model_copy(update={"routing": SelfAttentionRoutingConfig()}),
    "official": TINY_NET.model_copy(
        update={
            "primary_coupling": "uniform",
            "class_bias": True,
            "initialization": "official",
        }
    ),
    "cnn": CnnConfig(channels=(4, 3), kernels=(5, 3), pool=2, hidden=(6,), dropout=0.0),
}


@pytest.fixture
def device() -> torch.device:
    wanted = torch.device(os.environ.get("CAPS_TEST_DEVICE", "cuda"))
    if wanted.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return wanted


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    return float((actual - expected).norm() / expected.norm().clamp(min=1e-12))


@pytest.mark.parametrize("name", NETS)
def test_a_step_is_that_of_the_cpu(
    device: torch.device,
    name: str,
    tiny_config: Callable[..., TrainingConfig],
    tiny_dataset: Dataset,
) -> None:
    trainers = [
        Trainer(tiny_config(model=NETS[name]), tiny_dataset, device=place)
        for place in ("cpu", device)
    ]
    cpu, gpu = trainers
    gpu.load_weights(cpu.state_dict())
    for trainer in trainers:
        trainer.train_on(trainer.examples("train", 12).as_pixels())
    for (weight, ours), theirs in zip(
        gpu.model.named_parameters(), cpu.model.parameters(), strict=True
    ):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert relative_error(ours.grad, theirs.grad) < 1e-4, weight


def test_a_seed_means_the_same_images(device: torch.device) -> None:
    batches: list[list[Batch]] = []
    for place in (torch.device("cpu"), device):
        config = TrainingConfig(dataset=MultiMnistConfig(), model=TINY_NET, batch_size=9)
        trainer = Trainer(config, overlapping_digits(), device=place)
        held_out = trainer.examples("validation", 5)
        batches.append([trainer._next_batch(), trainer._next_batch(), held_out])
    for ours, theirs in zip(*batches, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one, other.cpu())


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_learns_and_evaluates(
    device: torch.device,
    precision: str,
    deterministic: bool,
    tiny_config: Callable[..., TrainingConfig],
    tiny_dataset: Dataset,
) -> None:
    config = tiny_config(
        precision=precision,
        deterministic=deterministic,
        epochs=20,
        optimizer=OptimizerConfig(learning_rate=1e-2, max_gradient_norm=1.0),
    )
    trainer = Trainer(config, tiny_dataset, device=device)
    before = trainer.evaluate("test").total_loss
    seen: list[float] = []

    class Listen(Callback):
        def on_step(self, trainer: Trainer, metrics: StepMetrics) -> None:
            seen.append(metrics.total_loss)

    trainer.callbacks.append(Listen())
    trainer.fit()
    assert trainer.evaluate("test").total_loss < before
    assert sum(seen[-7:]) < sum(seen[:7])


def test_a_state_goes_on_upon_another_device(
    device: torch.device, tiny_config: Callable[..., TrainingConfig], tiny_dataset: Dataset
) -> None:
    whole = Trainer(tiny_config(), tiny_dataset, device=device)
    whole.fit()
    first = Trainer(tiny_config(epochs=1), tiny_dataset, device=device)
    first.fit()
    rest = Trainer(tiny_config(), tiny_dataset, device="cpu")
    rest.load_state_dict(first.state_dict())
    rest.fit()
    for name, value in whole.model.state_dict().items():
        assert relative_error(rest.model.state_dict()[name], value) < 1e-2, name


def train_until_the_guard_is_asked(trainer: Trainer, batch: Batch) -> None:
    for _ in range(GUARD_STEPS):
        trainer.train_on(batch)


def test_weights_wait_for_the_guard(
    device: torch.device, tiny_config: Callable[..., TrainingConfig], tiny_dataset: Dataset
) -> None:
    """The guard is asked now and then; no update is made once a step was not finite."""
    trainer = Trainer(tiny_config(epochs=100), tiny_dataset, device=device)
    batch = trainer.examples("train", 8).as_pixels()
    trainer.train_on(batch)
    good = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.model.class_caps.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(DivergedError) as error:
        train_until_the_guard_is_asked(trainer, batch)
    assert (error.value.term, error.value.step) == ("gradient", 2)
    assert error.value.culprit == "the gradient of class_caps.weight"
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, good[name]), name
