"""The grid: where all dimensions list their values, the mean in every cell.

Two dimensions make a cross table, as table 1 of the paper; another number makes a long one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from workers.search.report import style
from workers.search.report.findings import Findings
from workers.search.report.tables import Table, page
from workers.search.report.words import value_text
from workers.search_space import ListDimension

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CELLS = 2000
MOST_COLUMNS, MOST_ROWS = 10, 24
"""Of the picture."""


@dataclass(frozen=True)
class Cell:
    """What was measured for one combination of values."""

    values: tuple[Any, ...]
    scores: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        """Of the scores of all trials with these values."""
        return fmean(self.scores) if self.scores else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation (n - 1); None for fewer than two."""
        return stdev(self.scores) if len(self.scores) > 1 else None


def write(findings: Findings, folder: Path) -> list[Path]:
    """Write `grid.md` and `grid.html`, and `grid.png` for a cross; nothing for another space."""
    cells = cells_of(findings)
    if not any(cell.scores for cell in cells):
        return []
    title = f"{findings.spec.name}: {findings.score.label}"
    cross = len(findings.spec.space) == 2
    table = _cross(findings, cells) if cross else _long(findings, cells)
    about = _about(findings, cross)
    as_markdown, as_html = folder / "grid.md", folder / "grid.html"
    as_markdown.write_text(f"# {title}\n\n{about}\n\n{table.markdown()}\n")
    as_html.write_text(page(title, about, _highlight(findings, cells, table)))
    if (
        not cross
        or len(_values(findings, 0)) > MOST_ROWS
        or len(_values(findings, 1)) > MOST_COLUMNS
    ):
        return [as_markdown, as_html]
    return [as_markdown, as_html, _draw(findings, cells, title, folder / "grid.png")]


def cells_of(findings: Findings) -> list[Cell]:
    """A cell for every combination, the last dimension's values fastest; none for other spaces."""
    dimensions = list(findings.spec.space.values())
    listed = all(isinstance(dimension, ListDimension) for dimension in dimensions)
    sizes = [dimension.size for dimension in dimensions]
    if not listed or _product(sizes) > MOST_CELLS:
        return []
    combinations = product(*(_values(findings, number) for number in range(len(dimensions))))
    return [Cell(values, _scores(findings, values)) for values in combinations]


def best_cell(findings: Findings, cells: Sequence[Cell]) -> Cell | None:
    """The cell with the best mean."""
    pick = max if findings.spec.mode == "max" else min
    measured = [cell for cell in cells if cell.mean is not None]
    return pick(measured, key=lambda cell: cell.mean or 0.0, default=None)


def _product(sizes: Sequence[float]) -> float:
    result = 1.0
    for size in sizes:
        result *= size
    return result


def _values(findings: Findings, number: int) -> tuple[Any, ...]:
    """The values that a dimension lists."""
    dimension = list(findings.spec.space.values())[number]
    return dimension.values if isinstance(dimension, ListDimension) else ()


def _scores(findings: Findings, values: tuple[Any, ...]) -> tuple[float, ...]:
    wanted = dict(zip(findings.spec.space, values, strict=True))
    return tuple(
        trial.score
        for trial in findings.trials
        if trial.counts and trial.score is not None and trial.values == wanted
    )


def _about(findings: Findings, cross: bool) -> str:
    names = list(findings.names.values())
    where = f"Rows: {names[0]}; columns: {names[1]}. " if cross else ""
    return f"{where}Mean ± sample standard deviation over n trials, each at its best epoch."


def _text(findings: Findings, cell: Cell) -> str:
    if not cell.scores:
        return "–"
    return f"{findings.score.spread(cell.mean, cell.deviation)} (n = {len(cell.scores)})"


def _cross(findings: Findings, cells: Sequence[Cell]) -> Table:
    first, second = findings.names.values()
    across = _values(findings, 1)
    rows = []
    for number, value in enumerate(_values(findings, 0)):
        of_row = cells[number * len(across) : (number + 1) * len(across)]
        rows.append([f"{first} = {value_text(value)}", *(_text(findings, c) for c in of_row)])
    head = ["", *(f"{second} = {value_text(value)}" for value in across)]
    return Table(head, rows, numbers=range(1, len(head)))


def _long(findings: Findings, cells: Sequence[Cell]) -> Table:
    rows = [
        [
            *map(value_text, cell.values),
            findings.score.spread(cell.mean, cell.deviation),
            str(len(cell.scores)),
        ]
        for cell in cells
    ]
    head = [*findings.names.values(), findings.score.label, "n"]
    return Table(head, rows, numbers=(len(head) - 2, len(head) - 1))


def _highlight(findings: Findings, cells: Sequence[Cell], table: Table) -> str:
    """The table as HTML with the best cell, or the best row of a long table, in green."""
    best = best_cell(findings, cells)
    if best is None:
        return table.html()
    if len(findings.spec.space) != 2:
        return table.html([cells.index(best)])
    text = escape(_text(findings, best))
    return table.html().replace(f'class="number">{text}<', f'class="number best">{text}<')


def _draw(findings: Findings, cells: Sequence[Cell], title: str, path: Path) -> Path:
    rows, columns = _values(findings, 0), _values(findings, 1)
    first, second = findings.names.values()
    width, height = max(7.2, 2.6 + 2.1 * len(columns)), 2.2 + 0.85 * len(rows)
    about = "mean ± sample standard deviation over n trials, each at its best epoch"
    figure, axes = style.new_figure(width, height, title, about)
    best = best_cell(findings, cells)
    for number, cell in enumerate(cells):
        row, column = divmod(number, len(columns))
        _draw_cell(axes, findings, cells, cell, (row, column), cell is best)
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xticks(range(len(columns)), [value_text(value) for value in columns])
    axes.set_yticks(range(len(rows)), [value_text(value) for value in rows])
    axes.tick_params(length=0, labelsize=12, labelcolor=style.INK)
    axes.set_xlabel(second)
    axes.set_ylabel(first)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return style.save(figure, path)


def _draw_cell(
    axes: "Axes",
    findings: Findings,
    cells: Sequence[Cell],
    cell: Cell,
    place: tuple[int, int],
    best: bool,
) -> None:
    from matplotlib.patches import Rectangle

    row, column = place
    share = _share(findings, cells, cell)
    colour = style.PAPER if share is None else style.colour_between(0.6 * share)
    box = Rectangle(
        (column - 0.48, row - 0.46),
        0.96,
        0.92,
        facecolor=colour,
        edgecolor=style.GOOD if best else style.FAINT,
        lw=2.5 if best else 0.8,
    )
    axes.add_patch(box)
    text = findings.score.spread(cell.mean, cell.deviation)
    weight = "bold" if best else "normal"
    axes.text(column, row - 0.1, text, ha="center", va="center", fontsize=13, fontweight=weight)
    count = f"n = {len(cell.scores)}"
    axes.text(column, row + 0.24, count, ha="center", va="center", fontsize=10, color=style.INK)


def _share(findings: Findings, cells: Sequence[Cell], cell: Cell) -> float | None:
    """How far the cell is from the worst, 0, to the best, 1; None where nothing was measured."""
    means = [other.mean for other in cells if other.mean is not None]
    if cell.mean is None:
        return None
    if max(means) == min(means):
        return 0.5
    share = (cell.mean - min(means)) / (max(means) - min(means))
    return share if findings.spec.mode == "max" else 1 - share
