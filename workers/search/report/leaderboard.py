"""The leaderboard: configurations by the mean of their scores."""

from pathlib import Path

from workers.search.report.findings import Findings
from workers.search.report.tables import Table, page
from workers.search.report.words import value_text
from workers.trials import Standing, TrialState

RANK, SCORE, SEEDS = range(3)


def write(findings: Findings, folder: Path) -> list[Path]:
    """Write `leaderboard.md` and `leaderboard.html`; nothing without trials."""
    if not findings.standings:
        return []
    table = leaderboard(findings, findings.standings)
    title = f"{findings.spec.name}: leaderboard"
    about = f"{findings.counts_text()}. {_explain(findings)}"
    best = [0] if findings.scored else []
    as_markdown, as_html = folder / "leaderboard.md", folder / "leaderboard.html"
    as_markdown.write_text(f"# {title}\n\n{about}\n\n{table.markdown()}\n")
    as_html.write_text(page(title, about, table.html(best)))
    return [as_markdown, as_html]


def leaderboard(findings: Findings, shown: list[Standing]) -> Table:
    """One row a configuration, in the order given: that of `Findings.standings`."""
    head = ["rank", findings.score.label, "n", *findings.names.values(), "trials"]
    rows = [_row(findings, rank, standing) for rank, standing in enumerate(shown, start=1)]
    return Table(head, rows, numbers=(RANK, SCORE, SEEDS))


def _row(findings: Findings, rank: int, standing: Standing) -> list[str]:
    values = (
        value_text(standing.values[path]) if path in standing.values else ""
        for path in findings.spec.space
    )
    return [
        str(rank) if standing.mean is not None else "–",
        findings.score.spread(standing.mean, standing.deviation),
        str(len(standing.scored)),
        *values,
        _trials(standing),
    ]


def _trials(standing: Standing) -> str:
    """`9, 10 succeeded, 11 failed`."""
    numbers: dict[TrialState, list[str]] = {}
    for trial in standing.trials:
        numbers.setdefault(trial.state, []).append(str(trial.number))
    return ", ".join(f"{', '.join(those)} {state.lower()}" for state, those in numbers.items())


def _explain(findings: Findings) -> str:
    order = "larger" if findings.spec.mode == "max" else "smaller"
    several = "mean ± sample standard deviation over n seeds, " if findings.spec.seeds > 1 else ""
    return f"{findings.spec.metric}: {several}each trial at its best epoch; {order} is better."
