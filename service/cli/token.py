"""`capsctl token`: make, list and revoke tokens."""

import platform
import re
import sys
from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table

from service.api.token_views import CreatedTokenView, TokenView
from service.cli.output import Format, InputError, Output, console, print_json
from service.client import CapsClient
from service.tokens import Scope

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_LIFE = re.compile(r"([0-9]{1,9})([smhdw])", re.ASCII)


def register(app: typer.Typer) -> None:
    """Add the family."""
    family = typer.Typer(no_args_is_help=True, help="Make, list and revoke tokens of the API.")
    family.command()(create)
    family.command(name="list")(list_tokens)
    family.command()(revoke)
    app.add_typer(family, name="token")


def create(
    name: Annotated[str | None, typer.Option(help="What it is for; this machine's name.")] = None,
    owner: Annotated[
        str | None, typer.Option(help="Whose jobs it submits and sees; your own by default.")
    ] = None,
    scope: Annotated[
        Scope, typer.Option(help="read: look. submit: steer as well. admin: everything.")
    ] = Scope.SUBMIT,
    expires: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="As 12h, 30d or 8w; for ever by default."),
    ] = None,
    output: Output = Format.TEXT,
) -> None:
    """Make a token; standard output has the token and nothing else."""
    life = None if expires is None else _seconds(expires)
    with CapsClient() as client:
        made = client.create_token(
            name or f"capsctl on {platform.node()}"[:100],
            owner=owner,
            scope=scope,
            expires_in_s=life,
        )
    if output is Format.JSON:
        print_json(made)
        return
    print(made.token, flush=True)
    print(_made(made), file=sys.stderr, flush=True)


def list_tokens(
    owner: Annotated[str | None, typer.Option(help="Only of this owner.")] = None,
    output: Output = Format.TEXT,
) -> None:
    """List tokens, also those that have expired or were revoked; never a secret."""
    with CapsClient() as client:
        found = list(client.tokens(owner=owner))
    if output is Format.JSON:
        print_json([token.model_dump(mode="json") for token in found])
    else:
        console().print(_table(found))


def revoke(
    token: Annotated[str, typer.Argument(metavar="ID", help="Of `capsctl token list`.")],
    output: Output = Format.TEXT,
) -> None:
    """Revoke a token, for ever; within 5 s nobody takes it any more."""
    if token.startswith("caps_"):
        raise InputError(
            "this is a whole token: give its id alone",
            hint="the id is the part between its underscores; `capsctl token list` tells it too",
        )
    with CapsClient() as client:
        client.revoke_token(token)
    if output is Format.JSON:
        print_json({"revoked": token})
    else:
        console().print(f"revoked {token}")


def _seconds(text: str) -> int:
    found = _LIFE.fullmatch(text.strip())
    if found is None or int(found[1]) == 0:
        raise InputError(
            f"--expires {text[:40]!r}: write a number and one of s, m, h, d, w",
            hint="30d is a month, 12h half a day; leave it out for a token that never expires",
        )
    return int(found[1]) * SECONDS[found[2]]


def _made(token: CreatedTokenView) -> str:
    until = "never expires" if token.expires_at is None else f"expires {_moment(token.expires_at)}"
    return (
        f"token {token.id} ({token.name}): owner {token.owner}, scope {token.scope}, {until}\n"
        f"it is shown this once; give it in CAPS_TOKEN. To end it: capsctl token revoke {token.id}"
    )


def _table(found: list[TokenView]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("ID", "NAME", "OWNER", "SCOPE", "STATE", "CREATED", "EXPIRES", "LAST USED"):
        table.add_column(heading, no_wrap=heading != "NAME")
    for token in found:
        table.add_row(
            token.id,
            token.name,
            token.owner,
            token.scope,
            token.state,
            _moment(token.created_at),
            "never" if token.expires_at is None else _moment(token.expires_at),
            "-" if token.last_used_at is None else _moment(token.last_used_at),
        )
    return table


def _moment(at: datetime) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M")
