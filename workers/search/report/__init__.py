"""What a search leaves in MLflow's parent run: tables, plots, pictures.

A report is made from the specification and the trials alone, as files in a folder: no MLflow, no
Ray, no torch. A new one is one file and one line in `REPORTS`.
"""

import logging
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from workers.search.report.findings import Findings
from workers.search.report.summary import summary
from workers.search.report.trial_list import trial_columns
from workers.search_specs import SearchSpec
from workers.trials import TrialTable

__all__ = ["make_reports", "summary", "trial_columns"]

logger = logging.getLogger(__name__)

Write = Callable[[Findings, Path], list[Path]]
"""Writes a report into a folder and returns its files: none where there is nothing to say yet."""

REPORTS: dict[str, str] = {
    "trials": "workers.search.report.trial_list:write",
    "leaderboard": "workers.search.report.leaderboard:write",
    "grid": "workers.search.report.grid:write",
    "learning-curves": "workers.search.report.learning_curves:write",
    "history": "workers.search.report.history:write",
    "parallel-coordinates": "workers.search.report.parallel_coordinates:write",
    "parameter-importances": "workers.search.report.importances:write",
}
"""Import paths, so that drawing libraries are loaded only where something is drawn."""
PAGES: dict[str, str] = {
    "learning-curves": "workers.search.report.learning_curves:write_page",
    "parallel-coordinates": "workers.search.report.parallel_coordinates:write_page",
    "parameter-importances": "workers.search.report.importances:write_page",
}
"""Interactive ones: each page holds all of Plotly, 5 MB, since it must open by itself."""


def make_reports(
    spec: SearchSpec, table: TrialTable, folder: Path, interactive: bool = True
) -> list[Path]:
    """Write what can be written from what there is; never raises for what the trials are.

    A report that fails is logged and left out.

    Args:
        spec: The search.
        table: Its trials, at any time of its course.
        folder: Made where it is missing; files of earlier calls are replaced.
        interactive: Also the Plotly pages, 5 MB each.

    Returns:
        The files, in the order of `REPORTS`, then of `PAGES`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    findings = Findings(spec, table)
    written: list[Path] = []
    pages = PAGES.items() if interactive else ()
    for name, path in (*REPORTS.items(), *pages):
        try:
            written += _load(path)(findings, folder)
        except Exception:
            logger.exception("report %s of search %s is left out", name, spec.name)
    return written


def _load(path: str) -> Write:
    module, _, attribute = path.partition(":")
    write: Write = getattr(import_module(module), attribute)
    return write
