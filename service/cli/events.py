"""`capsctl events`: a job's history."""

import typer

from service.cli.output import Format, JobArgument, Output, console, print_json
from service.client import CapsClient


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(events)


def events(job: JobArgument, output: Output = Format.TEXT) -> None:
    """Print what happened to a job; JSON comes as one document a line."""
    with CapsClient() as client:
        for event in client.events(job):
            if output is Format.JSON:
                print_json(event)
            else:
                at = event.at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
                console().print(f"{at}  #{event.attempt}  {event.type}: {event.message}")
