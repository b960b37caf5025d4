"""Searches without a cluster: specifications, books, and what trials would have left."""

import json
from pathlib import Path
from typing import Any

from support.nets import TINY_NET
from workers.attempt import (
    AttemptFolder,
    Outcome,
    Reason,
    Result,
    SearchAttempt,
    installed_release,
)
from workers.search.book import SearchBook
from workers.search_specs import SearchSpec
from workers.trials import Report, reports_file, trial_folder

METRIC = "val/accuracy"
RATE = "optimizer.learning_rate"


def make_spec(base: dict[str, Any] | None = None, **changes: Any) -> SearchSpec:
    """Five learning rates of a tiny net, four epochs each, drawn at random."""
    training = {
        "dataset": {"type": "mnist-5k"},
        "model": TINY_NET.model_dump(mode="json", by_alias=True, exclude_unset=True),
        "resources": {"cpus_per_worker": 1},
        "epochs": 4,
        "seed": 7,
        **(base or {}),
    }
    document = {
        "base": training,
        "space": {RATE: {"type": "loguniform", "low": 1e-4, "high": 1e-2}},
        "trials": 5,
        **changes,
    }
    return SearchSpec.model_validate_json(json.dumps(document))


def make_attempt(spec: SearchSpec, number: int = 1, retry_through: int = 0) -> SearchAttempt:
    """What the control plane would have written."""
    return SearchAttempt(
        package_version=installed_release(),
        job="s1",
        attempt=number,
        spec=spec,
        tracking_uri="http://mlflow",
        experiment_id="1",
        run_id="parent",
        retry_through=retry_through,
    )


def open_book(
    storage: Path, spec: SearchSpec, attempt: int = 1, retry_through: int = 0
) -> SearchBook:
    """The book of an attempt of search `s1`."""
    return SearchBook(spec, AttemptFolder(storage, "s1", attempt), "s1", attempt, retry_through)


def report(number: int, epoch: int, score: float | None, **metrics: float | None) -> Report:
    """What a trial tells of an epoch."""
    found = {METRIC: score, **metrics}
    return Report(number=number, epoch=epoch, step=100 * epoch, at=100.0 + epoch, metrics=found)


def choose(book: SearchBook, *numbers: int) -> None:
    """New trials with a learning rate by configuration."""
    for number in numbers:
        rate = 0.001 * (1 + number // book.spec.seeds)
        book.choose(number, {RATE: rate}, book.spec.base.epochs)


def run(book: SearchBook, number: int, *scores: float | None) -> None:
    """A trial that starts and tells these scores, one an epoch."""
    book.start(number)
    for epoch, score in enumerate(scores, start=1):
        book.report(report(number, epoch, score))


def leave(
    book: SearchBook, number: int, outcome: Outcome, reason: Reason, evidence: str = ""
) -> AttemptFolder:
    """What a trial leaves when it ends by itself."""
    folder = book.folder(number)
    folder.write_result(Result(outcome=outcome, reason=reason, evidence=evidence))
    return folder


def succeed(book: SearchBook, number: int, *scores: float | None) -> None:
    """A trial from its start to a good end."""
    run(book, number, *scores)
    leave(book, number, "succeeded", Reason.COMPLETED)
    book.conclude(number, lost=False)


def fail(book: SearchBook, number: int, *scores: float | None) -> None:
    """A trial from its start to a bad end."""
    run(book, number, *scores)
    leave(book, number, "failed", Reason.DIVERGED, f"loss of trial {number} is nan")
    book.conclude(number, lost=False)


def save_best(storage: Path, number: int, attempt: int = 1, sha256: str = "abc") -> Path:
    """A best checkpoint and the file beside it, as far as a book reads them."""
    folder = trial_folder(storage, "s1", number, attempt).checkpoints
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "best.pt").write_bytes(b"weights")
    (folder / "best.pt.json").write_text(json.dumps({"sha256": sha256, "epoch": 2, "step": 72}))
    return folder / "best.pt"


def write_reports(storage: Path, number: int, attempt: int, *reports: Report) -> None:
    """A trial's own file of reports, each line begun on a new one as the trial does."""
    path = reports_file(trial_folder(storage, "s1", number, attempt))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines("\n" + each.model_dump_json() for each in reports)
