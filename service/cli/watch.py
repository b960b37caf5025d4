"""`capsctl watch`: progress, live. Also the piece that `submit --wait` stands on."""

import sys
from collections.abc import Callable

import typer
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from service.api.views import JobView
from service.cli.leaderboard import watch_search
from service.cli.output import (
    Format,
    JobArgument,
    Output,
    console,
    duration,
    percent,
    print_json,
)
from service.client import CapsClient
from service.queue.job import Kind, State


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(watch)


def watch(job: JobArgument, output: Output = Format.TEXT) -> None:
    """Follow a job or a search to its end; Ctrl-C detaches and leaves it alone.

    The exit status is 1 when the job does not succeed.
    """
    with CapsClient() as client:
        watch_and_exit(client, job, output)


def watch_and_exit(client: CapsClient, job_id: str, output: Format) -> None:
    """Watch, then end the process with what became of the job."""
    try:
        job = watch_job(client, job_id, output)
    except KeyboardInterrupt:
        print(f"\ndetached; the job goes on: capsctl watch {job_id}", file=sys.stderr)
        raise typer.Exit(130) from None
    if job.state is not State.SUCCEEDED:
        raise typer.Exit(1)


def watch_job(client: CapsClient, job_id: str, output: Format | str = Format.TEXT) -> JobView:
    """Show a job's progress until it has ended: a bar, lines in a pipe, or NDJSON.

    Of a search the leaderboard is shown.
    """
    if client.job(job_id).kind is Kind.SEARCH:
        search = watch_search(client, job_id, output)
        if output != Format.JSON:
            console().print(summary(search))
        return search
    if output == Format.JSON:
        return client.wait(job_id, on_change=print_json)
    if not console().is_terminal:
        job = client.wait(job_id, on_change=_line_printer())
    else:
        job = _watch_bar(client, job_id)
    console().print(summary(job))
    return job


def summary(job: JobView) -> str:
    """What became of a job, in a few lines."""
    noun = "search" if job.kind is Kind.SEARCH else "job"
    reason = f", {job.reason}" if job.reason else ""
    lines = [f"{noun} {job.id} ({job.name}): {job.state}{reason}"]
    if job.evidence:
        lines.append(f"  {job.evidence}")
    if job.hint:
        lines.append(f"  hint: {job.hint}")
    if job.state is State.FAILED:
        lines.append(f"  what happened, and what can be done: capsctl explain {job.id}")
    if job.result:
        lines += [f"  {k}: {v:.6g}" for k, v in job.result.metrics.items() if v is not None]
    if job.mlflow:
        lines.append(f"  MLflow run: {job.mlflow.url}")
    return "\n".join(lines)


def _line_printer() -> Callable[[JobView], None]:
    """Prints a line where a pipe's reader wants one: a new phase or epoch, not every step."""
    told: tuple[object, ...] | None = None

    def show(job: JobView) -> None:
        nonlocal told
        epoch = job.progress.epoch if job.progress else None
        news = (job.phase, job.attempt, epoch, job.waiting_reason)
        if news != told:
            console().print(f"{job.phase}: {_numbers(job)}".rstrip(": "))
        told = news

    return show


def _watch_bar(client: CapsClient, job_id: str) -> JobView:
    with Live(console=console(), refresh_per_second=4) as live:
        return client.wait(job_id, on_change=lambda job: live.update(_bar(job)))


def _bar(job: JobView) -> Group:
    fraction = job.progress.fraction if job.progress else 0.0
    row = Table.grid(padding=(0, 1))
    row.add_row(Text(job.phase), ProgressBar(1.0, fraction, width=40), Text(f"{fraction:.0%}"))
    return Group(row, Text(_numbers(job)))


def _numbers(job: JobView) -> str:
    """Epoch, step, loss, accuracies, speed and what is left; or why the job waits."""
    progress = job.progress
    if progress is None:
        place = f"position {job.position} in the queue" if job.position else ""
        return ", ".join(part for part in (place, job.waiting_reason) if part)
    if not progress.steps:
        return ""
    parts = [f"epoch {progress.epoch}/{progress.epochs}", f"step {progress.step}/{progress.steps}"]
    if progress.train_loss is not None:
        parts.append(f"loss {progress.train_loss:.4f}")
    if progress.train_accuracy is not None:
        parts.append(f"train {percent(progress.train_accuracy)}")
    if progress.val_accuracy is not None:
        parts.append(f"validation {percent(progress.val_accuracy)}")
    if progress.images_per_s is not None:
        parts.append(f"{progress.images_per_s:,.0f} images/s")
    if progress.eta_s is not None and not job.state.terminal:
        parts.append(f"{duration(progress.eta_s)} left")
    return ", ".join(parts)
