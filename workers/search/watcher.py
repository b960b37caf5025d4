"""Tune's callbacks: every start, report, loss and end of a trial goes into the book."""

import logging
from collections.abc import Callable
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial

from workers.search.book import SearchBook
from workers.trials import Report

logger = logging.getLogger(__name__)


class Watcher(Callback):  # type: ignore[misc]  # Ray has no types
    """Writes the book; Tune calls it in the driver."""

    def __init__(self, book: SearchBook, look: Callable[[], object]) -> None:
        """Watch.

        Args:
            book: The search's.
            look: Called at every turn of Tune's loop: whether the search is to end.
        """
        self._book = book
        self._look = look

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles callbacks to restore them, and all is in the book."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """A turn of the loop, ten times a second or more often."""
        self._look()

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """An actor has it."""
        self._book.start(_number(trial))

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """The end of an epoch."""
        if "report" in result:
            self._book.report(Report.model_validate_json(result["report"]))

    def on_trial_recover(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Its process died; another one goes on from its checkpoint."""
        known = self._book.trial(_number(trial))
        assert known is not None
        self._book.update(known.number, losses=known.losses + 1)
        logger.warning("trial %d: its process died; it goes on elsewhere", known.number)

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """It ended by itself, or the scheduler ended it."""
        ended = self._book.conclude(_number(trial), lost=False)
        logger.info("trial %d: %s %s", ended.number, ended.state, ended.evidence)
        self._book.drop_checkpoints()

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Its process died, and not for the first time."""
        ended = self._book.conclude(_number(trial), lost=True)
        logger.warning("trial %d: %s %s", ended.number, ended.state, ended.evidence)


def _number(trial: TuneTrial) -> int:
    return int(trial.config["number"])
