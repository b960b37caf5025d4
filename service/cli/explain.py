"""`capsctl explain`: why a job waits, failed, was retried or cancelled, in plain words."""

from datetime import datetime

import typer
from rich.console import Console

from service.cli.output import Format, JobArgument, Output, console, print_json
from service.client import CapsClient
from service.explanation import AttemptStory, Explanation, NextStep
from service.explanation import explain as explained
from service.explanation.words import clock, span
from service.queue.job import Kind, State


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(explain)


def explain(job: JobArgument, output: Output = Format.TEXT) -> None:
    """Tell why a job or a search waits, failed, was retried or cancelled, and what can be done."""
    now = datetime.now().astimezone()
    with CapsClient() as client:
        found = explained(client.job(job), list(client.events(job)), now)
    if output is Format.JSON:
        print_json(found)
    else:
        _print(found, now)


def _print(found: Explanation, now: datetime) -> None:
    out = console()
    noun = "search" if found.kind is Kind.SEARCH else "job"
    reason = f", {found.reason}" if found.reason and found.state is State.FAILED else ""
    out.print(f"{noun} {found.job} ({found.name}): {found.state}{reason}")
    for line in (found.summary, *found.details):
        out.print(f"  {line}")
    if found.hint:
        out.print(f"  hint: {found.hint}")
    _print_attempts(out, found.attempts, now)
    _print_next(out, found.next)


def _print_attempts(out: Console, attempts: list[AttemptStory], now: datetime) -> None:
    if attempts:
        out.print("attempts:")
    for each in attempts:
        ran = f"{clock(each.started_at, now)}, {span(each.duration_s)}"
        skipped = f" ({len(each.skipped)} passed over)" if each.skipped else ""
        out.print(f"  {each.number}  {ran}, {each.began}{skipped}; {each.ended}")


def _print_next(out: Console, steps: list[NextStep]) -> None:
    if steps:
        out.print("next:")
    width = max((len(step.command) for step in steps), default=0)
    for step in steps:
        out.print(f"  {step.command:<{width}}  {step.what}")
