"""Named trainings: the paper's, the authors' code's, and the baselines they are compared with.

Where paper and code differ, each difference is a setting of its own; `PAPER` and `OFFICIAL` are the
two ends. Imports no torch.
"""

from capsmodel.config import (
    CapsNetConfig,
    CnnConfig,
    ExponentialScheduleConfig,
    MarginLossConfig,
    MnistConfig,
    MultiMnistConfig,
    TrainingConfig,
)

EPOCHS = 640
"""The authors train for 300,000 steps of 128 images: 640 times MNIST's 60,000.

The presets learn from all of them, as the authors' final models did, and keep the last weights; to
choose settings, hold a part out by `dataset.validation_fraction`.
"""

OFFICIAL_NET = CapsNetConfig(primary_coupling="uniform", class_bias=True, initialization="official")
"""The net of the authors' code, 8,215,728 parameters on MNIST."""

MULTIMNIST_CNN = CnnConfig(
    image_shape=(1, 36, 36),
    targets=2,
    channels=(512, 256),
    kernels=(9, 5),
    pool=2,
    hidden=(1024,),
    dropout=0.0,
)
"""The baseline of section 6.2, 24,563,978 parameters."""

_MULTIMNIST_SCHEDULE = ExponentialScheduleConfig(decay_steps=20_000)
"""On MultiMNIST the learning rate falls ten times more slowly."""

PAPER = TrainingConfig(
    dataset=MnistConfig(validation_fraction=0),
    model=CapsNetConfig(),
    schedule=ExponentialScheduleConfig(),
    epochs=EPOCHS,
    batch_size=128,
)
"""The paper's net and loss, with the authors' learning rate, batches and shifts."""

OFFICIAL = TrainingConfig(
    dataset=MnistConfig(validation_fraction=0),
    model=OFFICIAL_NET,
    loss=MarginLossConfig(scale="half-mean"),
    schedule=ExponentialScheduleConfig(),
    epochs=EPOCHS,
    batch_size=128,
)
"""All as in the authors' code: net, initial weights, loss scale, learning rate, batches, shifts."""

BASELINE = TrainingConfig(
    dataset=MnistConfig(validation_fraction=0),
    model=CnnConfig(),
    schedule=ExponentialScheduleConfig(),
    epochs=EPOCHS,
    batch_size=128,
)
"""The CNN that the paper compares with on MNIST (section 5)."""

MULTIMNIST = TrainingConfig(
    dataset=MultiMnistConfig(validation_fraction=0),
    model=CapsNetConfig(),
    schedule=_MULTIMNIST_SCHEDULE,
    epochs=EPOCHS,
    batch_size=128,
)
"""Overlapping digits (section 6)."""

MULTIMNIST_BASELINE = TrainingConfig(
    dataset=MultiMnistConfig(validation_fraction=0),
    model=MULTIMNIST_CNN,
    schedule=_MULTIMNIST_SCHEDULE,
    epochs=EPOCHS,
    batch_size=128,
)
"""The CNN that the paper compares with on MultiMNIST (section 6.2)."""
