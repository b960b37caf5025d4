"""The tree-structured Parzen estimator (Bergstra et al. 2011), as Optuna has it."""

from random import Random
from typing import Any

import optuna
from optuna.trial import Trial, TrialState

from workers.search import distributions
from workers.search.algorithms import Algorithm
from workers.search_specs import SearchSpec, TpeConfig
from workers.trials import Standing
from workers.trials import TrialState as State


class Tpe(Algorithm):
    """An Optuna study in memory, asked and told."""

    def __init__(self, spec: SearchSpec) -> None:
        super().__init__(spec)
        assert isinstance(spec.algorithm, TpeConfig)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._startup_trials = spec.algorithm.startup_trials
        self._study = optuna.create_study(
            sampler=optuna.samplers.RandomSampler(),  # never asked: see `ask` and `known`
            direction="maximize" if spec.mode == "max" else "minimize",
        )
        self._space = distributions.distributions(spec.space)
        self._trials: dict[int, Trial] = {}
        """By configuration, those that are not told yet."""

    def ask(self, configuration: int) -> dict[str, Any]:
        """Where the estimator expects the largest improvement."""
        self._study.sampler = self._sampler(configuration)
        trial = self._trials[configuration] = self._study.ask(self._space)
        return distributions.decoded(self.spec.space, trial.params)

    def known(self, configuration: int, values: dict[str, Any]) -> None:
        """Have the study choose it again."""
        self._study.enqueue_trial(distributions.encoded(self.spec.space, values))
        self._trials[configuration] = self._study.ask(self._space)

    def tell(self, standing: Standing) -> None:
        """Its mean score; as cut off early, if none of its trials came to its end."""
        trial = self._trials.pop(standing.configuration, None)
        if trial is None:
            return
        if standing.mean is None:
            self._study.tell(trial, state=TrialState.FAIL)
        elif any(each.state is State.SUCCEEDED for each in standing.trials):
            self._study.tell(trial, standing.mean)
        else:
            trial.report(standing.mean, max(each.epoch for each in standing.scored))
            self._study.tell(trial, state=TrialState.PRUNED)

    def _sampler(self, configuration: int) -> optuna.samplers.TPESampler:
        """An estimator that draws by the configuration's number, not by how often it was asked.

        A resumed search would otherwise begin its random numbers again, and with them its points.
        """
        chance = Random(f"{self.spec.base.seed}/tpe/{configuration}")
        return optuna.samplers.TPESampler(
            seed=chance.randrange(2**32),
            n_startup_trials=self._startup_trials,
            multivariate=True,
            # Configurations that still run count as poor, so that two workers do not try the same.
            constant_liar=True,
        )
