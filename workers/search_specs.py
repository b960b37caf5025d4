"""A search as it is submitted: a training, what varies in it, and how the variants are chosen."""

import math
from collections.abc import Iterator
from itertools import chain
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from capsmodel.config import Config
from capsmodel.config.training import FROM_DATASET
from capsmodel.open_set import Member, OpenSet
from workers import search_checks
from workers.search_checks import NOT_SEARCHED, refuse, refuse_at
from workers.search_space import (
    DIMENSIONS,
    Choice,
    Dimension,
    FieldPath,
    Grid,
    ListDimension,
    apply,
    combination,
    combinations,
    corners,
    draw,
)
from workers.specs import LabelKey, LabelValue, Name, ResourcesConfig, TrainSpec

SCHEMA_VERSION: Literal[1] = 1
DEFAULT_TRIALS = 10
MAX_TRIALS = 10_000
MAX_SEED = 2**31 - 1
CHECKED_POINTS = 256
"""So many configurations are validated beside the corners of the space."""
TRUSTED = {"variants": "checked"}
"""Validation context for a specification that was validated before, as one read from the queue:
its variants are not tried again, which is nearly all of the work."""
Metric = Literal[
    "val/accuracy",
    "val/per_digit_accuracy",
    "val/total_loss",
    "val/classification_loss",
    "val/reconstruction_loss",
]
"""Measured on the validation part: a test set that chooses is no test set."""

# -------------------------------------------------------------------------------- algorithms


class AlgorithmConfig(Config):
    """Base of the settings of the search algorithms."""

    type: str


class RandomSearchConfig(AlgorithmConfig):
    """Each configuration is drawn by itself; grid dimensions are crossed with the draws."""

    type: Literal["random"] = "random"


class GridSearchConfig(AlgorithmConfig):
    """Every combination of the values; all dimensions list theirs."""

    type: Literal["grid"] = "grid"


class TpeConfig(AlgorithmConfig):
    """Tree-structured Parzen estimator (Bergstra et al. 2011), Optuna's."""

    type: Literal["tpe"] = "tpe"
    startup_trials: int = Field(default=10, ge=1, le=1000)
    """Configurations drawn at random before the estimator chooses."""


ALGORITHMS = OpenSet(
    "workers.algorithms",
    default="random",
    members={
        "random": Member(RandomSearchConfig, "workers.search.algorithms:RandomSearch"),
        "grid": Member(GridSearchConfig, "workers.search.algorithms:GridSearch"),
        "tpe": Member(TpeConfig, "workers.search.tpe:Tpe"),
    },
)

# -------------------------------------------------------------------------------- schedulers


class SchedulerConfig(Config):
    """Base of the settings of the schedulers, which end hopeless trials early."""

    type: str


class NoSchedulerConfig(SchedulerConfig):
    """Every trial runs to its end."""

    type: Literal["none"] = "none"


class AshaConfig(SchedulerConfig):
    """Asynchronous successive halving (Li et al. 2020)."""

    type: Literal["asha"] = "asha"
    grace_epochs: int = Field(default=1, ge=1, le=10_000)
    """No trial ends before so many epochs."""
    reduction_factor: int = Field(default=3, ge=2, le=10)
    """At each rung one in so many goes on."""


class MedianConfig(SchedulerConfig):
    """A trial ends when it is worse than the median of the others so far."""

    type: Literal["median"] = "median"
    grace_epochs: int = Field(default=1, ge=1, le=10_000)
    """No trial ends before so many epochs."""
    min_trials: int = Field(default=3, ge=1, le=1000)
    """No trial ends before so many others were measured."""


SCHEDULERS = OpenSet(
    "workers.schedulers",
    default="none",
    members={
        "none": Member(NoSchedulerConfig, "workers.search.schedulers:none"),
        "asha": Member(AshaConfig, "workers.search.schedulers:asha"),
        "median": Member(MedianConfig, "workers.search.schedulers:median"),
    },
)

# ------------------------------------------------------------------------------------ search


class SearchBudget(Config):
    """When a search ends, though configurations are left."""

    max_runtime_s: int | None = Field(default=None, ge=10, le=90 * 86_400)
    """Seconds after which no trial starts any more and those running are stopped."""
    max_failures: int = Field(default=5, ge=0, le=10_000)
    """Failed trials that are tolerated; one more ends the search as FAILED."""
    max_losses: int = Field(default=1, ge=0, le=100)
    """How often a trial whose process was killed goes on from its checkpoint; then it is FAILED."""


