"""The leaderboard of a search, as `capsctl watch` shows it."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from service.api.search_views import ConfigurationView, SearchView
from service.cli.output import Format, console, duration, print_json
from service.client import CapsClient
from workers.attempt import TrialCounts
from workers.trials import TrialState

SHOWN = 15
"""Configurations on the leaderboard."""
_WORDS = {TrialState.SUCCEEDED: "done"}


def watch_search(client: CapsClient, search_id: str, output: Format | str) -> SearchView:
    """Show a search until it has ended: a live table, lines in a pipe, or NDJSON."""
    if output == Format.JSON:
        return client.wait_search(search_id, on_change=print_json)
    if console().is_terminal:
        with Live(console=console(), refresh_per_second=4) as live:

            def update(search: SearchView) -> None:
                live.update(_board(search, client.configurations(search_id, limit=SHOWN)))

            search = client.wait_search(search_id, on_change=update)
    else:
        search = client.wait_search(search_id, on_change=_line_printer())
        console().print(table(client.configurations(search_id, limit=SHOWN)))
    return search


def table(configurations: list[ConfigurationView]) -> Table:
    """Ranks, values and means with deviations."""
    found = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("RANK", "CONFIG", "SCORE", "EPOCH", "TRIALS", "VALUES"):
        found.add_column(heading, no_wrap=heading != "VALUES")
    for each in configurations:
        found.add_row(
            "-" if each.rank is None else str(each.rank),
            str(each.configuration),
            score(each.mean, each.deviation),
            f"{each.epoch}/{each.epochs}",
            ", ".join(f"{n} {in_a_word(state)}" for state, n in each.states.items()),
            values(each.values),
        )
    return found


def counts_in_words(counts: TrialCounts) -> str:
    """As `5 of 12 trials ended (4 done, 1 failed), 2 running`."""
    kinds = {
        "done": counts.succeeded,
        "pruned": counts.pruned,
        "failed": counts.failed,
        "cancelled": counts.cancelled,
    }
    how = ", ".join(f"{number} {word}" for word, number in kinds.items() if number)
    ended = f"{counts.ended} of {counts.total} trials ended" + (f" ({how})" if how else "")
    return f"{ended}, {counts.running} running" if counts.running else ended


def score(mean: float | None, deviation: float | None = None) -> str:
    """A score with its deviation over the seeds."""
    if mean is None:
        return "-"
    return f"{mean:.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")


def values(assignment: Mapping[str, Any]) -> str:
    """Values by the last parts of their paths, as far as these tell them apart."""
    return ", ".join(f"{name}={_value(assignment[path])}" for path, name in _names(assignment))


def in_a_word(state: TrialState) -> str:
    """A state as people say it."""
    return _WORDS.get(state, state.value.lower())


def _names(assignment: Mapping[str, Any]) -> list[tuple[str, str]]:
    last = [path.rpartition(".")[2] for path in assignment]
    return [
        (path, name if last.count(name) == 1 else path)
        for path, name in zip(assignment, last, strict=True)
    ]


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _board(search: SearchView, configurations: list[ConfigurationView]) -> Group:
    share = search.counts.ended / max(1, search.counts.total)
    row = Table.grid(padding=(0, 1))
    row.add_row(Text(search.phase), ProgressBar(1.0, share, width=40), Text(_elapsed(search)))
    # Said here, since the console itself wraps nothing: what is wider would be cut off.
    state = Text(_state(search), no_wrap=False, overflow="fold")
    return Group(row, state, table(configurations))


def _line_printer() -> Callable[[SearchView], None]:
    """Prints a line where a pipe's reader wants one: a new phase, trial or best."""
    told: tuple[object, ...] | None = None

    def show(search: SearchView) -> None:
        nonlocal told
        best = search.best.mean if search.best else None
        news = (search.phase, search.attempt, search.counts, best, search.waiting_reason)
        if news != told:
            console().print(f"{search.phase}: {_state(search)}")
        told = news

    return show


def _state(search: SearchView) -> str:
    if search.progress is None and search.waiting_reason and not search.state.terminal:
        return search.waiting_reason
    parts = [counts_in_words(search.counts)]
    if search.best is not None:
        told = score(search.best.mean, search.best.deviation)
        parts.append(f"best {search.metric} {told} ({values(search.best.values)})")
    return "; ".join(parts)


def _elapsed(search: SearchView) -> str:
    if search.started_at is None:
        return ""
    end = search.finished_at or datetime.now(UTC)
    return duration((end - search.started_at).total_seconds())
