"""A step of training and of inference as functions without arguments, for anyone's stopwatch.

Both do exactly what the library does: a step is `Trainer.train_on`, an inference what
`capsmodel.analysis.predict` computes, with the drawing by the decoder. Only the data are chosen by
the caller, and always the same.

    step = training_step(images, labels)
    for _ in range(10):
        step()  # warm up
    seconds = timeit.timeit(step, number=100) / 100  # on a GPU: synchronise, or time with events
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from capsmodel.analysis.batches import evaluating
from capsmodel.batch import Batch
from capsmodel.config import (
    CapsNetConfig,
    CnnConfig,
    CrossEntropyLossConfig,
    MarginLossConfig,
    ModelConfig,
    TrainingConfig,
)
from capsmodel.datasets import Dataset
from capsmodel.determinism import deterministic_algorithms
from capsmodel.model import Model, ModelOutput, build_model, check_images, check_target
from capsmodel.precision import Precision, mixed_precision
from capsmodel.training import Trainer


def training_step(
    images: Tensor,
    labels: Tensor,
    config: TrainingConfig | ModelConfig | None = None,
    precision: Precision = "bf16",
) -> Callable[[], Tensor]:
    """A step of training on one batch, with everything that a `Trainer` does at a step.

    That is the way forward and back, the measures, the gradient's length, the watch for
    divergence, and Adam at the configured learning rate, without a schedule. After N calls the
    weights are those of a `Trainer` of the same settings after N calls of `train_on` with this
    batch. Seeds torch's global generators, as a `Trainer` does.

    Args:
        images: `[B, C, H, W]`, uint8, or floating point in [0, 1]; where they lie is trained.
        labels: int64 `[B]` in 0 .. J-1.
        config: A training's settings, of which the data set's are not used, or a model's; by
            default those of the paper.
        precision: Takes the place of the settings' own.

    Returns:
        Makes a step and returns the loss that it minimised, a scalar on the device, without
        waiting for a GPU. From it DivergedError comes as from `Trainer.train_on`.

    Raises:
        ValueError: The images or labels do not fit the model, or it wants images that show
            several classes.
    """
    settings = _settings(config, precision)
    model = settings.model
    pixels = _pixels(images, model)
    if model.targets != 1:
        raise ValueError(
            f"the model's targets are {model.targets}, expected 1: a step on images that show "
            "several classes needs each one's picture alone; call Trainer.train_on with a Batch"
        )
    check_target(labels, len(images), model.classes)
    batch = Batch(pixels, labels.to(pixels.device))
    trainer = Trainer(settings, _stored(batch, model), device=pixels.device)
    return partial(_train, trainer, batch)


def inference_step(
    images: Tensor,
    config: TrainingConfig | ModelConfig | None = None,
    precision: Precision = "bf16",
) -> Callable[[], ModelOutput]:
    """An inference on one batch: lengths, poses, and drawings from the longest capsules.

    The weights are those with which a training of the same settings begins. Seeds torch's global
    generators.

    Args:
        images: As in `training_step`.
        config: As in `training_step`.
        precision: `fp32` is what `capsmodel.analysis.predict` does, `bf16` what a `Trainer` with
            this precision does when it evaluates.

    Returns:
        Computes the output, without gradients and without waiting for a GPU.

    Raises:
        ValueError: The images do not fit the model.
    """
    settings = _settings(config, precision)
    pixels = _pixels(images, settings.model)
    torch.manual_seed(settings.seed)
    model = build_model(settings.model).to(pixels.device)
    return partial(_infer, model, pixels, precision)


def _train(trainer: Trainer, batch: Batch) -> Tensor:
    with deterministic_algorithms(trainer.config.deterministic):
        measures, _ = trainer.train_on(batch)
    return measures[0]


def _infer(model: Model, images: Tensor, precision: Precision) -> ModelOutput:
    with evaluating(model), mixed_precision(images.device, precision):
        return model.compute(images)


def _settings(config: TrainingConfig | ModelConfig | None, precision: Precision) -> TrainingConfig:
    """A training's settings without what concerns a data set, which there is none of."""
    if not isinstance(config, TrainingConfig):
        model = config or CapsNetConfig()
        cnn = isinstance(model, CnnConfig)
        loss = CrossEntropyLossConfig() if cnn else MarginLossConfig()
        config = TrainingConfig(loss=loss).model_copy(update={"model": model})
    whole = {"validation_fraction": 0.0, "per_class": None}
    changes = {
        "precision": precision,
        "dataset": config.dataset.model_copy(update=whole),
        "early_stopping": None,
    }
    return config.model_copy(update=changes)


def _pixels(images: Tensor, model: ModelConfig) -> Tensor:
    """The images as a model takes them, checked."""
    pixels = images.float() / 255 if images.dtype == torch.uint8 else images
    check_images(pixels, model.image_shape)
    return pixels.to(torch.float32)


def _stored(batch: Batch, model: ModelConfig) -> Dataset:
    """A data set for the `Trainer` to hold; it learns from the batch itself."""
    stored = (batch.images * 255).round().to(torch.uint8).cpu()
    labels = batch.labels.cpu()
    return Dataset("batch", stored, labels, stored, labels, classes=model.classes)
