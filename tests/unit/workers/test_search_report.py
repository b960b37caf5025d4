"""The reports of a search: right numbers, from whatever there is, in pictures that show it."""

import csv
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
from PIL import Image

import workers
from workers.artifacts import drawing
from workers.attempt import Reason
from workers.search.report import (
    PAGES,
    REPORTS,
    grid,
    leaderboard,
    make_reports,
    style,
    summary,
    trial_columns,
    trial_list,
)
from workers.search.report.comparison import ComparisonRow, compare, label_of
from workers.search.report.findings import Findings
from workers.search.report.importances import importances
from workers.search.report.learning_curves import curves_of
from workers.search.report.parallel_coordinates import lines_of
from workers.search.report.scales import of_scores, scale_of
from workers.search.report.summary import LENGTH
from workers.search.report.tables import Table
from workers.search.report.words import ScoreText, short_names, value_text
from workers.search_specs import SearchSpec
from workers.trials import Report, Trial, TrialState, TrialTable

SPACE: dict[str, Any] = {
    "model.routing.iterations": {"type": "choice", "values": [1, 2, 3, 5]},
    "loss.reconstruction_weight": {"type": "loguniform", "low": 1e-5, "high": 1e-2},
    "loss.m_minus": {"type": "uniform", "low": 0.05, "high": 0.2},
}
TWO_BY_TWO: dict[str, Any] = {
    "model.routing.iterations": {"type": "grid", "values": [1, 3]},
    "loss.reconstruction_weight": {"type": "grid", "values": [0.0, 0.0005]},
}
ITERATIONS = "model.routing.iterations"
START = 1_790_000_000.0


def search(space: dict[str, Any] = SPACE, **settings: Any) -> SearchSpec:
    base = {"dataset": {"type": "mnist-5k"}, "epochs": 3}
    document = {"name": "s", "base": base, "space": space, **settings}
    return SearchSpec.model_validate_json(json.dumps(document))


def draw(spec: SearchSpec, count: int) -> list[dict[str, Any]]:
    chance = Random(5)
    return [
        {path: dimension.draw(chance) for path, dimension in spec.space.items()}
        for _ in range(count)
    ]


def a_trial(number: int, values: dict[str, Any], score: float | None, **fields: Any) -> Trial:
    settings = {
        "configuration": number,
        "seed": 0,
        "state": TrialState.SUCCEEDED,
        "score_epoch": 3,
        "epoch": 3,
        "epochs": 3,
        "started_at": START + 20 * number,
        "ended_at": START + 20 * number + 30.5,
        **fields,
    }
    return Trial(number=number, values=values, score=score, **settings)


def a_table(trials: Iterable[Trial], reports: bool = True) -> TrialTable:
    """The trials, each with a report an epoch that climbs to its score."""
    table = TrialTable({trial.number: trial for trial in trials})
    for trial in table.trials.values() if reports else ():
        table.reports[trial.number] = [
            Report(number=trial.number, epoch=epoch, step=epoch, at=START, metrics=metrics)
            for epoch in range(1, trial.epoch + 1)
            for metrics in [{"val/accuracy": (trial.score or 0.1) - 0.02 * (trial.epoch - epoch)}]
        ]
    return table


def twelve(spec: SearchSpec) -> TrialTable:
    """Succeeded, pruned and failed ones."""
    scores = [0.9 + 0.008 * number for number in range(12)]
    fates: list[dict[str, Any]] = [{}] * 8
    fates += [{"state": TrialState.PRUNED, "epoch": 1}] * 3
    fates += [{"state": TrialState.FAILED, "reason": Reason.ERROR, "evidence": "a | b\nc"}]
    drawn = zip(draw(spec, 12), scores, fates, strict=True)
    return a_table(a_trial(n, *rest, **fate) for n, (*rest, fate) in enumerate(drawn))


