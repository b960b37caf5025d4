"""`capsctl cancel`, `pause`, `resume`, `retry` and `delete`: what is asked of jobs and searches."""

import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from service.api.views import JobView
from service.cli.output import (
    Format,
    InputError,
    Output,
    console,
    exit_status,
    print_json,
    tell,
)
from service.client import ApiError, CapsClient
from service.queue.job import Kind

JobArguments = Annotated[
    list[str], typer.Argument(metavar="JOB...", help="Ids of jobs or searches.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (cancel, pause, resume, retry, delete):
        app.command()(command)


def cancel(jobs: JobArguments, output: Output = Format.TEXT) -> None:
    """End jobs or searches: checkpoints are left, then their processes are stopped."""
    _steer(jobs, CapsClient.cancel, output)


def pause(jobs: JobArguments, output: Output = Format.TEXT) -> None:
    """Have jobs or searches leave a checkpoint and free their places until they are resumed."""
    _steer(jobs, CapsClient.pause, output)


def resume(jobs: JobArguments, output: Output = Format.TEXT) -> None:
    """Let paused jobs or searches go on from their checkpoints."""
    _steer(jobs, CapsClient.resume, output)


def retry(jobs: JobArguments, output: Output = Format.TEXT) -> None:
    """Queue jobs or searches that failed or were cancelled again; they go on from checkpoints."""
    _steer(jobs, CapsClient.retry, output)


def delete(
    jobs: JobArguments,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
    output: Output = Format.TEXT,
) -> None:
    """Forget jobs or searches that have ended, with all their files; MLflow's runs stay."""
    if not yes:
        _ask(jobs)

    def forget(client: CapsClient, job: str) -> None:
        client.delete(job)
        if output is Format.JSON:
            print_json({"deleted": job})
        else:
            console().print(f"deleted {job}")

    _each(jobs, forget, output)


def _steer(jobs: Sequence[str], verb: Callable[[CapsClient, str], JobView], output: Format) -> None:
    def steer(client: CapsClient, job: str) -> None:
        view = verb(client, job)
        if output is Format.JSON:
            print_json(view)
        else:
            noun = "search" if view.kind is Kind.SEARCH else "job"
            console().print(f"{noun} {view.id}: {view.phase}")

    _each(jobs, steer, output)


def _each(jobs: Sequence[str], act: Callable[[CapsClient, str], None], output: Format) -> None:
    """Do it to every job: one that refuses keeps none of the others from it."""
    failures = []
    with CapsClient() as client:
        for job in jobs:
            try:
                act(client, job)
            except ApiError as error:
                tell(error, output)
                failures.append(exit_status(error))
    if failures:
        raise typer.Exit(max(failures))


def _ask(jobs: Sequence[str]) -> None:
    if not _somebody_is_there():
        raise InputError("delete asks, and nobody is there to answer", hint="-y deletes unasked")
    what = jobs[0] if len(jobs) == 1 else f"{len(jobs)} jobs"
    question = f"delete {what}, with history, logs, checkpoints and pictures?"
    typer.confirm(question, abort=True, err=True)


def _somebody_is_there() -> bool:
    return sys.stdin.isatty()
