"""The search in a few lines of Markdown, for the parent run's note."""

from collections.abc import Iterator

from workers.search.report.findings import Findings
from workers.search.report.leaderboard import SEEDS, leaderboard
from workers.search.report.tables import Table
from workers.search.report.words import value_text
from workers.search_specs import SearchSpec
from workers.trials import Standing, Trial, TrialState, TrialTable

TOP = 10
FAILURES = 10
LENGTH = 4500
"""Characters at most: MLflow cuts a note at 8000, and the search's description stands there too."""
EVIDENCE = 160
"""Characters of what a failed trial left."""


def summary(spec: SearchSpec, table: TrialTable) -> str:
    """Best configuration, counts by state, the ten best, failures with their reasons.

    Rows are left out at the end of both tables until the text has no more than `LENGTH` characters.
    """
    findings = Findings(spec, table)
    for rows in range(TOP, 0, -1):
        text = "\n\n".join(_paragraphs(findings, rows))
        if len(text) <= LENGTH:
            return text
    return text[: LENGTH - 1] + "…"


def _paragraphs(findings: Findings, rows: int) -> Iterator[str]:
    yield _best(findings)
    yield f"**{findings.counts_text()}.**"
    if findings.scored:
        shown = findings.scored[:rows]
        yield f"### The best {len(shown)} of {len(findings.standings)} configurations"
        yield _table(findings, shown).markdown()
    failed = [trial for trial in findings.trials if trial.state is TrialState.FAILED]
    if failed:
        yield "### Failed trials"
        yield "\n".join(_failure(findings, trial) for trial in failed[: min(rows, FAILURES)])
    if len(failed) > min(rows, FAILURES):
        yield f"and {len(failed) - min(rows, FAILURES)} more: see `trials.csv`."


def _best(findings: Findings) -> str:
    if not findings.scored:
        return "No trial has a score yet."
    best = findings.scored[0]
    numbers = ", ".join(str(trial.number) for trial in best.scored)
    trials = "trial" if len(best.scored) == 1 else "trials"
    return (
        f"**Best: {findings.spec.metric} {findings.score.whole(best.mean, best.deviation)}** "
        f"({trials} {numbers}) with {findings.values_text(best)}."
    )


def _table(findings: Findings, shown: list[Standing]) -> Table:
    """The leaderboard; with one seed a configuration, without the column that counts them."""
    table = leaderboard(findings, shown)
    if findings.spec.seeds > 1:
        return table
    head, *rows = ([*row[:SEEDS], *row[SEEDS + 1 :]] for row in (table.head, *table.rows))
    return Table(head, rows, numbers=[column for column in table.numbers if column < SEEDS])


def _failure(findings: Findings, trial: Trial) -> str:
    reason = "no reason is known" if trial.reason is None else trial.reason.value
    evidence = " ".join(trial.evidence.split())
    evidence = evidence if len(evidence) <= EVIDENCE else evidence[: EVIDENCE - 1] + "…"
    values = ", ".join(
        f"{findings.names[path]} = {value_text(trial.values[path])}"
        for path in findings.spec.space
        if path in trial.values
    )
    said = f": {evidence}" if evidence else ""
    return f"- trial {trial.number} ({values}): `{reason}`{said}"
