"""Training: the `Trainer` owns a training's whole state and advances it step by step."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from capsmodel.callbacks import Callback
from capsmodel.config import TrainingConfig
from capsmodel.datasets import Dataset, load_dataset
from capsmodel.datasets.augmentation import RandomShift
from capsmodel.datasets.sampler import Sampler
from capsmodel.datasets.split import hold_out
from capsmodel.divergence import DivergedError, DivergenceGuard
from capsmodel.evaluation import EvaluationInterrupted, as_pixels, evaluate
from capsmodel.losses import build_loss
from capsmodel.metrics import (
    Best,
    EpochMetrics,
    Evaluation,
    RunningMean,
    StepMetrics,
    Throughput,
    measure,
)
from capsmodel.model import build_model
from capsmodel.precision import mixed_precision
from capsmodel.schedules import learning_rate_factor
from capsmodel.training_state import restore_state, restore_weights, take_state

GUARD_STEPS = 50
"""Steps between two looks at the guard against divergence where a look waits for a GPU."""

Stopped = Literal["completed", "early-stopping", "requested"]


@dataclass(frozen=True)
class TrainingOutcome:
    """How `Trainer.fit` ended."""

    stopped: Stopped
    epoch: int
    """Completed epochs."""
    step: int
    """Completed steps."""
    best: Best | None
    """None before the end of the first epoch."""


class Trainer:
    """One training: model, optimizer, data and their state.

    The whole data set lies on the device as bytes; batches are made there. Every image of the
    training part comes once an epoch, so the last batch of an epoch may be smaller. On a CPU a
    resumed training goes on bit for bit as if it had never stopped, from the middle of an epoch
    too.

    Attributes:
        config: The configuration.
        dataset: The data, on the CPU.
        device: Where the training runs.
        model: The model.
        optimizer: Adam.
        train_indices: Examples of the training set that are learnt from, int64.
        validation_indices: Examples of the training set that are held out, int64, perhaps none.
        epoch: Completed epochs.
        step: Completed steps.
        best: The best epoch so far.
    """

    def __init__(
        self,
        config: TrainingConfig,
        dataset: Dataset | None = None,
        *,
        device: torch.device | str | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """Make a training at step 0. Seeds torch's global generators with `config.seed`.

        Args:
            config: The configuration.
            dataset: The data; by default `load_dataset(config.dataset)`.
            device: By default a GPU if there is one, else the CPU.
            callbacks: Called in this order.

        Raises:
            DataMissingError: The data set's files were not found.
            ValueError: The data do not fit the model.
        """
        self.config = config
        self.callbacks = list(callbacks)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dataset = dataset or load_dataset(config.dataset)
        _check_dataset(self.dataset, config)
        torch.manual_seed(config.seed)
        self.model = build_model(config.model).to(self.device).train()
        self.loss = build_loss(config.loss)
        adam = config.optimizer
        self.optimizer = torch.optim.Adam(
            self.model.parameters(),
            lr=adam.learning_rate,
            betas=(adam.beta1, adam.beta2),
            eps=adam.epsilon,
            fused=True,
        )
        self._place_data()
        self.sampler = Sampler(self.train_indices, config.batch_size, config.seed, self.device)
        self.augmentation = RandomShift(config.dataset.max_shift, config.seed)
        self.epoch = 0
        self.step = 0
        self.best: Best | None = None
        self.stale_epochs = 0
        """Epochs since the validation accuracy last rose."""
        self._stop_requested = False
        self._begin_epoch()

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch, the last one's batch perhaps smaller."""
        return len(self.sampler)

    @property
    def total_steps(self) -> int:
        """Steps of the whole training, if nothing ends it early."""
        return self.config.epochs * self.steps_per_epoch

    def fit(self) -> TrainingOutcome:
        """Train to the end, from wherever the training is.

        Returns:
            How it ended. After `"requested"` another call goes on.

        Raises:
            DivergedError: A loss was not finite.
        """
        self._throughput = Throughput()
        for callback in self.callbacks:
            callback.on_start(self)
        while (stopped := self._verdict()) is None:
            if self.sampler.exhausted:
                self._finish_epoch()
            else:
                metrics = self._train_step()
                for callback in self.callbacks:
                    callback.on_step(self, metrics)
        self._stop_requested = False
        return TrainingOutcome(stopped, self.epoch, self.step, self.best)

    def request_stop(self) -> None:
        """Let `fit` return after the current step; may come from a signal or another thread."""
        self._stop_requested = True

    def evaluate(self, split: Literal["validation", "test"]) -> Evaluation:
        """Mean loss and accuracy on a part that is not trained on.

        The test part is touched here alone.

        Raises:
            ValueError: There is no validation part.
            DivergedError: A loss is not finite.
        """
        if split == "validation" and not len(self.validation_indices):
            raise ValueError("no validation part: dataset.validation_fraction is 0")
        return self._evaluate(split)

    def state_dict(self) -> dict[str, Any]:
        """The whole state, as tensors and plain Python values; it shares no memory with us.

        Raises:
            DivergedError: A loss was not finite, so the weights are not worth keeping.
        """
        self._guard.check()
        return take_state(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken.

        The configuration must be the same but for `epochs` and `early_stopping`, which only say
        when to end: a finished training can be made longer. (A cosine schedule then follows the
        new length.)

        Raises:
            IncompatibleStateError: It is the state of another configuration or other data.
        """
        restore_state(self, state)
        self._guard = DivergenceGuard(self.device)
        self._start_clock()

    def load_weights(self, state: dict[str, Any]) -> None:
        """Start this new training from the weights in another training's state.

        Raises:
            IncompatibleStateError: They do not fit this model.
        """
        restore_weights(self, state)

    def _place_data(self) -> None:
        """Split the training set and move what is trained on to the device."""
        data = self.dataset
        self.train_indices, self.validation_indices = hold_out(
            data.train_labels, self.config.dataset.validation_fraction, self.config.seed
        )
        self._train_images = data.train_images.to(self.device)
        self._train_labels = data.train_labels.to(self.device)

    def _begin_epoch(self) -> None:
        self.epoch_means = RunningMean(self.device)
        self._guard = DivergenceGuard(self.device)
        self._start_clock()

    def _start_clock(self) -> None:
        self._epoch_started = time.perf_counter()
        self._epoch_images = 0
        self._throughput = Throughput()

    def _verdict(self) -> Stopped | None:
        """Why to stop now, if at all."""
        early = self.config.early_stopping
        if self.epoch >= self.config.epochs:
            return "completed"
        if early and self.stale_epochs >= early.patience:
            return "early-stopping"
        return "requested" if self._stop_requested else None

    def _train_step(self) -> StepMetrics:
        """One batch: forward, backward, one step of Adam."""
        images, labels = self._next_batch()
        learning_rate = self._set_learning_rate()
        with mixed_precision(self.device, self.config.precision):
            output = self.model.compute(images, labels)
        terms = self.loss(output, images, labels)
        measures = measure(terms, output.lengths, labels)
        self.step += 1
        self._guard.watch(measures, self.step)
        if self.device.type == "cpu" or self.step % GUARD_STEPS == 0:
            self._guard.check()
        self.optimizer.zero_grad()
        terms.total.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.epoch_means.add(measures, len(images))
        self._epoch_images += len(images)
        rate = self._throughput.add(len(images))
        return StepMetrics(self.step, self.epoch, learning_rate, rate, measures)

    def _next_batch(self) -> tuple[Tensor, Tensor]:
        """Images fp32 `[B, C, H, W]` in [0, 1] and labels int64 `[B]`."""
        indices = self.sampler.next_batch()
        images = self.augmentation(self._train_images[indices])
        return as_pixels(images), self._train_labels[indices]

    def _set_learning_rate(self) -> float:
        factor = learning_rate_factor(self.config.schedule, self.step, self.total_steps)
        learning_rate = self.config.optimizer.learning_rate * factor
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        return learning_rate

    def _finish_epoch(self) -> None:
        """Evaluate, judge and count the epoch, and begin the next; nothing if interrupted."""
        self._guard.check()
        train = self.epoch_means.result()
        images_per_s = self._epoch_images / (time.perf_counter() - self._epoch_started)
        try:
            validation = self._validate()
        except EvaluationInterrupted:
            return  # the epoch stays open; whoever goes on evaluates it again
        self.epoch += 1
        is_best = self._judge(train, validation)
        self.sampler.start_epoch()
        self._begin_epoch()
        metrics = EpochMetrics(
            epoch=self.epoch,
            step=self.step,
            train=train,
            validation=validation,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            images_per_s=images_per_s,
            is_best=is_best,
        )
        for callback in self.callbacks:
            callback.on_epoch(self, metrics)
        self._start_clock()

    def _validate(self) -> Evaluation | None:
        if not len(self.validation_indices):
            return None
        return self._evaluate("validation", interruptible=True)

    def _evaluate(self, split: str, interruptible: bool = False) -> Evaluation:
        if split == "test":
            images = self.dataset.test_images.to(self.device)
            labels = self.dataset.test_labels.to(self.device)
        else:
            indices = self.validation_indices.to(self.device)
            images, labels = self._train_images[indices], self._train_labels[indices]
        evaluation = evaluate(
            self.model,
            self.loss,
            images,
            labels,
            self.config.precision,
            interrupted=lambda: interruptible and self._stop_requested,
        )
        if not torch.tensor(evaluation.total_loss).isfinite():
            raise DivergedError(f"{split} loss", self.step)
        return evaluation

    def _judge(self, train: Evaluation, validation: Evaluation | None) -> bool:
        """Whether the epoch just counted is the best; also counts for early stopping."""
        judged = validation or train
        rises = self.best is None or judged.accuracy > self.best.accuracy
        self.stale_epochs = 0 if rises else self.stale_epochs + 1
        is_best = self.best is None or validation is None or self.best.beaten_by(judged)
        if is_best:
            self.best = Best(self.epoch, self.step, judged.accuracy, judged.total_loss)
        return is_best


def _check_dataset(dataset: Dataset, config: TrainingConfig) -> None:
    model = config.model
    if dataset.image_shape != tuple(model.image_shape) or dataset.classes != model.classes:
        raise ValueError(
            f"data set {dataset.name!r} has images {list(dataset.image_shape)} of "
            f"{dataset.classes} classes, the model takes {list(model.image_shape)} of "
            f"{model.classes}"
        )