def two_by_two(spec: SearchSpec) -> TrialTable:
    """Three seeds a cell; the last seed of the first cell failed with a score."""
    chance, trials = Random(3), []
    for configuration, (iterations, weight) in enumerate(
        (iterations, weight) for iterations in (1, 3) for weight in (0.0, 0.0005)
    ):
        values = dict(zip(spec.space, (iterations, weight), strict=True))
        for seed in range(3):
            score = 0.95 + 0.01 * configuration + chance.uniform(0, 0.005)
            place = {"configuration": configuration, "seed": seed}
            trials.append(a_trial(len(trials), values, score, **place))
    trials[2] = trials[2].model_copy(update={"state": TrialState.FAILED})
    return a_table(trials)


def names(paths: Sequence[Path]) -> set[str]:
    return {path.name for path in paths}


@pytest.mark.slow
def test_all_reports_of_a_search_are_written(tmp_path: Path) -> None:
    spec = search(trials=12)
    written = make_reports(spec, twelve(spec), tmp_path / "new")
    assert names(written) == {
        *("trials.csv", "trials.json", "leaderboard.md", "leaderboard.html", "history.png"),
        *(f"{name}.{kind}" for name in PAGES for kind in ("png", "html")),
    }
    assert set(PAGES) < set(REPORTS)
    assert {path.parent for path in written} == {tmp_path / "new"}
    assert make_reports(spec, twelve(spec), tmp_path / "new", interactive=False) == [
        path for path in written if path.suffix != ".html" or path.stem == "leaderboard"
    ]


def test_pictures_open_and_show_something(tmp_path: Path) -> None:
    spec = search(TWO_BY_TWO, algorithm={"type": "grid"}, seeds=3)
    written = make_reports(spec, two_by_two(spec), tmp_path, interactive=False)
    pictures = [path for path in written if path.suffix == ".png"]
    assert len(pictures) == 5
    for path in pictures:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        assert min(pixels.shape[:2]) > 200, path
        assert tuple(pixels[0, 0]) == drawing.PAPER, path
        assert 0.005 < (pixels != 255).any(axis=2).mean() < 0.9, path
        assert (pixels == drawing.GOOD).all(axis=2).any(), path


def test_pages_stand_by_themselves(tmp_path: Path) -> None:
    spec = search(trials=12)
    pages = [p for p in make_reports(spec, twelve(spec), tmp_path) if p.suffix == ".html"]
    assert len(pages) == 4
    for path in pages:
        text = path.read_text()
        assert not re.search(r"<(script|link|img)[^>]*(src|href)=", text), path
        assert ("Plotly.newPlot(" in text) == (path.stem in PAGES)


def test_words_from_outside_are_no_markup() -> None:
    table = Table(["a|b"], [["<b>&"]])
    assert "<td>&lt;b&gt;&amp;</td>" in table.html()
    assert table.markdown().startswith("| a\\|b |")


def test_the_table_holds_every_trial(tmp_path: Path) -> None:
    spec = search(trials=12)
    table = twelve(spec)
    trial_list.write(Findings(spec, table), tmp_path)
    with (tmp_path / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["number"]) for row in rows] == list(range(12))
    for row, trial in zip(rows, table.trials.values(), strict=True):
        assert float(row["val/accuracy"]) == trial.score
        assert float(row["loss.m_minus"]) == trial.values["loss.m_minus"]
        assert int(row["model.routing.iterations"]) == trial.values["model.routing.iterations"]
        assert row["state"] == trial.state
        assert float(row["duration_s"]) == 30.5
    assert rows[-1]["reason"] == "error"
    assert rows[-1]["evidence"] == "a | b\nc"
    columns = trial_columns(spec, table)
    document = json.loads((tmp_path / "trials.json").read_text())
    assert document["columns"] == list(columns)
    assert [list(column) for column in zip(*document["data"], strict=True)] == [*columns.values()]


