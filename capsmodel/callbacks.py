"""Callbacks: how a caller follows a training and acts on it."""

from typing import TYPE_CHECKING

from capsmodel.metrics import EpochMetrics, StepMetrics

if TYPE_CHECKING:
    from capsmodel.training import Trainer


class Callback:
    """Base of the callbacks: every hook does nothing. An exception in a hook ends the training.

    In every hook `trainer.state_dict()` is a state from which a training goes on exactly, and
    `trainer.request_stop()` ends it.
    """

    def on_start(self, trainer: "Trainer") -> None:
        """`fit` begins, at step 0 or wherever the training was resumed."""

    def on_step(self, trainer: "Trainer", metrics: StepMetrics) -> None:
        """A step is done. Called at every step: be quick, and read `metrics` only now and then."""

    def on_epoch(self, trainer: "Trainer", metrics: EpochMetrics) -> None:
        """An epoch is done, evaluated and counted."""
