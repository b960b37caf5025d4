"""The pictures that the benchmarks of the net learn from."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from capsmodel.config import MnistConfig
from capsmodel.datasets import DataMissingError, Dataset, load_dataset
from capsmodel.datasets.download import OFFLINE_VARIABLE

IMAGES = 60_000
"""As many as MNIST has to learn from."""


def load_digits() -> Dataset:
    """MNIST where CAPS_DATA_DIR has it, else noise of the same shape: speed is the same."""
    try:
        with _offline():
            return load_dataset(MnistConfig())
    except DataMissingError:
        same = torch.Generator().manual_seed(0)  # for ranks, which must have the same data
        noise = torch.randint(256, (IMAGES, 1, 28, 28), dtype=torch.uint8, generator=same)
        labels = torch.arange(len(noise)) % 10
        return Dataset("synthetic", noise, labels, noise[:10_000], labels[:10_000], classes=10)


@contextmanager
def _offline() -> Iterator[None]:
    """A stopwatch downloads nothing."""
    before = os.environ.get(OFFLINE_VARIABLE)
    os.environ[OFFLINE_VARIABLE] = "1"
    try:
        yield
    finally:
        del os.environ[OFFLINE_VARIABLE]
        if before is not None:
            os.environ[OFFLINE_VARIABLE] = before
