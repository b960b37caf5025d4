"""Training: the `Trainer` owns a training's whole state and advances it step by step."""

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from capsmodel.batch import Batch
from capsmodel.callbacks import Callback
from capsmodel.channels_last import follow_weights, put_channels_last
from capsmodel.config import TrainingConfig
from capsmodel.datasets import Dataset, load_dataset
from capsmodel.datasets.composition import Composition, Part, Shifted
from capsmodel.datasets.sampler import Sampler
from capsmodel.datasets.split import choose_per_class, hold_out
from capsmodel.determinism import deterministic_algorithms
from capsmodel.distributed import Objective, RankFailedError, Ranks, averaged
from capsmodel.divergence import DivergedError, DivergenceGuard, find_culprit
from capsmodel.evaluation import EvaluationInterrupted, evaluate, held_out_batches
from capsmodel.losses import LossTerms, build_loss
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
from capsmodel.precision import exact_fp32
from capsmodel.schedules import learning_rate_factor
from capsmodel.step_graph import StepGraph, graphs_wanted
from capsmodel.step_scalars import StepScalars
from capsmodel.training_state import restore_state, restore_weights, take_state

GUARD_STEPS = 50
"""Steps from one glance at the guard against divergence to the next, which hears of them, where a
certain look would wait for a GPU."""
GUARD_BYTES = 1 << 30
"""Memory that the batches of such steps may take; where they are large, glances come earlier."""

