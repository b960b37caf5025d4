"""`capsctl cancel`."""

import typer

from service.cli.output import Format, JobArgument, Output, console, print_json
from service.client import CapsClient
from service.queue.job import Kind


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(cancel)


def cancel(job: JobArgument, output: Output = Format.TEXT) -> None:
    """End a job or a search: checkpoints are left, then its processes are stopped."""
    with CapsClient() as client:
        view = client.cancel(job)
    if output is Format.JSON:
        print_json(view)
    else:
        noun = "search" if view.kind is Kind.SEARCH else "job"
        console().print(f"{noun} {view.id}: {view.phase}")
