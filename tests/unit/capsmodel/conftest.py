"""A tiny net and a tiny data set, on which a training step takes milliseconds."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from capsmodel.config import CapsNetConfig, Mnist5kConfig, TrainingConfig
from capsmodel.datasets import Dataset
from capsmodel.kernels import force_kernels
from support.nets import TINY_NET
from support.seed import SEED


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine cost more than these nets gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def fresh_seed() -> Iterator[None]:
    """Numbers drawn from the run's seed, and kernels wherever they can be had."""
    torch.manual_seed(SEED)
    with force_kernels("auto"):
        yield


@pytest.fixture
def tiny_net() -> CapsNetConfig:
    return TINY_NET


@pytest.fixture
def tiny_config() -> Callable[..., TrainingConfig]:
    """Makes the configuration of a training of two epochs with seven steps each."""

    def make(**changes: Any) -> TrainingConfig:
        settings = {
            "model": TINY_NET,
            "dataset": Mnist5kConfig(validation_fraction=0.2),
            "epochs": 2,
            "batch_size": 12,
            **changes,
        }
        return TrainingConfig(**settings)

    return make


@pytest.fixture(scope="session")
def tiny_dataset() -> Dataset:
    """100 + 30 random pictures: 80 to learn from, so the last batch of 12 holds 8."""
    generator = torch.Generator().manual_seed(1)

    def images(count: int) -> torch.Tensor:
        shape = (count, 1, 28, 28)
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8)

    return Dataset(
        name="tiny",
        train_images=images(100),
        train_labels=torch.arange(100) % 10,
        test_images=images(30),
        test_labels=torch.arange(30) % 10,
        classes=10,
    )
