"""`capsctl trials`, `retry-failed` and `promote`: what is done with a search."""

from itertools import islice
from typing import Annotated

import typer
from rich.table import Table

from service.api.search_views import TrialView
from service.cli.documents import setting
from service.cli.leaderboard import in_a_word, score, values
from service.cli.output import Format, InputError, Output, console, duration, print_json
from service.cli.submit import Key, tell_next, tell_retry
from service.cli.watch import watch_and_exit
from service.client import CapsClient
from workers.trials import TrialState

SearchArgument = Annotated[str, typer.Argument(metavar="SEARCH", help="A search's id.")]
LONGEST_REASON = 80
"""Characters of a failed trial's reason; `-o json` has all of them."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(trials)
    app.command(name="retry-failed")(retry_failed)
    app.command()(promote)


def trials(
    search: SearchArgument,
    state: Annotated[
        list[TrialState] | None,
        typer.Option(case_sensitive=False, help="Only in this state; repeatable."),
    ] = None,
    configuration: Annotated[
        int | None, typer.Option(min=0, help="Only of this configuration.")
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD",
            help="number, score, epoch, started_at or duration; -FIELD turns it round. "
            "The best score first by default.",
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    output: Output = Format.TEXT,
) -> None:
    """List a search's trials."""
    with CapsClient() as client:
        found = client.trials(
            search,
            states=state or [],
            configuration=configuration,
            order_by=sort,
            page_size=min(limit, 1000),
        )
        chosen = list(islice(found, limit))
    if output is Format.JSON:
        print_json([trial.model_dump(mode="json") for trial in chosen])
    else:
        console().print(_table(chosen))


def retry_failed(search: SearchArgument, output: Output = Format.TEXT) -> None:
    """Run the failed trials of an ended search again."""
    with CapsClient() as client:
        view = client.retry_failed(search)
    if output is Format.JSON:
        print_json(view)
    else:
        console().print(f"search {view.id}: {view.phase}")


def promote(
    search: SearchArgument,
    configuration: Annotated[
        int | None, typer.Option(min=0, help="In place of the best one.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="As epochs=30; of the training."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The job's name.")] = None,
    priority: Annotated[int | None, typer.Option(min=-100, max=100)] = None,
    key: Key = None,
    wait: Annotated[bool, typer.Option("--wait", help="Watch the job to its end.")] = False,
    output: Output = Format.TEXT,
) -> None:
    """Queue a full training job from a search's best configuration."""
    changes = dict(setting(text) for text in settings or [])
    if len(changes) < len(settings or []):
        raise InputError("--set: a field is set twice")
    with CapsClient(on_retry=tell_retry()) as client:
        job = client.promote(
            search,
            configuration=configuration,
            changes=changes,
            name=name,
            priority=priority,
            key=key,
        )
        if output is Format.JSON:
            print_json(job)
        else:
            console().print(f"submitted {job.id} ({job.name})")
        if wait:
            watch_and_exit(client, job.id, output)
        elif output is Format.TEXT:
            tell_next((f"watch {job.id}", "its progress"))


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 1] + "…"


def _table(found: list[TrialView]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    headings = ("TRIAL", "CONFIG", "SEED", "STATE", "SCORE", "EPOCH", "TIME", "VALUES", "REASON")
    for heading in headings:
        table.add_column(heading, no_wrap=heading not in ("VALUES", "REASON"))
    for trial in found:
        untold = trial.reason is None or trial.state is TrialState.SUCCEEDED
        why = "" if untold else f"{trial.reason}: {trial.evidence}"
        table.add_row(
            str(trial.number),
            str(trial.configuration),
            str(trial.seed),
            in_a_word(trial.state),
            score(trial.score),
            f"{trial.epoch}/{trial.epochs}",
            "-" if trial.duration_s is None else duration(trial.duration_s),
            values(trial.values),
            _shortened(why),
        )
    return table