class SearchSpec(Config):
    """A search over the fields of a training specification."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: Name = "search"
    """Name of the search and of its parent run in MLflow."""
    description: str = Field(default="", max_length=4000)
    """Markdown; stands in the parent run's note."""
    experiment: Name = "capsnet"
    """MLflow experiment."""
    labels: dict[LabelKey, LabelValue] = Field(default={}, max_length=32)
    """Free labels, of the search and of every trial."""
    priority: int = Field(default=0, ge=-100, le=100)
    """Larger starts earlier; equal ones by age."""
    base: TrainSpec = TrainSpec()
    """The training; what is not searched over stays as it is here."""
    space: dict[FieldPath, Annotated[Dimension, DIMENSIONS]] = Field(min_length=1, max_length=30)
    """Fields of the training, by path, and the values each may take."""
    metric: Metric = "val/accuracy"
    """What is compared."""
    algorithm: Annotated[AlgorithmConfig, ALGORITHMS] = RandomSearchConfig()
    scheduler: Annotated[SchedulerConfig, SCHEDULERS] = NoSchedulerConfig()
    trials: int | None = Field(default=None, ge=1, le=10_000)
    """Configurations to draw, 10 by default; the grid's number is that of its combinations."""
    concurrency: int = Field(default=2, ge=1, le=1000)
    """Trials that run at once, if the cluster has room."""
    seeds: int = Field(default=1, ge=1, le=20)
    """Trainings of each configuration, with seeds that follow the base's; the mean is its score."""
    budget: SearchBudget = SearchBudget()
    keep_top: int = Field(default=3, ge=1, le=100)
    """Best configurations whose checkpoints stay, and whose sheets and models MLflow receives."""

    @property
    def resources(self) -> ResourcesConfig:
        """What each trial reserves."""
        return self.base.resources

    @property
    def mode(self) -> Literal["max", "min"]:
        """Whether a larger or a smaller metric is better."""
        return "max" if self.metric.endswith("accuracy") else "min"

    def beats(self, score: float, other: float) -> bool:
        """Whether a value of the metric is better than another one."""
        return score > other if self.mode == "max" else score < other

    @property
    def draws(self) -> int:
        """How often the space is drawn from; each draw meets every combination of the grids."""
        if isinstance(self.algorithm, GridSearchConfig):
            return 1
        return self.trials or DEFAULT_TRIALS

    @property
    def configurations(self) -> int:
        """Configurations in all."""
        return self.draws * combinations(self._listed)

    @property
    def _listed(self) -> dict[str, ListDimension]:
        """Dimensions of which each combination is tried: the grids, in a grid search all."""
        every = isinstance(self.algorithm, GridSearchConfig)
        return {
            path: dimension
            for path, dimension in self.space.items()
            if isinstance(dimension, Grid) or (every and isinstance(dimension, ListDimension))
        }

    @property
    def different_draws(self) -> float:
        """How many draws of a random search can differ; infinite where real numbers are drawn."""
        return math.prod(
            dimension.size for path, dimension in self.space.items() if path not in self._listed
        )

    def configuration(self, number: int) -> dict[str, Any]:
        """A value for every path: configuration `number` of a random or a grid search, from 0.

        A random search draws by the base's seed and goes through all combinations of the grids in
        the space before it draws again; `workers.search_space.combination` tells in which order.
        TPE chooses by what it has measured: of its space this is a random point.

        Raises:
            IndexError: The search has fewer configurations.
        """
        if not 0 <= number < self.configurations:
            raise IndexError(
                f"configuration {number} is asked for, expected 0 to {self.configurations - 1}"
            )
        listed = self._listed
        others = {path: each for path, each in self.space.items() if path not in listed}
        turn, place = divmod(number, combinations(listed))
        values = {**combination(listed, place), **draw(others, self.base.seed, turn)}
        return {path: values[path] for path in self.space}

    def document(self) -> dict[str, Any]:
        """The base as JSON, without what the data set of a variant decides."""
        document = self.base.model_dump(mode="json", by_alias=True)
        for name in FROM_DATASET:
            document["model"].pop(name)
        return document

    def variant(self, assignment: dict[str, Any], seed: int = 0) -> TrainSpec:
        """The training with the values of `assignment`, number `seed` of its seeds.

        Raises:
            pydantic.ValidationError: The values do not fit together.
        """
        document = apply(self.document(), assignment)
        document["seed"] = self.base.seed + seed
        return TrainSpec.model_validate(document)

    def checked_variant(self, assignment: dict[str, Any]) -> TrainSpec:
        """`variant`, whose error points to the path in the space whose value does not fit.

        Raises:
            pydantic.ValidationError: The values do not fit together, or the search could not
                measure what they make.
        """
        return search_checks.checked_variant(self, assignment)

    @property
    def epochs_range(self) -> tuple[int, int]:
        """The fewest and the most epochs of a trial."""
        varied = self.space.get("epochs")
        corner = [int(value) for value in varied.corners()] if varied else [self.base.epochs]
        return min(corner), max(corner)

    @model_validator(mode="after")
    def _paths_are_searched(self) -> Self:
        for path in self.space:
            if hint := NOT_SEARCHED.get(path.partition(".")[0]):
                refuse(path, f"{path!r} is nothing that a search varies: {hint}", path)
        search_checks.refuse_stated_twice(self.space)
        return self

    @model_validator(mode="after")
    def _algorithm_fits(self) -> Self:
        for path, dimension in self.space.items():
            listed = isinstance(dimension, Choice | Grid)
            if isinstance(self.algorithm, GridSearchConfig) and not listed:
                refuse(
                    path,
                    f"{dimension.type!r} lists no values, but a grid search needs them: write "
                    "`grid` with values, or the algorithm `random`",
                    dimension.type,
                )
            if isinstance(self.algorithm, TpeConfig) and isinstance(dimension, Grid):
                refuse(
                    path,
                    "'grid' is for the algorithms `random` and `grid`: for tpe write `choice`",
                    dimension.type,
                )
        if isinstance(self.algorithm, GridSearchConfig) and self.trials is not None:
            refuse_at(
                ("trials",),
                f"trials is {self.trials}, but a grid has as many as its values combine to, "
                f"{self.configurations}: leave it out",
                self.trials,
            )
        return self

    @model_validator(mode="after")
    def _no_retries(self) -> Self:
        if self.base.max_retries:
            refuse_at(
                ("base", "max_retries"),
                f"max_retries {self.base.max_retries} says nothing for a trial, accepted is 0: "
                "budget.max_losses says how often a killed trial goes on, and retry-failed runs "
                "failed ones again",
                self.base.max_retries,
            )
        return self

    @model_validator(mode="after")
    def _not_too_many_trials(self) -> Self:
        trials, grids = self.configurations * self.seeds, combinations(self._listed)
        if trials > MAX_TRIALS:
            refuse_at(
                ("space",) if grids > 1 else ("trials",),
                f"draws {self.draws:,} x combinations of listed values {grids:,} x seeds "
                f"{self.seeds} = {trials:,} trials, accepted are up to {MAX_TRIALS:,}: list fewer "
                "values, lower `trials` or `seeds`, or in place of a grid draw with `random`",
                trials,
            )
        last = self.base.seed + self.seeds - 1
        if last > MAX_SEED:
            refuse_at(
                ("seeds",),
                f"seeds {self.seeds} from base.seed {self.base.seed} on reach {last:,}, accepted "
                f"is up to {MAX_SEED:,}: lower base.seed",
                self.seeds,
            )
        return self

    @model_validator(mode="after")
    def _every_variant_is_valid(self, info: ValidationInfo) -> Self:
        """Try the corners of the space, then the first configurations."""
        if info.context == TRUSTED:
            return self
        for assignment in chain(corners(self.space), self._points()):
            self.checked_variant(assignment)
        return self

    def _points(self) -> Iterator[dict[str, Any]]:
        """The first configurations; where the algorithm chooses them itself, random ones."""
        if isinstance(self.algorithm, RandomSearchConfig | GridSearchConfig):
            for number in range(min(self.configurations, CHECKED_POINTS)):
                yield self.configuration(number)
        else:
            for number in range(CHECKED_POINTS):
                yield draw(self.space, self.base.seed, number)

    @model_validator(mode="after")
    def _draws_can_differ(self, info: ValidationInfo) -> Self:
        """Not asked of a queued search again: it may be older than this rule."""
        if info.context == TRUSTED or not isinstance(self.algorithm, RandomSearchConfig):
            return self
        most, crossed = self.different_draws, combinations(self._listed)
        if self.trials is not None and self.trials > most:
            each = f", each with all {crossed:,} combinations of the grids" if crossed > 1 else ""
            refuse_at(
                ("trials",),
                f"trials {self.trials:,} exceeds the number of different draws from this space, "
                f"{most:,}{each}: accepted is 1 to {most:,}; write fewer, or leave it out, list "
                "the values and write the algorithm `grid`, which tries each combination once",
                self.trials,
            )
        return self

    @model_validator(mode="after")
    def _scheduler_has_something_to_end(self) -> Self:
        if not isinstance(self.scheduler, AshaConfig | MedianConfig):
            return self
        grace, (_, longest) = self.scheduler.grace_epochs, self.epochs_range
        if grace >= longest:
            accepted = f"accepted is up to {longest - 1}, or " if longest > 1 else ""
            refuse_at(
                ("scheduler", "grace_epochs"),
                f"grace_epochs {grace} leaves {self.scheduler.type!r} nothing to end early, since "
                f"no trial has more than {longest} epochs: {accepted}raise base.epochs, or write "
                "the scheduler `none`",
                grace,
            )
        return self
