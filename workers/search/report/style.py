"""How plots look: the colours of the sheets, white paper, letters that can be read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workers.search.report.scales import Scale

PAPER = "#ffffff"
INK = "#212529"
QUIET = "#6c757d"
FAINT = "#ced4da"
GRID = "#eceff1"
GOOD = "#196e3c"
BAD = "#b02a37"
TOP = (GOOD, "#1f6fb4", "#d9822b", "#7b4fa6", "#0f9aa8")
"""Of the best configurations, the best one first."""
SCALE = ("#dee2e6", "#a9c7b4", "#5f9d79", GOOD)
"""From the worst score to the best."""
DPI = 110
LOWEST, HIGHEST = 0.02, 0.98
"""Places of letters on an upright axis from 0 to 1."""

SETTINGS: Any = {
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 13,
    "axes.titlelocation": "left",
    "axes.titlepad": 26,
    "axes.formatter.useoffset": False,
    "grid.color": GRID,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "legend.frameon": False,
}


def new_figure(width: float, height: float, title: str, about: str) -> tuple[Figure, Axes]:
    """A figure of so many inches with one pair of axes; `about` stands small below the title."""
    with matplotlib.rc_context(SETTINGS):
        figure = Figure((width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(title)
    told = axes.annotate(
        about,
        xy=(0, 1),
        xytext=(0, 10),
        xycoords="axes fraction",
        textcoords="offset points",
        color=QUIET,
        fontsize=10,
    )
    told.set_in_layout(False)
    return figure, axes


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG; no display is needed."""
    with matplotlib.rc_context(SETTINGS):
        figure.savefig(path, dpi=DPI)
    return path


def colour_between(share: float) -> str:
    """Colour of a score at a share of the way from the worst, 0, to the best, 1."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    return to_hex(LinearSegmentedColormap.from_list("scores", SCALE)(share))


def draw_marks(axes: Axes, scale: Scale) -> None:
    """Give the upright axis a scale: what is drawn then are places on it."""
    axes.set_ylim(0, 1)
    axes.set_yticks([place for place, _ in scale.marks], [text for _, text in scale.marks])
    axes.set_ylabel(scale.name)


def apart(wished: Sequence[float], distance: float) -> list[float]:
    """Places near those wished for, in the same order, no two nearer than `distance`.

    Those that come too near to each other are spread about their common middle, and all stay
    between `LOWEST` and `HIGHEST` as long as there is room.
    """
    order = sorted(range(len(wished)), key=lambda index: wished[index])
    groups: list[list[int]] = []
    for index in order:
        groups.append([index])
        while len(groups) > 1 and _collide(groups[-2], groups[-1], wished, distance):
            last = groups.pop()
            groups[-1] += last
    places = [0.0] * len(wished)
    for group in groups:
        for index, place in zip(group, _spread(group, wished, distance), strict=True):
            places[index] = place
    return places


def _spread(group: list[int], wished: Sequence[float], distance: float) -> list[float]:
    middle = sum(wished[index] for index in group) / len(group)
    half = distance * (len(group) - 1) / 2
    first = max(min(middle + half, HIGHEST) - 2 * half, LOWEST)
    return [first + distance * number for number in range(len(group))]


def _collide(lower: list[int], upper: list[int], wished: Sequence[float], distance: float) -> bool:
    last, first = _spread(lower, wished, distance)[-1], _spread(upper, wished, distance)[0]
    return first - last < distance
