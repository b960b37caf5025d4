"""The end of a search: the best trials shown, and the reports on the whole of it, in MLflow."""

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workers import uploads
from workers.attempt import AttemptFolder, SearchAttempt
from workers.search.book import SearchBook
from workers.search_specs import SearchSpec
from workers.specs import ResourcesConfig
from workers.stop import StopFlag
from workers.tracking import Call, Tracker
from workers.trials import Standing, Trial

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

SHOW_TIMEOUT_S = 600.0
REPORT = "report"
"""Folder of the parent run's artifacts that holds tables and plots."""


def present(
    folder: AttemptFolder,
    attempt: SearchAttempt,
    book: SearchBook,
    tracker: Tracker,
    stop: StopFlag,
) -> None:
    """Make and send everything that tells of the search; what fails is logged and left out.

    Once the search is to stop, only what takes a second or two.
    """
    spec, table = attempt.spec, book.table()
    best = [standing for standing in book.standings() if standing.mean is not None]
    chosen = [
        (standing, trial)
        for standing in best[: spec.keep_top]
        if (trial := standing.best(spec.mode)) is not None and trial.checkpoint is not None
    ]
    shown = _show(attempt, chosen, stop)
    where = folder.artifacts
    where.mkdir(parents=True, exist_ok=True)
    try:
        _compare(book, shown, where / "comparison.png")
    except Exception:
        logger.exception("the best trials were not compared")
    from workers.search.report import make_reports, summary

    make_reports(spec, table, where, interactive=not stop.cause())
    files = sorted(path for path in where.iterdir() if path.is_file())
    tracker.submit("reports", _log_reports(files))
    tracker.submit("table of trials", _log_table("trials.json"))
    tracker.submit("the note", _log_note(summary(spec, table), files))
    for _, trial in shown:
        tracker.submit(f"best of trial {trial.number}", _log_trial(spec, book, trial))


def _show(
    attempt: SearchAttempt, chosen: Sequence[tuple[Standing, Trial]], stop: StopFlag
) -> list[tuple[Standing, Trial]]:
    """Have the cluster draw what the best trials see; those of which that worked."""
    import ray

    if stop.cause():
        return []
    task = ray.remote(**_options(attempt.spec.resources))(_show_one)
    waiting = [
        task.remote(attempt.job, attempt.attempt, trial.model_dump_json()) for _, trial in chosen
    ]
    patience = time.monotonic() + SHOW_TIMEOUT_S
    pending = waiting
    while pending and not stop.cause() and time.monotonic() < patience:
        _, pending = ray.wait(waiting, num_returns=len(waiting), timeout=0.5)
    shown = []
    for pair, reference in zip(chosen, waiting, strict=True):
        try:
            ray.get(reference, timeout=0)
        except Exception:
            logger.exception("trial %d is not shown", pair[1].number)
            continue
        shown.append(pair)
    return shown


def _show_one(search: str, attempt: int, trial: str) -> None:
    from workers.search.showing import show

    show(search, attempt, trial)


def _options(need: ResourcesConfig) -> dict[str, object]:
    return {
        "num_cpus": need.cpus_per_worker,
        "num_gpus": need.gpus_per_worker,
        "accelerator_type": need.accelerator_type,
        "max_retries": 1,
    }


def _compare(book: SearchBook, shown: Sequence[tuple[Standing, Trial]], path: Path) -> None:
    """The best trials' reconstructions of the same images, row by row."""
    from workers.search.report.comparison import ComparisonRow, compare, label_of
    from workers.search.showing import read_drawings

    found = [(s, t, read_drawings(book.folder(t.number))) for s, t in shown]
    drawing = [(s, t, d) for s, t, d in found if len(d.drawn)]
    if not drawing:
        return
    first = drawing[0][2]
    rows = [
        ComparisonRow(label_of(book.spec, rank, standing), each.drawn)
        for rank, (standing, _, each) in enumerate(drawing, start=1)
        # Another data set, or another size of images, has no place in the same columns.
        if each.inputs.shape == first.inputs.shape and (each.inputs == first.inputs).all()
    ]
    compare(rows, first.inputs, _label_texts(first.labels)).save(path)


def _label_texts(labels: "np.ndarray") -> list[str]:
    """`7`, or `3+7` where digits overlap."""
    return ["+".join(map(str, each.reshape(-1).tolist())) for each in labels]


def _log_reports(files: Sequence[Path]) -> Call:
    def call(client: "MlflowClient", run_id: str) -> None:
        for path in files:
            client.log_artifact(run_id, str(path), REPORT)

    return call


def _log_table(name: str) -> Call:
    """Have MLflow show a file as a table; its own `log_table` adds to what is there already."""

    def call(client: "MlflowClient", run_id: str) -> None:
        tables = [{"path": f"{REPORT}/{name}", "type": "table"}]
        client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps(tables))

    return call


def _log_note(text: str, files: Sequence[Path]) -> Call:
    """The summary and the pictures, below the note that the control plane began."""

    def call(client: "MlflowClient", run_id: str) -> None:
        note = client.get_run(run_id).data.tags.get(uploads.NOTE, "")
        begun, _, _ = note.partition("\n\n## Results")
        pictures = [
            f"![{path.stem}](get-artifact?path={REPORT}/{path.name}&run_uuid={run_id})"
            for path in files
            if path.suffix == ".png"
        ]
        client.set_tag(run_id, uploads.NOTE, "\n\n".join([begun, "## Results", text, *pictures]))

    return call


def _log_trial(spec: SearchSpec, book: SearchBook, trial: Trial) -> Call:
    """Sheets, checkpoint and model of one of the best, to its own run."""
    folder = book.folder(trial.number)
    model = spec.variant(trial.values, trial.seed).model

    def call(client: "MlflowClient", run_id: str) -> None:
        from workers.serving import log_pyfunc

        known = book.trial(trial.number)
        if known is None or known.run_id is None or known.checkpoint is None:
            return
        for path in sorted(folder.artifacts.glob("*.png")):
            client.log_artifact(known.run_id, str(path), uploads.SHEETS)
        checkpoint = folder.storage / known.checkpoint
        for path in (checkpoint, checkpoint.with_name(f"{checkpoint.name}.json")):
            client.log_artifact(known.run_id, str(path), "checkpoints/best")
        log_pyfunc(folder.path / "model", model, known.run_id)

    return call
