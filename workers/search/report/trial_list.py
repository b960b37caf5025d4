"""All trials as a table: `trials.csv`, and `trials.json` as MLflow's table view reads it."""

import csv
import json
from pathlib import Path
from typing import Any

from workers.search.report.findings import Findings, seconds
from workers.search.report.words import cell
from workers.search_specs import SearchSpec
from workers.trials import Trial, TrialTable


def write(findings: Findings, folder: Path) -> list[Path]:
    """Write both; nothing without trials."""
    columns = columns_of(findings)
    rows = list(zip(*columns.values(), strict=True))
    if not rows:
        return []
    as_csv, as_json = folder / "trials.csv", folder / "trials.json"
    with as_csv.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    document = {"columns": list(columns), "data": rows}
    as_json.write_text(json.dumps(document, allow_nan=False))
    return [as_csv, as_json]


def trial_columns(spec: SearchSpec, table: TrialTable) -> dict[str, list[Any]]:
    """The trials as columns by name, in order of numbers: what MLflow's `log_table` takes."""
    return columns_of(Findings(spec, table))


def columns_of(findings: Findings) -> dict[str, list[Any]]:
    """A column for each path of the space between what a trial is and what became of it."""
    rows = [_row(findings, trial) for trial in findings.trials]
    names = _row(findings, Trial(number=0, configuration=0, seed=0, values={}))
    return {name: [row[name] for row in rows] for name in names}


def _row(findings: Findings, trial: Trial) -> dict[str, Any]:
    duration = seconds(trial)
    return {
        "number": trial.number,
        "configuration": trial.configuration,
        "seed": trial.seed,
        "state": trial.state.value,
        findings.spec.metric: trial.score,
        "best_epoch": trial.score_epoch,
        "epoch": trial.epoch,
        **{path: cell(trial.values.get(path)) for path in findings.spec.space},
        "duration_s": None if duration is None else round(duration, 3),
        "reason": None if trial.reason is None else trial.reason.value,
        "evidence": trial.evidence,
        "run_id": trial.run_id,
    }
