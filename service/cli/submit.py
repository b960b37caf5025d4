"""`capsctl submit`: a file or a preset becomes a job."""

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from service.api.parsing import parse_spec
from service.cli.documents import encode, load
from service.cli.output import Format, Output, console, print_json
from service.cli.watch import watch_and_exit
from service.client import ApiError, CapsClient

Key = Annotated[
    str | None,
    typer.Option(
        metavar="KEY",
        help="Submitted again with the same key, it is the same job: nothing runs twice.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(submit)


def submit(
    source: Annotated[
        str, typer.Argument(metavar="FILE|PRESET", help="YAML or JSON, `-` for standard input.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="As model.routing.iterations=1."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The job's name.")] = None,
    key: Key = None,
    wait: Annotated[bool, typer.Option("--wait", help="Watch the job to its end.")] = False,
    output: Output = Format.TEXT,
) -> None:
    """Queue a training job."""
    document = load(source, settings or [])
    if name is not None:
        document["name"] = name
    spec = parse_spec(encode(document))
    with CapsClient(on_retry=tell_retry()) as client:
        job = client.submit(spec, key=key)
        if output is Format.JSON:
            print_json(job)
        else:
            console().print(f"submitted {job.id} ({job.name})")
        if wait:
            watch_and_exit(client, job.id, output)
        elif output is Format.TEXT:
            tell_next(
                (f"watch {job.id}", "its progress"),
                (f"logs -f {job.id}", "what it prints"),
                (f"explain {job.id}", "why it waits, or failed"),
                (f"cancel {job.id}", "ends it"),
            )


def tell_retry() -> Callable[[ApiError, float], None]:
    """Says once, on standard error, that a submission is being tried again."""
    told = False

    def tell(error: ApiError, left_s: float) -> None:
        nonlocal told
        if not told:
            again = f"trying again for up to {left_s:.0f} s; Ctrl-C gives up"
            print(f"{error.code}: {error.detail}; {again}", file=sys.stderr, flush=True)
        told = True

    return tell


def tell_next(*commands: tuple[str, str]) -> None:
    """What may be typed next, and what it is for."""
    for command, what in commands:
        console().print(f"  capsctl {command:<24} {what}")