def test_the_leaderboard_is_ordered_by_the_mean(tmp_path: Path) -> None:
    spec = search(TWO_BY_TWO, algorithm={"type": "grid"}, seeds=3)
    table = two_by_two(spec)
    leaderboard.write(Findings(spec, table), tmp_path)
    lines = (tmp_path / "leaderboard.md").read_text().splitlines()
    rows = [line for line in lines if re.match(r"\| \d", line)]
    assert len(rows) == 4
    last = [table.trials[n].score for n in (9, 10, 11)]
    expected = f"{100 * mean(last):.2f} ± {100 * stdev(last):.2f}"
    assert rows[0] == f"| 1 | {expected} | 3 | 3 | 0.0005 | 9, 10, 11 succeeded |"
    assert rows[3].endswith("| 2 | 1 | 0 | 0, 1 succeeded, 2 failed |")
    assert (
        '<tr class="best"><td class="number">1</td>' in (tmp_path / "leaderboard.html").read_text()
    )


def test_the_grid_is_a_cross_table_of_means_and_deviations(tmp_path: Path) -> None:
    spec = search(TWO_BY_TWO, algorithm={"type": "grid"}, seeds=3)
    table = two_by_two(spec)
    written = grid.write(Findings(spec, table), tmp_path)
    text = (tmp_path / "grid.md").read_text()
    cells = re.findall(r"(\d+\.\d\d) ± (\d+\.\d\d) \(n = (\d)\)", text)
    expected = []
    for first in (0, 3, 6, 9):
        scores = [table.trials[n].score for n in range(first, first + 3)]
        scores = scores[:2] if first == 0 else scores
        expected.append(
            (f"{100 * mean(scores):.2f}", f"{100 * stdev(scores):.2f}", str(len(scores)))
        )
    assert cells == expected
    head, _, one, three = text.splitlines()[-4:]
    assert "reconstruction_weight = 0 |" in head
    assert "reconstruction_weight = 0.0005 |" in head
    assert one.startswith("| routing.iterations = 1 | ")
    assert three.startswith("| routing.iterations = 3 | ")
    page = (tmp_path / "grid.html").read_text()
    assert re.findall(r'class="number best">(\S+)', page) == [expected[3][0]]
    assert names(written) == {"grid.md", "grid.html", "grid.png"}


def test_a_grid_of_three_dimensions_is_a_long_table(tmp_path: Path) -> None:
    space = {**TWO_BY_TWO, "batch_size": {"type": "grid", "values": [32, 64, 128]}}
    spec = search(space, algorithm={"type": "grid"})
    values = [spec.configuration(number) for number in range(spec.configurations)]
    table = a_table(a_trial(n, each, 0.9 + n / 1000) for n, each in enumerate(values[:-1]))
    written = grid.write(Findings(spec, table), tmp_path)
    assert names(written) == {"grid.md", "grid.html"}
    rows = (tmp_path / "grid.md").read_text().splitlines()[-12:]
    assert sum("| – | 0 |" in row for row in rows) == 1
    assert len(set(rows)) == 12


def test_trials_with_equal_values_share_a_cell() -> None:
    space = {"loss.m_minus": {"type": "choice", "values": [0.1, 0.2]}}
    spec = search(space)
    drawn = [0.1, 0.2, 0.1, 0.1]
    table = a_table(a_trial(n, {"loss.m_minus": v}, 0.9 + n / 100) for n, v in enumerate(drawn))
    first, second = grid.cells_of(Findings(spec, table))
    assert first.scores == (0.9, 0.92, 0.93)
    assert second.scores == (0.91,)
    assert second.deviation is None


def nothing(spec: SearchSpec) -> TrialTable:
    return TrialTable()


def no_score(spec: SearchSpec) -> TrialTable:
    fates = [TrialState.WAITING, TrialState.RUNNING, TrialState.FAILED, TrialState.CANCELLED]
    bare: dict[str, Any] = {"epoch": 0, "score_epoch": None, "ended_at": None}
    drawn = zip(draw(spec, 4), fates, strict=True)
    return a_table(a_trial(n, v, None, state=state, **bare) for n, (v, state) in enumerate(drawn))


def one_trial(spec: SearchSpec) -> TrialTable:
    return a_table([a_trial(0, draw(spec, 1)[0], 0.9, epoch=1)])


def equal_scores(spec: SearchSpec) -> TrialTable:
    return a_table(a_trial(n, values, 0.9) for n, values in enumerate(draw(spec, 5)))


