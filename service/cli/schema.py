"""`capsctl schema`: what a specification may hold."""

import json
from typing import Annotated

import typer

from service.cli.documents import dump
from service.cli.output import Format, InputError, Output, print_json
from service.queue.job import Kind
from workers.specs import PRESETS


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(schema)


def schema(
    kind: Annotated[Kind, typer.Argument()] = Kind.TRAIN,
    preset: Annotated[str | None, typer.Option(help="Print this preset as YAML instead.")] = None,
    output: Output = Format.TEXT,
) -> None:
    """Print the JSON Schema of a specification, or a preset to begin with."""
    if preset is None:
        document = kind.spec.model_json_schema()
        print(json.dumps(document, indent=None if output is Format.JSON else 2))
        return
    if kind is Kind.SEARCH:
        raise InputError("presets are for `train`; a search's `base` is a training")
    if preset not in PRESETS:
        raise InputError(f"there is no preset {preset!r}", hint=f"presets: {', '.join(PRESETS)}")
    content = PRESETS[preset].model_dump(mode="json", by_alias=True)
    if output is Format.JSON:
        print_json(content)
    else:
        print(dump(content), end="")
