"""`capsctl cancel`."""

import typer

from service.cli.output import Format, JobArgument, Output, console, print_json
from service.client import CapsClient


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(cancel)


def cancel(job: JobArgument, output: Output = Format.TEXT) -> None:
    """End a job: it leaves a checkpoint, then its processes are stopped."""
    with CapsClient() as client:
        view = client.cancel(job)
    if output is Format.JSON:
        print_json(view)
    else:
        console().print(f"job {view.id}: {view.phase}")