def perfect(spec: SearchSpec) -> TrialTable:
    return a_table(a_trial(n, values, 1.0) for n, values in enumerate(draw(spec, 3)))


def not_a_number(spec: SearchSpec) -> TrialTable:
    scores = [math.nan, 0.9, math.inf, 0.91]
    table = a_table(
        a_trial(n, v, s) for n, (v, s) in enumerate(zip(draw(spec, 4), scores, strict=True))
    )
    table.reports[1][0].metrics["val/accuracy"] = None
    table.reports[1][1].metrics["val/accuracy"] = math.nan
    return table


def all_failed(spec: SearchSpec) -> TrialTable:
    failed: dict[str, Any] = {"state": TrialState.FAILED, "reason": Reason.WORKER_LOST}
    return a_table(a_trial(n, v, 0.5, **failed) for n, v in enumerate(draw(spec, 3)))


def without_reports(spec: SearchSpec) -> TrialTable:
    return a_table(twelve(spec).trials.values(), reports=False)


def other_values(spec: SearchSpec) -> TrialTable:
    """As if the space had been another when the trials were chosen."""
    return a_table(a_trial(n, {"batch_size": n}, 0.9 + n / 100) for n in range(3))


TABLES = [
    *(nothing, no_score, one_trial, equal_scores, perfect),
    *(not_a_number, all_failed, without_reports, other_values, twelve),
]
ONE_PARAMETER = {"optimizer.learning_rate": {"type": "loguniform", "low": 1e-4, "high": 3e-4}}
OBJECTS = {
    "schedule": {"type": "choice", "values": [{"type": "constant"}, {"type": "cosine"}]},
    "batch_size": {"type": "lograndint", "low": 16, "high": 20},
    "loss.m_plus": {"type": "quniform", "low": 0.8, "high": 0.95, "q": 0.05},
    "model.routing.iterations": {"type": "randint", "low": 1, "high": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "space"),
    [
        *((make, SPACE) for make in TABLES),
        *((make, OBJECTS) for make in (one_trial, equal_scores, twelve)),
        *((make, ONE_PARAMETER) for make in (one_trial, twelve)),
        *((make, TWO_BY_TWO) for make in (one_trial, no_score)),
    ],
)
def test_no_report_fails_whatever_the_trials_are(
    make: Any, space: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = search(space)
    written = make_reports(spec, make(spec), tmp_path, interactive=False)
    assert caplog.messages == []
    assert all(path.stat().st_size > 0 for path in written)
    assert bool(written) == (make is not nothing)
    if make in (twelve, one_trial, equal_scores, perfect, not_a_number):
        pictures = {"learning-curves.png", "history.png", "parallel-coordinates.png"}
        assert pictures <= names(written)
    assert len(summary(spec, make(spec))) > 10


def test_pages_of_a_single_trial_are_written(tmp_path: Path) -> None:
    spec = search(OBJECTS)
    written = make_reports(spec, one_trial(spec), tmp_path)
    assert {"learning-curves.html", "parallel-coordinates.html"} < names(written)


def test_a_report_that_fails_is_left_out_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = search()
    monkeypatch.setitem(REPORTS, "history", "workers.search.report.history:no_such_function")
    written = names(make_reports(spec, twelve(spec), tmp_path, interactive=False))
    assert "history.png" not in written
    assert {"trials.csv", "parallel-coordinates.png"} < written
    assert "report history of search s is left out" in caplog.text


def test_a_parameter_that_matters_stands_above_one_that_does_not() -> None:
    spec = search(trials=40)
    fits = {1: 0.90, 2: 0.93, 3: 0.97, 5: 0.94}
    chance = Random(1)
    trials = [
        a_trial(n, v, fits[v["model.routing.iterations"]] + chance.gauss(0, 0.002))
        for n, v in enumerate(draw(spec, 40))
    ]
    shares = importances(Findings(spec, a_table(trials)))
    assert next(iter(shares)) == "model.routing.iterations"
    assert shares["model.routing.iterations"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)
    assert importances(Findings(spec, a_table(trials))) == shares


def test_a_parameter_that_never_varied_has_no_importance() -> None:
    spec = search(trials=10)
    values = [{**v, "model.routing.iterations": 3} for v in draw(spec, 10)]
    trials = [a_trial(n, v, 0.9 + v["loss.m_minus"] / 10) for n, v in enumerate(values)]
    shares = importances(Findings(spec, a_table(trials)))
    assert shares["model.routing.iterations"] == 0
    assert shares["loss.m_minus"] > 0.5


def test_the_summary_says_what_was_found() -> None:
    spec = search(TWO_BY_TWO, algorithm={"type": "grid"}, seeds=3)
    table = two_by_two(spec)
    last = [table.trials[n].score for n in (9, 10, 11)]
    text = summary(spec, table)
    best = f"val/accuracy {100 * mean(last):.2f} ± {100 * stdev(last):.2f} %"
    assert text.startswith(f"**Best: {best}** (trials 9, 10, 11) with routing.iterations = 3,")
    assert "12 trials: 11 succeeded, 1 failed" in text
    assert "- trial 2 (routing.iterations = 1" in text


def test_the_table_of_the_summary_counts_seeds_only_where_there_are_several() -> None:
    def head(spec: SearchSpec, table: TrialTable) -> list[str]:
        lines = summary(spec, table).splitlines()
        tables = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
        assert {len(cells) for cells in tables} == {len(tables[0])}
        return tables[0]

    several = search(TWO_BY_TWO, algorithm={"type": "grid"}, seeds=3)
    assert head(several, two_by_two(several))[:3] == ["rank", "val/accuracy (%)", "n"]
    one = search(trials=12)
    assert head(one, twelve(one)) == [
        "rank", "val/accuracy (%)", "routing.iterations", "loss.reconstruction_weight",
        "loss.m_minus", "trials",
    ]  # fmt: skip
    best = next(line for line in summary(one, twelve(one)).splitlines() if line.startswith("| 1 "))
    assert best.startswith(f"| 1 | 98.00 | {value_text(draw(one, 12)[10][ITERATIONS])} | ")


def test_the_summary_of_failures_tells_reasons_on_one_line() -> None:
    spec = search(trials=12)
    (line,) = [each for each in summary(spec, twelve(spec)).splitlines() if "- trial 11" in each]
    assert line.endswith(": `error`: a | b c")
    assert summary(spec, TrialTable()).startswith("No trial has a score yet.")


def test_a_long_summary_is_cut_by_rows() -> None:
    paths = ("beta1", "beta2", "epsilon", "learning_rate")
    space = {f"optimizer.{p}": {"type": "uniform", "low": 0.1, "high": 0.9} for p in paths}
    spec = search({**SPACE, **space}, trials=200)
    failed = {"state": TrialState.FAILED, "reason": Reason.ERROR, "evidence": "word " * 200}
    trials = [a_trial(n, v, 0.9) for n, v in enumerate(draw(spec, 100))]
    trials += [a_trial(100 + n, v, None, **failed) for n, v in enumerate(draw(spec, 100))]
    text = summary(spec, a_table(trials))
    assert LENGTH / 2 < len(text) <= LENGTH
    assert re.search(r"and 9\d more: see `trials.csv`", text)


def test_losses_are_better_when_small() -> None:
    spec = search(metric="val/total_loss", trials=3)
    scores = (0.3, 0.1, 0.2)
    table = a_table(
        a_trial(n, v, s) for n, (v, s) in enumerate(zip(draw(spec, 3), scores, strict=True))
    )
    assert summary(spec, table).startswith("**Best: val/total_loss 0.1** (trial 1)")
    lines = lines_of(Findings(spec, table))
    assert lines is not None
    assert lines.places[-1][-1] == min(place[-1] for place in lines.places)


def test_the_best_configurations_have_colours_and_pruned_ones_a_mark() -> None:
    spec = search(trials=12)
    curves = curves_of(Findings(spec, twelve(spec)))
    assert len(curves) == 12
    assert [curve.rank for curve in curves[-5:]] == [5, 4, 3, 2, 1]
    assert curves[-1].trial.number == 10  # the best but 11, which failed
    assert curves[-1].points == [(1, pytest.approx(0.98))]
    assert {curve.trial.number for curve in curves if curve.pruned} == {8, 9, 10}
    assert all(curve.colour == style.FAINT for curve in curves[:7])


def test_the_best_line_is_the_last() -> None:
    spec = search(trials=12)
    lines = lines_of(Findings(spec, twelve(spec)))
    assert lines is not None
    assert [scale.name for scale in lines.scales] == [
        *("routing.iterations", "loss.reconstruction_weight", "loss.m_minus"),
        "val/accuracy (%)",
    ]
    assert len(lines.places) == 11  # without the failed one
    scores = [places[-1] for places in lines.places]
    assert scores == sorted(scores)
    assert all(0 <= place <= 1 for places in lines.places for place in places)


def test_scales_place_values() -> None:
    space = search({**SPACE, **OBJECTS}).space
    weight = scale_of("w", space["loss.reconstruction_weight"])
    assert [text for _, text in weight.marks] == ["1e-05", "0.0001", "0.001", "0.01"]
    assert [place for place, _ in weight.marks] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    schedule = scale_of("s", space["schedule"])
    assert schedule.marks == [(0.0, "constant"), (1.0, "cosine")]
    assert schedule.place({"type": "cosine"}) == 1
    assert scale_of("m", space["loss.m_minus"]).place(0.125) == pytest.approx(0.5)
    whole = scale_of("i", space["model.routing.iterations"])
    assert [text for _, text in whole.marks] == ["1", "2"]


@pytest.mark.parametrize(
    "scores", [[0.1, 0.98], [0.9851, 0.9853], [1.0, 1.0], [0.0], [0.5, 1.0], [0.98, 0.9999]]
)
def test_the_axis_of_accuracies_has_marks_in_order(scores: list[float]) -> None:
    scale = of_scores(ScoreText("val/accuracy"), scores)
    places = [place for place, _ in scale.marks]
    values = [float(text) for _, text in scale.marks]
    assert (2 if min(scores) < 1 else 1) <= len(places) <= 20
    assert [value for _, value in sorted(zip(places, values, strict=True))] == sorted(set(values))
    assert scale.place(max(scores)) >= scale.place(min(scores))
    assert all(0 < scale.place(score) < 1 for score in scores)


@pytest.mark.parametrize(("metric", "best"), [("val/accuracy", 1.0), ("val/total_loss", 0.0)])
def test_what_could_not_be_better_has_a_mark(metric: str, best: float) -> None:
    text = ScoreText(metric)
    for scores in ([best], [best, 0.9, 0.99]):
        scale = of_scores(text, scores)
        assert (scale.place(best), text.mark(best)) in scale.marks
        assert 0 < scale.place(best) < 1


def test_halving_the_error_is_as_far_anywhere() -> None:
    scale = of_scores(ScoreText("val/accuracy"), [0.9, 0.99])
    low, middle, high = (scale.place(score) for score in (0.92, 0.96, 0.98))
    assert high - middle == pytest.approx(middle - low)


def test_places_are_moved_apart() -> None:
    assert style.apart([0.1, 0.5, 0.9], 0.1) == [0.1, 0.5, 0.9]
    assert style.apart([0.52, 0.5, 0.9], 0.1) == pytest.approx([0.56, 0.46, 0.9])
    crowded = style.apart([0.5] * 4 + [0.6], 0.1)
    assert np.diff(sorted(crowded)).min() >= 0.1 - 1e-9
    at_the_top = style.apart([0.97, 0.99, 1.0], 0.1)
    assert at_the_top == pytest.approx([0.78, 0.88, 0.98])


def test_words() -> None:
    assert short_names(["model.routing.iterations", "seed", "loss.m_minus"]) == {
        "model.routing.iterations": "routing.iterations",
        "seed": "seed",
        "loss.m_minus": "loss.m_minus",
    }
    alike = ["model.routing.type", "other.routing.type", "artifacts.0.columns"]
    assert list(short_names(alike).values()) == alike
    assert value_text({"type": "dynamic", "iterations": 3}) == "dynamic(iterations=3)"
    assert [value_text(v) for v in (True, None, 3, 5e-4, [1, 2])] == [
        *("true", "null", "3", "0.0005", "[1, 2]")
    ]
    assert len(value_text("word " * 100)) == 40


def test_tables_need_neither_torch_nor_anything_that_draws() -> None:
    code = (
        "import sys, workers.search.report\n"
        "print({'torch', 'ray', 'mlflow', 'optuna', 'plotly', 'matplotlib'} & sys.modules.keys())"
    )
    repository = Path(workers.__file__).parents[1]
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "set()"


def test_colours_are_those_of_the_sheets() -> None:
    for name in ("PAPER", "INK", "QUIET", "GOOD", "BAD"):
        assert getattr(style, name) == "#" + bytes(getattr(drawing, name)).hex()


def a_row(grey: int, images: int = 4, lines: int = 3) -> ComparisonRow:
    label = tuple(f"line {number}" for number in range(lines))
    return ComparisonRow(label, np.full((images, 1, 28, 28), grey, dtype=np.uint8))


def columns_of_colour(sheet: Image.Image, grey: int) -> int:
    return int((np.asarray(sheet) == grey).all(axis=2).any(axis=0).sum())


def test_a_row_is_labelled_with_its_mean_and_values() -> None:
    spec = search(TWO_BY_TWO, algorithm={"type": "grid"}, seeds=3)
    table = two_by_two(spec)
    last = [table.trials[n].score for n in (9, 10, 11)]
    assert label_of(spec, 1, Findings(spec, table).scored[0]) == (
        f"1.  {100 * mean(last):.2f} ± {100 * stdev(last):.2f} %",
        "routing.iterations = 3",
        "loss.reconstruction_weight = 0.0005",
    )


def test_reconstructions_stand_below_the_images_they_are_of() -> None:
    images = np.full((4, 1, 28, 28), 50, dtype=np.uint8)
    sheet = compare([a_row(100), a_row(150)], images, [7, 2, 1, 0])
    pixels = np.asarray(sheet)
    tops = []
    for grey in (50, 100, 150):
        found = (pixels == grey).all(axis=2)
        assert found.sum() >= 4 * 84 * 84
        tops.append(found.sum(axis=1).argmax())
        assert columns_of_colour(sheet, grey) >= 4 * 84
    assert tops == sorted(tops)
    assert (pixels == drawing.GOOD).all(axis=2).any()


def test_labels_of_any_length_leave_the_pictures_alone() -> None:
    images = np.full((4, 3, 28, 28), 50, dtype=np.uint8)
    short = compare([a_row(100)], images, "abcd")
    long = ComparisonRow(("1.  98 %", "word " * 500), a_row(100).drawings)
    wide = compare([long], images, "abcd")
    assert short.width < wide.width < short.width + 400
    assert columns_of_colour(wide, 100) == columns_of_colour(short, 100)


def test_labels_of_many_lines_do_not_run_into_each_other() -> None:
    images = np.full((4, 1, 28, 28), 50, dtype=np.uint8)
    pixels = np.asarray(compare([a_row(100, lines=12), a_row(150, lines=12)], images, "abcd"))
    written = (pixels[:, :40] < 200).any(axis=(1, 2))
    lines = int((np.diff(written.astype(int)) == 1).sum())
    assert lines == 4 + 2 * 12  # the title, "label", "input" and its dot, those of the rows


@pytest.mark.parametrize(
    ("rows", "labels", "told"),
    [
        ([], [1, 2, 3, 4], "0 rows"),
        ([a_row(1)], [1, 2, 3], "3 labels for 4 images"),
        ([a_row(1), a_row(1, images=3)], [1, 2, 3, 4], "row 1 has 3 drawings"),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    rows: list[ComparisonRow], labels: list[int], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        compare(rows, np.zeros((4, 1, 28, 28), dtype=np.uint8), labels)
