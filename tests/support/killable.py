"""A training of a few seconds that may be killed at a step; run in processes of its own."""

import os
import signal
import time
from pathlib import Path

import torch

from capsmodel.callbacks import Callback
from capsmodel.checkpoint import CheckpointFolder, load_checkpoint
from capsmodel.config import (
    CnnConfig,
    CosineScheduleConfig,
    ModelConfig,
    MultiMnistConfig,
    TrainingConfig,
)
from capsmodel.datasets import Dataset
from capsmodel.datasets.multimnist import Overlaid
from capsmodel.metrics import StepMetrics
from capsmodel.training import Trainer
from support.nets import TINY_NET

SAVE_EVERY = 3
NETS: dict[str, ModelConfig] = {
    "capsnet": TINY_NET,
    "cnn": CnnConfig(channels=(3, 4), kernels=(5, 3), pool=3, hidden=(16,), dropout=0.4),
}


def overlapping_digits() -> Dataset:
    """Random pictures, overlaid in pairs: partners and shifts are drawn anew at every step."""
    pictures = torch.Generator().manual_seed(3)
    images = torch.randint(256, (100, 1, 28, 28), generator=pictures, dtype=torch.uint8)
    labels = torch.arange(100) % 10
    return Dataset(
        name="pairs",
        train_images=images[:80],
        train_labels=labels[:80],
        test_images=images[80:],
        test_labels=labels[80:],
        classes=10,
        composition=Overlaid(max_shift=4),
        test_composition=Overlaid(max_shift=4),
        targets=2,
    )


def make_trainer(net: ModelConfig, callbacks: list[Callback]) -> Trainer:
    config = TrainingConfig(
        dataset=MultiMnistConfig(validation_fraction=0.25),
        model=net,
        schedule=CosineScheduleConfig(warmup_steps=5),
        epochs=8,
        batch_size=9,
    )
    torch.manual_seed(time.time_ns() % 2**31)  # what the process drew before must not matter
    return Trainer(config, overlapping_digits(), device="cpu", callbacks=callbacks)


class SaveAndDie(Callback):
    """Saves now and then; kills its process at a step, as the kernel would."""

    def __init__(self, folder: CheckpointFolder, die_at: int | None) -> None:
        self.folder = folder
        self.die_at = die_at

    def on_step(self, trainer: Trainer, metrics: StepMetrics) -> None:
        if metrics.step % SAVE_EVERY == 0:
            self.folder.save(trainer.state_dict(), trainer.epoch, trainer.step)
        if metrics.step == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)


def train(net: ModelConfig, path: Path, die_at: int | None) -> None:
    """What the killed process runs: resume from the newest checkpoint, go on to the end."""
    torch.set_num_threads(1)
    folder = CheckpointFolder(path)
    trainer = make_trainer(net, [SaveAndDie(folder, die_at)])
    newest, _ = folder.newest_verified()
    if newest is not None:
        trainer.load_state_dict(load_checkpoint(newest.path))
    trainer.fit()
    folder.save(trainer.state_dict(), trainer.epoch, trainer.step)
