"""The trials of a search, as its driver writes them down: the read model of the API and reports.

    CAPS_STORAGE/jobs/<search>/<attempt>/trials.jsonl     one `Line` after another, only appended
    CAPS_STORAGE/jobs/<search>/trials/<number>/<attempt>/ an `AttemptFolder` of its own a trial

A trial's last line counts. A search's new attempt begins its file with what the earlier one knew,
so that only the current attempt's file is read. Stands on Pydantic alone.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from workers.attempt import AttemptFolder, Reason

Mode = Literal["max", "min"]


class TrialState(StrEnum):
    """Where a trial is."""

    WAITING = "WAITING"
    """Chosen, or to be gone on with, but not running now."""
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    """It trained to its end."""
    PRUNED = "PRUNED"
    """The scheduler ended it early: others were better."""
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    """The search ended before it."""

    @property
    def ended(self) -> bool:
        """Whether the trial runs no more, unless somebody retries it."""
        return self not in (TrialState.WAITING, TrialState.RUNNING)


class _Row(BaseModel):
    model_config = ConfigDict(extra="ignore", ser_json_inf_nan="null")


class Trial(_Row):
    """One training of a search; times in seconds since 1970."""

    number: int
    """From 0, in the order in which trials were chosen."""
    configuration: int
    """From 0; trials of one configuration differ in their seed alone."""
    seed: int
    """From 0: the training's seed is the base's plus this."""
    values: dict[str, Any]
    """A value for every path of the space."""
    state: TrialState = TrialState.WAITING
    score: float | None = None
    """The search's metric at its best epoch so far; None before the first epoch's end."""
    score_epoch: int | None = None
    epoch: int = 0
    """Completed epochs."""
    epochs: int = 0
    """Epochs that it may train."""
    metrics: dict[str, float | None] = {}
    """Of the last completed epoch."""
    reason: Reason | None = None
    evidence: str = ""
    losses: int = 0
    """How often its process was killed and it went on from its checkpoint."""
    attempt: int = 0
    """The search's attempt that ran it last."""
    run_id: str | None = None
    """MLflow's child run."""
    shipped: bool = False
    """Whether MLflow has all of it, and the run is closed."""
    started_at: float | None = None
    ended_at: float | None = None
    checkpoint: str | None = None
    """Its best checkpoint, below CAPS_STORAGE, as long as that is kept."""
    checkpoint_sha256: str | None = None
    checkpoint_epoch: int | None = None
    """Completed epochs of that checkpoint."""
    checkpoint_step: int | None = None

    @property
    def counts(self) -> bool:
        """Whether it tells of its configuration: it has a score and did not fail."""
        return self.score is not None and self.state is not TrialState.FAILED


class Report(_Row):
    """What a trial told at the end of an epoch."""

    number: int
    epoch: int
    """Completed epochs, this one included."""
    step: int
    at: float
    """Seconds since 1970."""
    metrics: dict[str, float | None]


class Line(_Row):
    """One line of the file: a trial as it is now, or a report."""

    trial: Trial | None = None
    report: Report | None = None


@dataclass
class TrialTable:
    """All that is known of a search's trials."""

    trials: dict[int, Trial] = field(default_factory=dict)
    """By number."""
    reports: dict[int, list[Report]] = field(default_factory=dict)
    """By the trial's number, in order of epochs."""

    def add(self, line: Line) -> None:
        """Take a line in; a report of an epoch that is known already replaces it."""
        if line.trial is not None:
            self.add_trial(line.trial)
        if line.report is not None:
            known = self.reports.setdefault(line.report.number, [])
            known[:] = [r for r in known if r.epoch < line.report.epoch]
            known.append(line.report)

    def add_trial(self, trial: Trial) -> None:
        """Take a trial in, in place of what was known of it."""
        self.trials[trial.number] = trial

    def count(self, *states: TrialState) -> int:
        """Trials in any of these states."""
        return sum(trial.state in states for trial in self.trials.values())

    def lines(self) -> Iterable[Line]:
        """The least that says all of it: for the file of a new attempt."""
        for number, trial in sorted(self.trials.items()):
            yield Line(trial=trial)
            for report in self.reports.get(number, []):
                yield Line(report=report)


