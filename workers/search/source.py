"""Where Tune gets its trials: those to go on with, then new ones, as many at once as allowed."""

from collections import deque
from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from workers.search.algorithms import Algorithm
from workers.search.book import SearchBook
from workers.search.trainable import TrialOrder
from workers.trials import TrialState


class TrialSource(Searcher):  # type: ignore[misc]  # Ray has no types
    """Tune's searcher: asks the algorithm, and writes into the book before Tune hears of it."""

    def __init__(
        self,
        book: SearchBook,
        algorithm: Algorithm,
        search: str,
        closed: Callable[[], object],
    ) -> None:
        """Tell the algorithm what the book knows.

        Args:
            book: The search's.
            algorithm: A new one.
            search: The search's id.
            closed: Asked before each trial; once it is true, none starts any more.
        """
        super().__init__(metric=book.spec.metric, mode=book.spec.mode)
        self._book = book
        self._algorithm = algorithm
        self._search = search
        self._closed = closed
        self._live: set[str] = set()
        trials = book.table().trials
        self._next = max(trials, default=-1) + 1
        self._waiting = deque(
            number for number, trial in sorted(trials.items()) if not trial.state.ended
        )
        self._numbers: dict[str, int] = {}
        self._told: set[int] = set()
        for standing in sorted(book.standings(), key=lambda each: each.configuration):
            algorithm.known(standing.configuration, standing.values)
            self._tell(standing.configuration)

    @property
    def remaining(self) -> int:
        """Trials that are still to be run."""
        return len(self._waiting) + max(0, self._book.total - self._next)

    def suggest(self, trial_id: str) -> Any:
        """The next trial's order; None while as many run as may, FINISHED at the end."""
        if self._closed() or not self.remaining:
            return Searcher.FINISHED
        if len(self._live) >= self._book.spec.concurrency:
            return None
        number = self._waiting.popleft() if self._waiting else self._new()
        self._live.add(trial_id)
        self._numbers[trial_id] = number
        trial = self._book.trial(number)
        assert trial is not None
        order = TrialOrder(
            search=self._search,
            attempt=self._book.attempt,
            number=number,
            seed=trial.seed,
            values=trial.values,
        )
        return {"number": number, "order": order.model_dump_json()}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Note how a trial ended, and tell the algorithm when its configuration has."""
        number = self._numbers[trial_id]
        if trial_id not in self._live:
            return
        self._live.discard(trial_id)
        trial = self._book.conclude(number, lost=error)
        self._tell(trial.configuration)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: the book hears of it by the callback, which knows every result."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: all is in the book."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: all is in the book."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: all is in the book."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles a searcher to restore it, and all is in the book."""
        return {}

    def _new(self) -> int:
        number, self._next = self._next, self._next + 1
        spec = self._book.spec
        configuration, seed = divmod(number, spec.seeds)
        if seed == 0:
            values = self._algorithm.ask(configuration)
        else:
            first = self._book.trial(configuration * spec.seeds)
            assert first is not None
            values = first.values
        self._book.choose(number, values, spec.variant(values, seed).epochs)
        return number

    def _tell(self, configuration: int) -> None:
        standing = self._book.standing(configuration)
        ended = standing is not None and any(
            trial.state is not TrialState.CANCELLED for trial in standing.trials
        )
        if standing is not None and ended and configuration not in self._told:
            self._told.add(configuration)
            self._algorithm.tell(standing)
