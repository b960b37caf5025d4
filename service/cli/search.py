"""`capsctl search`: a file becomes a search."""

from typing import Annotated

import typer

from service.api.parsing import parse_search
from service.cli.documents import encode, load
from service.cli.output import Format, Output, console, print_json
from service.cli.submit import Key, tell_next, tell_retry
from service.cli.watch import watch_and_exit
from service.client import CapsClient
from workers.search_preview import SearchPreview


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(search)


def search(
    source: Annotated[
        str, typer.Argument(metavar="FILE", help="YAML or JSON, `-` for standard input.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="As base.epochs=3 or trials=20."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The search's name.")] = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="Print what it amounts to; submit nothing.")
    ] = False,
    key: Key = None,
    wait: Annotated[bool, typer.Option("--wait", help="Watch the search to its end.")] = False,
    output: Output = Format.TEXT,
) -> None:
    """Search over fields of a training: try configurations, and rank them."""
    document = load(source, settings or [], presets=False)
    if name is not None:
        document["name"] = name
    spec = parse_search(encode(document))
    with CapsClient(on_retry=tell_retry()) as client:
        if preview:
            _tell(client.preview(spec), output)
            return
        found = client.submit_search(spec, key=key)
        if output is Format.JSON:
            print_json(found)
        else:
            console().print(f"submitted {found.id} ({found.name}): {found.counts.total} trials")
        if wait:
            watch_and_exit(client, found.id, output)
        elif output is Format.TEXT:
            tell_next(
                (f"watch {found.id}", "the leaderboard, live"),
                (f"trials {found.id}", "every trial"),
                (f"promote {found.id}", "a full job from the best"),
                (f"cancel {found.id}", "ends it"),
            )


def _tell(preview: SearchPreview, output: Format) -> None:
    if output is Format.JSON:
        print_json(preview)
        return
    out = console()
    about = "about " if preview.estimated else ""
    out.print(f"configurations     {preview.configurations:,}")
    out.print(f"trials             {preview.trials:,}")
    for label, amount in (
        ("epochs", preview.epochs),
        ("training images", preview.training_images),
        ("validation images", preview.validation_images),
    ):
        out.print(f"{label:<18} {'unknown' if amount is None else f'{about}{amount:,}'}")
    operations = "unknown" if preview.flops is None else f"{about}{preview.flops:.3g}"
    out.print(f"{'operations (FLOP)':<18} {operations}")
    out.print("first configurations:")
    for point in preview.points:
        out.print("  " + ", ".join(f"{path} = {value}" for path, value in point.items()))
    for line in (*preview.unknown, *preview.notes):
        out.print(f"note: {line}")
