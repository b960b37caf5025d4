"""`capsctl jobs` and `show`: the queue, and one job or search of it."""

from datetime import UTC, datetime
from itertools import islice
from typing import Annotated

import typer
from rich.table import Table

from service.api.views import JobItem, ProgressView
from service.cli.documents import dump
from service.cli.leaderboard import score
from service.cli.output import (
    Format,
    InputError,
    JobArgument,
    Output,
    console,
    percent,
    print_json,
)
from service.cli.watch import summary
from service.client import CapsClient
from service.queue.job import Kind, State


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(name="jobs")(list_jobs)
    app.command()(show)


def list_jobs(
    experiment: Annotated[str | None, typer.Option(help="Only of this experiment.")] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Only with this label; repeatable."),
    ] = None,
    state: Annotated[
        list[State] | None,
        typer.Option(case_sensitive=False, help="Only in this state; repeatable."),
    ] = None,
    kind: Annotated[list[Kind] | None, typer.Option(help="Only of this kind; repeatable.")] = None,
    owner: Annotated[
        str | None, typer.Option(help="Only of this owner; others' are an administrator's to see.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest first.")] = 50,
    output: Output = Format.TEXT,
) -> None:
    """List jobs and searches, the newest first."""
    labels = dict(_label(text) for text in label or [])
    with CapsClient() as client:
        found = client.jobs(
            experiment=experiment,
            labels=labels,
            states=state or [],
            kinds=kind or [],
            owner=owner,
            page_size=min(limit, 200),
        )
        jobs = list(islice(found, limit))
    if output is Format.JSON:
        print_json([job.model_dump(mode="json") for job in jobs])
    else:
        console().print(_table(jobs))


def show(job: JobArgument, output: Output = Format.TEXT) -> None:
    """Show all that is known of a job or a search."""
    with CapsClient() as client:
        view = client.job(job)
        if view.kind is Kind.SEARCH:
            view = client.search(job)
    if output is Format.JSON:
        print_json(view)
        return
    console().print(summary(view))
    console().print(dump(view.model_dump(mode="json", exclude_none=True)).rstrip())


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--label {text!r}: write it as key=value")
    return key, value


def _table(jobs: list[JobItem]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in (
        "ID", "KIND", "NAME", "EXPERIMENT", "STATE", "PHASE", "DONE", "VALIDATION", "AGE"
    ):  # fmt: skip
        table.add_column(heading, no_wrap=heading not in ("NAME", "EXPERIMENT"))
    for job in jobs:
        table.add_row(
            job.id,
            job.kind,
            job.name,
            job.experiment,
            job.state,
            job.phase,
            *_done(job.progress),
            _age(job.created_at),
        )
    return table


def _done(progress: ProgressView | None) -> tuple[str, str]:
    """Epochs and accuracy of a training; ended trials and the best score of a search."""
    if progress is None:
        return "-", "-"
    if progress.trials is not None:
        return f"{progress.trials.ended}/{progress.trials.total} trials", score(progress.best_score)
    return f"{progress.epoch}/{progress.epochs} epochs", percent(progress.val_accuracy)


def _age(moment: datetime) -> str:
    seconds = max(0, int((datetime.now(UTC) - moment).total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
