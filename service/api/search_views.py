"""What the API answers about searches. Imports no web framework."""

from datetime import datetime
from typing import Any, Literal

from service.api.views import JobItem, JobLinks, JobView, MlflowView, View
from workers.attempt import Reason, TrialCounts
from workers.trials import TrialState


class SearchLinks(JobLinks):
    """Where more about a search is found."""

    trials: str
    configurations: str
    retry_failed: str
    promote: str


class ConfigurationView(View):
    """A configuration's place on the leaderboard."""

    rank: int | None = None
    """From 1; null while no trial of it has a score."""
    configuration: int
    values: dict[str, Any]
    """A value for every path of the space."""
    mean: float | None = None
    """Of the scores of its trials that did not fail."""
    deviation: float | None = None
    """Sample standard deviation of these scores; null for fewer than two."""
    trials: list[int]
    """Numbers of its trials, one a seed."""
    scored: int
    """How many of them have a score."""
    states: dict[TrialState, int]
    epoch: int
    """Epochs that its furthest trial has completed."""
    epochs: int
    best_trial: int | None = None
    """The trial with the best score."""


class SearchItem(JobItem):
    """A search in a list: all but its specification."""

    links: SearchLinks


class SearchView(JobView):
    """A search."""

    metric: str
    """What is compared, at each trial's best epoch."""
    mode: Literal["max", "min"]
    """Whether a larger or a smaller metric is better."""
    counts: TrialCounts
    """How many trials are where."""
    best: ConfigurationView | None = None
    """The best configuration so far."""
    links: SearchLinks


class SearchPage(View):
    """A page of searches, the newest first."""

    searches: list[SearchItem]
    next_cursor: str | None = None
    """Pass it as `cursor` to read on; null on the last page."""


class TrialLinks(View):
    """Where more about a trial is found."""

    search: str
    logs: str


class TrialView(View):
    """One training of a search."""

    number: int
    """From 0, in the order in which trials were chosen."""
    configuration: int
    """Trials of one configuration differ in their seed alone."""
    seed: int
    """From 0: the training's seed is the base's plus this."""
    values: dict[str, Any]
    """A value for every path of the space."""
    state: TrialState
    score: float | None = None
    """The search's metric at the trial's best epoch so far."""
    score_epoch: int | None = None
    epoch: int
    """Completed epochs."""
    epochs: int
    """Epochs that it may train."""
    metrics: dict[str, float | None]
    """Of the last completed epoch."""
    reason: Reason | None = None
    evidence: str = ""
    hint: str | None = None
    losses: int = 0
    """How often its process was killed and it went on from its checkpoint."""
    attempt: int = 0
    """The search's attempt that ran it last."""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    duration_s: float | None = None
    """Up to now, of a trial that runs."""
    checkpoint: str | None = None
    """Its best checkpoint, below CAPS_STORAGE, as long as that is kept."""
    checkpoint_sha256: str | None = None
    checkpoint_epoch: int | None = None
    """Completed epochs of that checkpoint."""
    checkpoint_step: int | None = None
    mlflow: MlflowView | None = None
    links: TrialLinks


class TrialPage(View):
    """Trials in the order that was asked for."""

    trials: list[TrialView]
    total: int
    """Trials that fit, on all pages."""
    next_offset: int | None = None
    """Pass it as `offset` to read on; null on the last page."""


class ConfigurationPage(View):
    """The leaderboard: the best mean first, those without a score at the end."""

    metric: str
    mode: Literal["max", "min"]
    configurations: list[ConfigurationView]
    total: int
    next_offset: int | None = None
    """Pass it as `offset` to read on; null on the last page."""
