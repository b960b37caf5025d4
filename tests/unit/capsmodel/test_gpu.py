"""The same on a GPU: data, steps, evaluation, resume, divergence, recorded steps. `pytest -m gpu`.

CAPS_TEST_DEVICE=cpu runs them on a CPU, to try the tests themselves; what is about recorded steps
needs CUDA.
"""

import logging
import os
from collections.abc import Callable, Iterator

import pytest
import torch

from capsmodel.batch import Batch
from capsmodel.callbacks import Callback
from capsmodel.config import (
    CnnConfig,
    CosineScheduleConfig,
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
from capsmodel.step_graph import VARIABLE, WARM_UP
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
    """A glance hears of the steps before the last one."""
    for _ in range(2 * GUARD_STEPS):
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


@pytest.fixture
def cuda(device: torch.device) -> Iterator[torch.device]:
    if device.type != "cuda":
        pytest.skip("steps are recorded on CUDA only")
    yield device
    torch.cuda.set_sync_debug_mode("default")


def fit_with_and_without_recording(
    config: TrainingConfig, dataset: Dataset, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> list[Trainer]:
    trainers = []
    for choice in ("1", "0"):
        monkeypatch.setenv(VARIABLE, choice)
        trainer = Trainer(config, dataset, device=device)
        trainer.fit()
        trainers.append(trainer)
    recorded, plain = trainers
    assert recorded._graph is not None
    assert recorded._graph.records
    assert plain._graph is None
    return trainers


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recorded_steps_are_the_steps(
    cuda: torch.device,
    name: str,
    precision: str,
    tiny_config: Callable[..., TrainingConfig],
    tiny_dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the bit in deterministic mode, in which max pooling has no gradient."""
    exact = name != "cnn"
    config = tiny_config(
        model=NETS[name],
        precision=precision,
        deterministic=exact,
        epochs=4,
        optimizer=OptimizerConfig(max_gradient_norm=0.05),
        schedule=CosineScheduleConfig(warmup_steps=9),
    )
    recorded, plain = fit_with_and_without_recording(config, tiny_dataset, cuda, monkeypatch)
    theirs = plain.model.state_dict()
    for weight, value in recorded.model.state_dict().items():
        if exact:
            assert torch.equal(value, theirs[weight]), weight
        else:
            assert relative_error(value, theirs[weight]) < 1e-3, weight


def test_recorded_steps_on_overlapping_digits(
    cuda: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainingConfig(
        dataset=MultiMnistConfig(), model=TINY_NET, batch_size=9, epochs=2, deterministic=True
    )
    recorded, plain = fit_with_and_without_recording(
        config, overlapping_digits(), cuda, monkeypatch
    )
    theirs = plain.model.state_dict()
    for weight, value in recorded.model.state_dict().items():
        assert torch.equal(value, theirs[weight]), weight


def test_dropped_units_differ_from_step_to_step(
    cuda: torch.device, tiny_config: Callable[..., TrainingConfig], tiny_dataset: Dataset
) -> None:
    """And a state that recorded steps left draws on as if it had never stopped."""
    net = CnnConfig(channels=(4,), kernels=(3,), pool=1, hidden=(16,), dropout=0.5)
    trainer = Trainer(tiny_config(model=net), tiny_dataset, device=cuda)
    batch = trainer.examples("train", 12).as_pixels()
    for _ in range(WARM_UP + 2):
        trainer.train_on(batch)
    state = trainer.state_dict()
    losses = [trainer.train_on(batch)[0][0].item() for _ in range(4)]
    assert len(set(losses)) == 4
    trainer.load_state_dict(state)
    again = [trainer.train_on(batch)[0][0].item() for _ in range(4)]
    assert again == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("choice", ["0", "1"])
def test_no_step_waits_for_the_gpu(
    cuda: torch.device,
    choice: str,
    tiny_config: Callable[..., TrainingConfig],
    tiny_dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Steps of an epoch, their batches made by random shifts; PyTorch tells of whatever waits."""
    monkeypatch.setenv(VARIABLE, choice)
    config = tiny_config(batch_size=4, epochs=1)
    trainer = Trainer(config, tiny_dataset, device=cuda)
    for _ in range(WARM_UP + 3):  # the recording itself waits
        trainer._train_step()
    torch.cuda.set_sync_debug_mode("error")
    for _ in range(10):
        trainer._train_step()
    torch.cuda.set_sync_debug_mode("default")
    trainer.fit()


def test_who_waits_within_a_step_is_not_recorded(
    cuda: torch.device,
    tiny_config: Callable[..., TrainingConfig],
    tiny_dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The training goes on, and so do those after it in this process, dropout and all."""
    monkeypatch.setattr("capsmodel.step_graph._broken", kept := [])
    config = tiny_config(epochs=4)
    trainer = Trainer(config, tiny_dataset, device=cuda)
    trainer.model.class_caps.register_forward_hook(lambda *call: call[2].sum().item() and None)
    with caplog.at_level(logging.WARNING):
        trainer.fit()
    assert caplog.text.count("not recorded as a CUDA graph") == 1
    assert len(kept) == 1
    assert trainer.epoch == 4
    net = CnnConfig(channels=(4,), kernels=(3,), pool=1, hidden=(16,), dropout=0.5)
    after = Trainer(tiny_config(model=net), tiny_dataset, device=cuda)
    after.fit()
    assert after.epoch == 2
    KEPT_ALIVE.extend(kept)


KEPT_ALIVE: list[object] = []
"""As `capsmodel.step_graph` keeps them."""


def test_states_are_those_of_any_device(
    cuda: torch.device, tiny_config: Callable[..., TrainingConfig], tiny_dataset: Dataset
) -> None:
    """Between a CPU and recorded steps, to and fro; loading makes the steps be recorded anew."""
    config = tiny_config(epochs=4)
    cpu = Trainer(tiny_config(epochs=2), tiny_dataset, device="cpu")
    cpu.fit()
    before = cpu.state_dict()
    gpu = Trainer(config, tiny_dataset, device=cuda)
    gpu.train_on(gpu.examples("train", 12).as_pixels())
    for _ in range(2):
        gpu.load_state_dict(before)
        gpu.fit()
        assert gpu._graph is not None
        assert gpu._graph.records
    after = gpu.state_dict()
    assert type(after["optimizer"]["param_groups"][0]["lr"]) is float
    assert after["optimizer"]["param_groups"][0].keys() == (
        before["optimizer"]["param_groups"][0].keys()
    )
    for name, value in after["model"].items():
        assert value.stride() == before["model"][name].stride(), name
    for number, memory in after["optimizer"]["state"].items():
        for key, value in memory.items():
            assert value.stride() == before["optimizer"]["state"][number][key].stride(), key
    back = Trainer(config, tiny_dataset, device="cpu")
    back.load_state_dict(after)
    assert back.epoch == 4


def test_a_recorded_step_that_diverges_leaves_the_weights(
    cuda: torch.device, tiny_config: Callable[..., TrainingConfig], tiny_dataset: Dataset
) -> None:
    trainer = Trainer(tiny_config(epochs=100), tiny_dataset, device=cuda)
    batch = trainer.examples("train", 12).as_pixels()
    for _ in range(WARM_UP + 2):
        trainer.train_on(batch)
    good = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    bad = trainer.examples("train", 12).as_pixels()
    bad.images[3] = float("nan")
    trainer.train_on(bad)
    with pytest.raises(DivergedError) as error:
        train_until_the_guard_is_asked(trainer, batch)
    assert (error.value.step, error.value.culprit) == (WARM_UP + 3, "the images")
    with pytest.raises(DivergedError):
        trainer.state_dict()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, good[name]), name


def test_convolutions_lie_channels_last(
    cuda: torch.device, tiny_config: Callable[..., TrainingConfig], tiny_dataset: Dataset
) -> None:
    trainer = Trainer(tiny_config(), tiny_dataset, device=cuda)
    net = trainer.model
    features = net.conv(trainer.examples("train", 12).as_pixels().images)
    last = torch.channels_last
    assert features.is_contiguous(memory_format=last)
    assert net.primary_caps.conv.weight.is_contiguous(memory_format=last)
    assert net.class_caps.weight.is_contiguous()