Split = Literal["train", "validation", "test"]
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

    On a GPU no step waits for it, and steps are recorded as a CUDA graph, which knows of no hook
    that is put on the model later: see `capsmodel.step_graph`.

    Where `torch.distributed` is initialised with several processes, they train one model together.
    Each makes a `Trainer` of the same configuration and data, with a device of its own, and calls
    `fit`, `evaluate`, `load_state_dict` and `load_weights` when the others do; it computes its
    share of every batch and of every evaluation, and hears of the whole. `batch_size` is that of
    all together. Weights and state stay the same on all: keep rank 0's, which goes on with any
    number of processes.

    Attributes:
        config: The configuration.
        dataset: The data, on the CPU.
        device: Where the training runs.
        ranks: The processes that train together, mostly this one alone.
        model: The model.
        optimizer: Adam.
        composition: How training and validation images are made of the stored pictures.
        train_indices: Pictures of the training set that are learnt from, int64.
        validation_indices: Pictures of the training set that are held out, int64, perhaps none.
        draws: Generator of all that the composition draws at random, on the CPU.
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
        self.ranks = Ranks.current()
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dataset = dataset or load_dataset(config.dataset)
        _check_dataset(self.dataset, config)
        torch.manual_seed(config.seed)
        self.model = build_model(config.model).to(self.device).train()
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            put_channels_last(self.model)
        self.loss = build_loss(config.loss)
        self._objective = Objective(self.model, self.loss, config.precision)
        self._averaged: nn.Module | None = None
        """The objective whose gradients are averaged over the ranks; made at the first step."""
        adam = config.optimizer
        self.optimizer = torch.optim.Adam(
            self.model.parameters(),
            lr=adam.learning_rate,
            betas=(adam.beta1, adam.beta2),
            eps=adam.epsilon,
            fused=True,
        )
        self._scalars: StepScalars | None = None
        """Where a GPU reads what a CPU is simply told."""
        self._graph: StepGraph | None = None
        if on_gpu:
            follow_weights(self.optimizer)
            self._scalars = StepScalars(self.device)
            if self.ranks.alone and graphs_wanted():
                self._graph = StepGraph(self.optimizer, self.device)
        self._guard = DivergenceGuard(self.device)
        self._glances = on_gpu
        """Whether steps look at the guard by glances, since a certain look would wait."""
        # Set here, fused Adam leaves the weights alone once the guard has tripped.
        self.optimizer.found_inf = self._guard.tripped  # type: ignore[attr-defined]
        self._place_data()
        everything = torch.arange(len(self._train_part))
        self.sampler = Sampler(everything, config.batch_size, config.seed, self.device)
        self.draws = torch.Generator().manual_seed(config.seed)
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
            DivergedError: A loss was not finite; on every rank.
            RanksDifferError: Another rank has another configuration, other data or another state.
            RankFailedError: A callback of another rank failed.
        """
        self._check_ranks()
        self._throughput = Throughput()
        with self.ranks.failing_together():
            for callback in self.callbacks:
                callback.on_start(self)
        with deterministic_algorithms(self.config.deterministic):
            while (stopped := self._verdict()) is None:
                if self.sampler.exhausted:
                    self._finish_epoch()
                else:
                    metrics = self._train_step()
                    with self.ranks.failing_together():
                        for callback in self.callbacks:
                            callback.on_step(self, metrics)
        self._check_guard()
        self._stop_requested = False
        return TrainingOutcome(stopped, self.epoch, self.step, self.best)

    def request_stop(self) -> None:
        """Let `fit` return after the current step; may come from a signal or another thread.

        Asked for on one rank, all stop after the same step.
        """
        self._stop_requested = True

    def evaluate(self, split: Literal["validation", "test"]) -> Evaluation:
        """Mean loss and accuracy on a part that is not trained on.

        The test part is touched here alone. Several ranks divide the work: all call it.

        Raises:
            ValueError: There is no validation part.
            DivergedError: A loss is not finite.
        """
        if split == "validation" and not len(self.validation_indices):
            raise ValueError(self._no_validation_part())
        with deterministic_algorithms(self.config.deterministic):
            return self._evaluate(split)

    def examples(self, split: Split, limit: int) -> Batch:
        """Images to look at: up to `limit` of a part, evenly spread over it, always the same.

        Args:
            split: `"train"` gives them without the training's random shifts.
            limit: At least 1.

        Returns:
            Bytes and labels on the training's device; the two targets' parts where digits overlap.
        """
        part, composition = self._part(split)
        count = composition.fixed_count(part)
        shown = min(limit, count)
        chosen = torch.arange(shown) * count // shown
        return composition.fixed_batch(part, chosen.to(self.device))

    def state_dict(self) -> dict[str, Any]:
        """The whole state, as tensors and plain Python values; it shares no memory with us.

        Raises:
            DivergedError: A loss was not finite, so the weights are not worth keeping.
        """
        self._check_guard(together=False)
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
        self._reset_guard()
        self._start_clock()

    def load_weights(self, state: dict[str, Any]) -> None:
        """Start this new training from the weights in another training's state.

        Raises:
            IncompatibleStateError: They do not fit this model.
        """
        restore_weights(self, state)

    def train_on(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Learn from one batch: forward, backward, a step of Adam at the current learning rate.

        Counts as a step, but takes no part in the epoch: `fit` does the rest.

        Args:
            batch: Pixels in [0, 1] and labels, on the device. All ranks give the same batch.

        Returns:
            The measures, float64 `[5]` in the order of `metrics.MEASURES`, and the length of the
            gradient, both still on the device.

        Raises:
            DivergedError: A loss or the gradient was not finite; on a GPU perhaps some steps ago.
        """
        if self._averaged is None:
            alone = self.ranks.alone
            self._averaged = self._objective if alone else averaged(self._objective, batch)
        share = self.ranks.share(batch)
        self.ranks.seed(self.config.seed, self.step)
        if self._scalars is not None:
            self._scalars.set(self.optimizer.param_groups[0]["lr"], self.step + 1)
        if self._graph is not None:
            measures, gradient_norm = self._graph.step(self._learn, share.batch)
        else:
            measures, gradient_norm = self._learn(share.batch, share.weight)
        self.step += 1
        self._unchecked.append((self.step, share.batch))
        if self._guard_is_due(batch):
            self._ask_guard()
        return measures, gradient_norm

    def _learn(self, batch: Batch, weight: float = 1.0) -> tuple[Tensor, Tensor]:
        """What a step does on the device, waiting for nothing: on a GPU it may be recorded.

        Args:
            batch: This rank's share, an image at least.
            weight: Its part of the images of all ranks.
        """
        assert self._averaged is not None
        self.optimizer.zero_grad()
        with exact_fp32(self.device, self.config.precision):
            terms, lengths = self._averaged(batch)
            # Of the ranks' gradients the plain mean is taken, whatever the sizes of their shares.
            (terms.total * (weight * self.ranks.size)).backward()
        gradient_norm = self._clip_gradient()
        measures = self.ranks.sum(measure(terms, lengths, batch.labels) * weight)
        scalars = self._scalars
        number = self.step + 1 if scalars is None else scalars.number
        self._guard.watch(LossTerms(*measures[:3]), gradient_norm, number)
        with nullcontext() if scalars is None else scalars.leading(self.optimizer):
            self.optimizer.step()
        return measures, gradient_norm

    def _check_ranks(self) -> None:
        """Whether all ranks are about to do the same."""
        if not self.ranks.alone:
            facts = {
                "the configuration": self.config.model_dump_json(),
                "the data's sha256": self.dataset.sha256,
                "the epoch": self.epoch,
                "the step": self.step,
            }
            self.ranks.check_same(facts)

    def _clip_gradient(self) -> Tensor:
        """Limit the gradient's length as the settings say; returns what it was."""
        weights = list(self.model.parameters())
        norm = torch.nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
        limit = self.config.optimizer.max_gradient_norm
        if limit is not None:
            torch.nn.utils.clip_grads_with_norm_(weights, limit, norm)
        return norm

    def _place_data(self) -> None:
        """Split the training set and move its parts to the device."""
        data, settings, seed = self.dataset, self.config.dataset, self.config.seed
        labels = data.train_labels
        kept, self.validation_indices = hold_out(labels, settings.validation_fraction, seed)
        if settings.per_class is not None:
            kept = choose_per_class(labels, kept, settings.per_class, seed)
        self.train_indices = kept
        self.composition: Composition = data.composition or Shifted(settings.max_shift)
        self._train_part = self._on_device(data.train_images, labels, kept)
        held_out = self.validation_indices
        if self.config.early_stopping and not len(held_out):
            raise ValueError(
                f"early_stopping needs a validation part: {self._no_validation_part()}"
            )
        self._validation_part = self._on_device(data.train_images, labels, held_out)

    def _no_validation_part(self) -> str:
        fraction = self.config.dataset.validation_fraction
        return (
            f"dataset.validation_fraction is {fraction:g}, which of each class of "
            f"{len(self.dataset.train_labels)} images holds out none"
        )

    def _on_device(self, images: Tensor, labels: Tensor, chosen: Tensor | None = None) -> Part:
        """Some images, or all; on a CPU all are not held twice."""
        if chosen is not None and not torch.equal(chosen, torch.arange(len(labels))):
            images, labels = images[chosen], labels[chosen]
        return Part(images.to(self.device), labels.to(self.device))

    def _part(self, split: Split) -> tuple[Part, Composition]:
        """A part and what makes its images; the test part is not kept on the device."""
        if split == "train":
            return self._train_part, self.composition
        if split == "validation":
            return self._validation_part, self.composition
        data = self.dataset
        return self._on_device(data.test_images, data.test_labels), data.test_composition

    def _begin_epoch(self) -> None:
        self.epoch_means = RunningMean(self.device, self.model.targets)
        self._reset_guard()
        self._start_clock()

    def _reset_guard(self) -> None:
        self._guard.reset()
        self._unchecked: list[tuple[int, Batch]] = []
        """Steps that the guard was not heard about yet, and their batches, to find a culprit in."""
        self._asked_about = 0
        """How many of them the last glance at the guard sent for."""

    def _guard_is_due(self, batch: Batch) -> bool:
        """At every step where a look costs nothing; with glances only now and then.

        The batch is that of all ranks, which so look at the same steps.
        """
        if not self._glances:
            return True
        share = sum(part.nbytes for part in batch if part is not None) / self.ranks.size
        new = len(self._unchecked) - self._asked_about
        return new >= GUARD_STEPS or 2 * new * share >= GUARD_BYTES

    def _ask_guard(self) -> None:
        """Raise DivergedError if a step was not finite: up to now, or up to the last glance.

        Glances come after the same steps on all ranks, and tell them the same.
        """
        if not self._glances:
            self._check_guard()
            self._unchecked.clear()
            return
        found = self._guard.glance()
        if found is not None:
            self._diverged(*found)
        del self._unchecked[: self._asked_about]
        self._asked_about = len(self._unchecked)

    def _check_guard(self, together: bool = True) -> None:
        """Raise DivergedError if any step was not finite; waits for the device.

        Args:
            together: Whether all ranks look now.
        """
        found = self._guard.find()
        if found is not None:
            self._diverged(*found, together)

    def _diverged(self, term: str, step: int, together: bool = True) -> NoReturn:
        """Raise DivergedError, with a diagnosis.

        Args:
            term: The first term that was not finite.
            step: When it was.
            together: Whether all ranks do this now. Each finds the same term and step, but only the
                ranks whose shares are to blame find a culprit; together they tell the others.
        """
        batch = dict(self._unchecked).get(step)
        culprit = None
        if batch is not None:
            culprit = find_culprit(self.model, self.loss, batch, self.config.precision)
        if together:
            culprit = self.ranks.first_of(culprit)
        raise DivergedError(term, step, culprit)

    def _start_clock(self) -> None:
        self._epoch_started = time.perf_counter()
        self._epoch_images = 0
        self._throughput = Throughput()

    def _verdict(self) -> Stopped | None:
        """Why to stop now, if at all."""
        early = self.config.early_stopping
        requested = self._someone_stops()
        if self.epoch >= self.config.epochs:
            return "completed"
        if early and self.stale_epochs >= early.patience:
            return "early-stopping"
        return "requested" if requested else None

    def _someone_stops(self) -> bool:
        """Whether a stop was requested on any rank; the answer is the same on all."""
        try:
            return self.ranks.vote(self._stop_requested)
        except RankFailedError:
            self._check_guard(together=False)  # that may be why
            raise

    def _train_step(self) -> StepMetrics:
        """The next batch, and its part in the epoch."""
        batch = self._next_batch()
        learning_rate = self._set_learning_rate()
        measures, gradient_norm = self.train_on(batch)
        images = len(batch.labels)
        self.epoch_means.add(measures, images)
        self._epoch_images += images
        rate = self._throughput.add(images)
        return StepMetrics(
            self.step, self.epoch, learning_rate, rate, measures, gradient_norm, self.model.targets
        )

    def _next_batch(self) -> Batch:
        """Pixels in [0, 1] and labels, on the device."""
        indices = self.sampler.next_batch()
        return self.composition.training_batch(self._train_part, indices, self.draws).as_pixels()

    def _set_learning_rate(self) -> float:
        factor = learning_rate_factor(self.config.schedule, self.step, self.total_steps)
        learning_rate = self.config.optimizer.learning_rate * factor
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        return learning_rate

    def _finish_epoch(self) -> None:
        """Evaluate, judge and count the epoch, and begin the next; nothing if interrupted."""
        self._check_guard()
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
        with self.ranks.failing_together():
            for callback in self.callbacks:
                callback.on_epoch(self, metrics)
        self._start_clock()

    def _validate(self) -> Evaluation | None:
        if not len(self.validation_indices):
            return None
        return self._evaluate("validation", interruptible=True)

    def _evaluate(self, split: Split, interruptible: bool = False) -> Evaluation:
        part, composition = self._part(split)
        self.ranks.same_buffers(self.model)
        evaluation = evaluate(
            self.model,
            self.loss,
            held_out_batches(composition, part, self.ranks),
            self.config.precision,
            interrupted=lambda: interruptible and self._someone_stops(),
            ranks=self.ranks,
        )
        if not math.isfinite(evaluation.total_loss):
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
    has = (dataset.image_shape, dataset.classes, dataset.targets)
    takes = (tuple(model.image_shape), model.classes, model.targets)
    if has != takes:
        raise ValueError(
            f"data set {dataset.name!r} has images {list(has[0])} of {has[1]} classes with "
            f"{has[2]} targets each, the model takes {list(takes[0])} of {takes[1]} with {takes[2]}"
        )
