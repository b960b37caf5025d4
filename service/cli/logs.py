"""`capsctl logs`: what a job's worker printed."""

import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from service.cli.output import Format, JobArgument, Output, print_json
from service.client import CapsClient, LogChunk
from service.queue.job import State


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(logs)


def logs(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Until the job ends.")] = False,
    attempt: Annotated[
        int | None, typer.Option(min=1, help="Of this attempt, in place of the current one.")
    ] = None,
    output: Output = Format.TEXT,
) -> None:
    """Print a job's log. With -f, the exit status is 1 when the job does not succeed."""
    with CapsClient() as client:
        if not follow:
            _print(_written(client, job, attempt), output)
            return
        try:
            _print(client.follow_logs(job, attempt=attempt), output)
        except KeyboardInterrupt:
            print(f"\ndetached; the job goes on: capsctl logs -f {job}", file=sys.stderr)
            raise typer.Exit(130) from None
        if client.job(job).state is not State.SUCCEEDED:
            raise typer.Exit(1)


def _written(client: CapsClient, job_id: str, attempt: int | None) -> Iterator[LogChunk]:
    """The log as it is now."""
    offset = 0
    while True:
        chunk = client.logs(job_id, offset, attempt)
        if not chunk.content:
            return
        yield chunk
        attempt, offset = chunk.attempt, chunk.next_offset


def _print(chunks: Iterator[LogChunk], output: Format) -> None:
    for chunk in chunks:
        if output is Format.JSON:
            print_json({"attempt": chunk.attempt, "offset": chunk.next_offset, "text": chunk.text})
        else:
            sys.stdout.write(chunk.text)
            sys.stdout.flush()
