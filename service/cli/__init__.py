"""`capsctl`: the command line. One file a command or family, and each adds itself to the app."""

import typer

from service.cli import (
    events,
    explain,
    jobs,
    logs,
    schema,
    search,
    stack,
    submit,
    token,
    trials,
    verbs,
    watch,
)
from service.cli.output import Commands

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train capsule networks: submit jobs and searches, watch them, run the whole service on "
    "one machine.",
)
for _module in (
    stack, submit, search, watch, jobs, explain, trials, logs, events, verbs, schema, token
):  # fmt: skip
    _module.register(app)


def main() -> None:
    """Run the command that was typed."""
    app()
