"""What a training amounts to: operations against torch's own count, images against the Trainer.

torch's FlopCounterMode counts convolutions and matrix products, a multiplication with its addition
as 2. It leaves out sums (the first pass of a routing, which needs no product), and all that we
leave out too: biases, activations, squash, softmax, pooling, losses, the optimizer.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from capsmodel.config import (
    DATASETS,
    AffineMnistConfig,
    CapsNetConfig,
    CnnConfig,
    Config,
    DatasetConfig,
    DecoderConfig,
    DynamicRoutingConfig,
    ExpandedMnistConfig,
    FashionMnistConfig,
    HuggingFaceConfig,
    Mnist5kConfig,
    MnistConfig,
    ModelConfig,
    MultiMnistConfig,
    RoutingConfig,
    SelfAttentionRoutingConfig,
    TrainingConfig,
    UniformRoutingConfig,
)
from capsmodel.convolution import unfolded
from capsmodel.cost import PASSES_OF_A_STEP, training_cost
from capsmodel.datasets import load_dataset
from capsmodel.kernels import force_kernels
from capsmodel.model import build_model
from capsmodel.presets import MULTIMNIST_CNN
from capsmodel.training import Trainer
from support.nets import TINY_NET

BATCH = 3
NARROW = {"conv_channels": 32, "primary_types": 4, "decoder": DecoderConfig(hidden=(64, 32))}
NETS: dict[str, ModelConfig] = {
    "the paper's": CapsNetConfig(),
    "the paper's, two targets": CapsNetConfig(image_shape=(1, 36, 36), targets=2),
    "tiny": TINY_NET,
    "no decoder": CapsNetConfig(**{**NARROW, "decoder": None}),
    "colour, oblong, padded": CapsNetConfig(
        **NARROW, image_shape=(3, 40, 27), conv_padding=2, primary_padding=1, conv_stride=2
    ),
    "one pass": CapsNetConfig(**NARROW, routing=DynamicRoutingConfig(iterations=1)),
    "five passes": CapsNetConfig(**NARROW, routing=DynamicRoutingConfig(iterations=5)),
    "leaky": CapsNetConfig(**NARROW, routing=DynamicRoutingConfig(leaky=True)),
    "uniform": CapsNetConfig(**NARROW, routing=UniformRoutingConfig()),
    "self-attention": CapsNetConfig(**NARROW, routing=SelfAttentionRoutingConfig()),
    "authors' biases": CapsNetConfig(**NARROW, primary_coupling="uniform", class_bias=True),
    "cnn": CnnConfig(),
    "cnn with pools": MULTIMNIST_CNN,
    "cnn without hidden layers": CnnConfig(
        image_shape=(3, 29, 31), channels=(8, 6), kernels=(7, 3), pool=3, hidden=()
    ),
}


@pytest.fixture(autouse=True)
def direct_convolutions(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Operations are counted as the paper's net has them, by whichever route they are saved."""
    monkeypatch.setattr(unfolded, "LARGEST_PATCH", 0)
    with force_kernels("torch"):
        yield


def counted(config: ModelConfig, backward: bool = False) -> int:
    """Operations of `BATCH` images by torch's count."""
    model = build_model(config)
    images = torch.rand(BATCH, *config.image_shape)
    target = torch.arange(BATCH) % config.classes
    if config.targets == 2:
        target = torch.stack([target, target + 1], dim=1)
    with FlopCounterMode(display=False) as counter:
        output = model(images, target)
        if backward:
            drawn = 0.0 if output.reconstruction is None else output.reconstruction.sum()
            (output.lengths.square().sum() + drawn).backward()
    return counter.get_total_flops()


def summed(config: ModelConfig) -> int:
    """Additions of votes that are no product: one sum of all votes in every routing."""
    if not isinstance(config, CapsNetConfig):
        return 0
    return config.primary_capsules * config.classes * config.class_dim


@pytest.mark.parametrize("name", NETS)
def test_a_way_forward_is_torchs_count_and_the_sum_over_the_votes(name: str) -> None:
    config = NETS[name]
    stated = config.forward_flops
    assert stated is not None
    assert BATCH * (stated - summed(config)) == counted(config)
    assert summed(config) < 0.02 * stated


def test_the_papers_net_in_figures() -> None:
    by_hand = {
        "conv": 2 * 20 * 20 * 81 * 256,
        "primary": 2 * 6 * 6 * 256 * 81 * 256,
        "votes": 2 * 1152 * 8 * 160,
        "first pass": 1152 * 160,
        "two passes": 2 * 4 * 1152 * 160,
        "decoder": 2 * (160 * 512 + 512 * 1024 + 1024 * 784),
    }
    assert CapsNetConfig().forward_flops == sum(by_hand.values())
    assert sum(by_hand.values()) == pytest.approx(406.2e6, rel=1e-3)