@dataclass(frozen=True)
class Standing:
    """A configuration's place among the others."""

    configuration: int
    values: dict[str, Any]
    trials: tuple[Trial, ...]
    """All of it, whatever became of them, by seed."""
    mean: float | None
    """Of the scores of those that count; None while none has one."""
    deviation: float | None
    """Sample standard deviation (n - 1) of these scores; None for fewer than two."""

    @property
    def scored(self) -> tuple[Trial, ...]:
        """Trials that count in the mean."""
        return tuple(trial for trial in self.trials if trial.counts)

    def best(self, mode: Mode) -> Trial | None:
        """The trial with the best score."""
        pick = max if mode == "max" else min
        return pick(self.scored, key=lambda trial: trial.score or 0.0, default=None)


def standings(trials: Iterable[Trial], mode: Mode) -> list[Standing]:
    """Configurations, the best mean first; those without a score at the end, the oldest first."""
    together: dict[int, list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: (trial.configuration, trial.seed)):
        together.setdefault(trial.configuration, []).append(trial)
    found = [_standing(number, members) for number, members in together.items()]
    sign = -1.0 if mode == "max" else 1.0
    return sorted(found, key=lambda s: (s.mean is None, sign * (s.mean or 0.0), s.configuration))


def _standing(configuration: int, trials: list[Trial]) -> Standing:
    scores = [trial.score for trial in trials if trial.counts and trial.score is not None]
    return Standing(
        configuration=configuration,
        values=trials[0].values,
        trials=tuple(trials),
        mean=fmean(scores) if scores else None,
        deviation=stdev(scores) if len(scores) > 1 else None,
    )


def trial_folder(storage: Path, search: str, number: int, attempt: int) -> AttemptFolder:
    """A trial's own folder in an attempt of its search."""
    return AttemptFolder(storage, f"{search}/trials/{number:05}", attempt)


def reports_file(folder: AttemptFolder) -> Path:
    """Where a trial itself writes down its reports, before its driver hears of them."""
    return folder.path / "reports.jsonl"


def read_reports(folder: AttemptFolder) -> list[Report]:
    """What a trial wrote down in one attempt, in order."""
    try:
        lines = reports_file(folder).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(Report.model_validate_json(line))
        except ValidationError:  # empty, or torn by a kill
            continue
    return found


def all_reports(folder: AttemptFolder) -> list[Report]:
    """What a trial wrote down up to and in an attempt, each epoch once, in order."""
    found = {
        report.epoch: report
        for each in [*reversed(folder.earlier()), folder]
        for report in read_reports(each)
    }
    return [found[epoch] for epoch in sorted(found)]


def trials_file(folder: AttemptFolder) -> Path:
    """Where the trials of a search's attempt stand."""
    return folder.path / "trials.jsonl"


def read_trials(folder: AttemptFolder) -> TrialTable:
    """The trials as the attempt knows them; as the one before did while it has told nothing yet."""
    for each in [folder, *folder.earlier()]:
        path = trials_file(each)
        if path.exists():
            return read_table(path)
    return TrialTable()


def read_table(path: Path) -> TrialTable:
    """All that a file says; a line torn by a kill is left out."""
    table = TrialTable()
    for text in path.read_bytes().splitlines():
        try:
            table.add(Line.model_validate_json(text))
        except ValidationError:
            continue
    return table


class TrialWriter:
    """Appends to an attempt's file; its one writer is the search's driver.

    Attributes:
        table: What the file says.
    """

    def __init__(self, path: Path, known: TrialTable) -> None:
        """Begin the file with what is known already."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.table = TrialTable()
        temporary = path.with_name(f".{path.name}")
        with temporary.open("w") as file:
            for line in known.lines():
                file.write(_encode(line))
                self.table.add(line)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        self._file = path.open("a", buffering=1)

    def trial(self, trial: Trial) -> None:
        """Note a trial as it is now."""
        self._append(Line(trial=trial))

    def report(self, report: Report) -> None:
        """Note what a trial told."""
        self._append(Line(report=report))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, line: Line) -> None:
        self._file.write(_encode(line))
        self.table.add(line)


def _encode(line: Line) -> str:
    return json.dumps(line.model_dump(mode="json", exclude_none=True)) + "\n"
