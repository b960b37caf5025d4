"""How the command line speaks: text or JSON, errors in one shape, no colour in a pipe."""

import json
import sys
from enum import StrEnum
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console
from typer.core import TyperGroup

from service.client import ApiError
from service.errors import CapsError, FieldError
from service.errors import InputError as InputError


class Format(StrEnum):
    """What `-o` takes."""

    TEXT = "text"
    JSON = "json"


Output = Annotated[Format, typer.Option("-o", "--output", help="Text for people, or JSON.")]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="A job's id.")]

PIPE_WIDTH = 1000
_BAD_INPUT = (400, 401, 403, 404, 410, 413, 415, 422)


class Commands(TyperGroup):
    """Commands whose known errors are told in lines of text, never as a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        wants_json = _wants_json([*ctx._protected_args, *ctx.args])
        try:
            return super().invoke(ctx)
        except (ApiError, CapsError) as error:
            tell(error, Format.JSON if wants_json else Format.TEXT)
            raise typer.Exit(exit_status(error)) from None


def _wants_json(arguments: list[str]) -> bool:
    """Whether `-o json` is among a command's arguments, in any of its spellings."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=True)
    return any(
        word in ("-ojson", "--output=json") or (word in ("-o", "--output") and value == "json")
        for word, value in pairs
    )


def tell(error: ApiError | CapsError, output: Format) -> None:
    """The error in the form that was asked for, on standard error."""
    if output is Format.JSON:
        tell_error_as_json(error)
    else:
        tell_error(error)


def exit_status(error: ApiError | CapsError) -> int:
    """2 where what was typed, or the token, can't be used; else 1."""
    return 2 if error.status in _BAD_INPUT else 1


def tell_error_as_json(error: ApiError | CapsError) -> None:
    """The error as one JSON document on standard error."""
    fields = [
        vars(field) if isinstance(field, FieldError) else field.model_dump(mode="json")
        for field in error.errors
    ]
    document = {
        "code": error.code,
        "detail": error.detail,
        "errors": fields,
        "hint": error.hint,
        "request_id": getattr(error, "request_id", None),
    }
    print(json.dumps(document, ensure_ascii=False), file=sys.stderr, flush=True)


def console() -> Console:
    """Standard output, as it is now; in a pipe no line is cut."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True, width=width)


def print_json(value: BaseModel | Any) -> None:
    """One JSON document on one line."""
    document = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    print(json.dumps(document, ensure_ascii=False), flush=True)


def tell_error(error: ApiError | CapsError) -> None:
    """One line with code and detail, then a line for each field, the hint and the request id."""
    err = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
    err.print(f"error: {error.code}: {error.detail}", style="bold red")
    for field in error.errors:
        accepted = f" (accepted: {field.accepted})" if field.accepted else ""
        given = f", got {field.value!r}" if field.value is not None else ""
        hint = f"; {field.hint}" if field.hint else ""
        err.print(f"  {field.pointer or '/'}: {field.detail}{given}{accepted}{hint}")
    if error.hint:
        err.print(f"hint: {error.hint}")
    if request_id := getattr(error, "request_id", None):
        err.print(f"request: {request_id}")
    sys.stderr.flush()


def percent(share: float | None) -> str:
    """A share as per cent."""
    return "-" if share is None else f"{share:.2%}"


def duration(seconds: float) -> str:
    """Seconds as `1:05` or `2:00:09`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