@pytest.mark.parametrize("name", ["the paper's", "self-attention", "five passes", "cnn"])
def test_a_way_back_takes_two_but_in_the_first_convolution(name: str) -> None:
    """Its images need no gradient, so a step is 3 ways forward less one of that layer."""
    config = NETS[name]
    stated = config.forward_flops
    assert stated is not None
    model = build_model(config)
    first = next(layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d))
    with FlopCounterMode(display=False) as counter:
        first(torch.rand(BATCH, *config.image_shape))
    products = PASSES_OF_A_STEP * BATCH * (stated - summed(config))
    assert counted(config, backward=True) == products - counter.get_total_flops()
    assert counter.get_total_flops() < 0.1 * products


@pytest.mark.parametrize(
    ("dataset", "train", "validation", "test"),
    [
        (MnistConfig(validation_fraction=0), 60_000, 0, 10_000),
        (FashionMnistConfig(), 54_000, 6000, 10_000),
        (Mnist5kConfig(validation_fraction=0), 4000, 0, 1000),
        (Mnist5kConfig(validation_fraction=0.25), 3000, 1000, 1000),
        (Mnist5kConfig(per_class=7), 70, 400, 1000),
        (MultiMnistConfig(validation_fraction=0, test_partners=1000), 60_000, 0, 10_000_000),
        (ExpandedMnistConfig(validation_fraction=0), 60_000, 0, 10_000),
        (AffineMnistConfig(validation_fraction=0, test_copies=32), 60_000, 0, 320_000),
    ],
    ids=str,
)
def test_parts_by_the_settings(
    dataset: DatasetConfig, train: int, validation: int, test: int
) -> None:
    assert dataset.part_sizes == (train, validation, test)


@pytest.mark.parametrize(
    "dataset",
    [
        MnistConfig(validation_fraction=0.137),
        MnistConfig(validation_fraction=0.05, per_class=31),
        Mnist5kConfig(),
        Mnist5kConfig(validation_fraction=0.003, per_class=9),
        MultiMnistConfig(validation_fraction=0.21, test_partners=2),
        MultiMnistConfig(source="mnist-5k", test_partners=3),
        ExpandedMnistConfig(validation_fraction=0.0471),
        AffineMnistConfig(test_copies=4),
    ],
    ids=str,
)
def test_parts_as_the_trainer_has_them(dataset: DatasetConfig, mnist_folder: Path) -> None:
    model = TINY_NET.model_copy(
        update={"image_shape": dataset.image_shape, "targets": dataset.targets}
    )
    config = TrainingConfig(dataset=dataset, model=model)
    loaded = load_dataset(dataset, mnist_folder)
    trainer = Trainer(config, loaded)
    parts = dataset.part_sizes
    assert parts is not None
    assert parts.train == len(trainer.train_indices)
    assert parts.validation == len(trainer.validation_indices)
    assert parts.test == loaded.test_composition.fixed_count(loaded.test_part)


def test_every_data_set_of_a_fixed_size_says_so() -> None:
    silent = {
        name
        for name, member in DATASETS.members.items()
        if "path" not in member.config.model_fields and member.config().part_sizes is None
    }
    assert silent == set()


def test_a_training_counts_steps_three_times_and_evaluations_once() -> None:
    config = TrainingConfig(dataset=Mnist5kConfig(), model=TINY_NET, epochs=7)
    cost = training_cost(config)
    forward = TINY_NET.forward_flops
    assert forward is not None
    assert (cost.epochs, cost.training_images, cost.validation_images) == (7, 7 * 3600, 7 * 400)
    assert cost.flops == 7 * (3 * 3600 + 400) * forward
    assert cost.unknown == ()


def test_what_only_the_files_tell_is_unknown() -> None:
    dataset = HuggingFaceConfig(path="pictures", image_shape=(1, 28, 28), classes=10)
    cost = training_cost(TrainingConfig(dataset=dataset, epochs=3))
    assert cost.epochs == 3
    assert (cost.training_images, cost.validation_images, cost.flops) == (None, None, None)
    assert "'huggingface'" in cost.unknown[0]


class SilentRoutingConfig(RoutingConfig):
    type: Literal["silent"] = "silent"


class SilentModelConfig(Config):
    """Of a package: it need not know `ModelConfig`."""

    type: Literal["silent"] = "silent"
    image_shape: ClassVar = (1, 28, 28)
    classes: ClassVar = 10
    targets: ClassVar = 1


def test_a_member_that_states_no_operations_leaves_them_unknown() -> None:
    net = CapsNetConfig.model_construct(
        **{**dict(TINY_NET), "routing": SilentRoutingConfig(), "type": "capsnet"}
    )
    models: list[Any] = [net, SilentModelConfig()]
    for model in models:
        config = TrainingConfig().model_copy(update={"model": model})
        cost = training_cost(config)
        assert cost.flops is None
        assert cost.training_images == 10 * 54_001
        assert "'silent'" in cost.unknown[0]
