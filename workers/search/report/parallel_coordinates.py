"""Parallel coordinates: an axis a parameter, the score at the right, a line a configuration."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from workers.search.report import style
from workers.search.report.findings import Findings
from workers.search.report.plotly_page import Page
from workers.search.report.scales import Scale, of_scores, scale_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "parameters and score"
PAGE_SCALE = [[0, "#c3cbd3"], [0.3, "#9dbdab"], [0.999, "#0d4f2a"], [1, "#d9480f"]]
"""Plotly's lines are thin as a hair: darker than elsewhere, and the best in a colour of its own."""


@dataclass(frozen=True)
class Lines:
    """What is drawn."""

    scales: Sequence[Scale]
    """Of the parameters in the space's order, then of the score."""
    places: Sequence[Sequence[float]]
    """Of every line on every scale; the best line is the last."""
    shares: Sequence[float]
    """Of every line: how dark it is, from 0 for the worst to 1."""


def write(findings: Findings, folder: Path) -> list[Path]:
    """Write `parallel-coordinates.png`; nothing before a configuration has a score."""
    lines = lines_of(findings)
    if lines is None:
        return []
    width = max(8.0, 1.2 + 1.75 * len(lines.scales))
    title = f"{findings.spec.name}: {TITLE}"
    figure, axes = style.new_figure(width, 5.6, title, _about(findings))
    for places, share in zip(lines.places[:-1], lines.shares[:-1], strict=True):
        axes.plot(places, color=style.colour_between(share), lw=1.2, zorder=1 + share)
    axes.plot(lines.places[-1], color=style.GOOD, lw=3, zorder=3, clip_on=False)
    for number, scale in enumerate(lines.scales):
        _draw_scale(axes, number, scale, lines.places[-1][number])
    names = [scale.name.replace(".", ".\n") for scale in lines.scales]
    axes.set_xticks(range(len(names)), names)
    axes.tick_params(axis="x", length=0, pad=10, labelcolor=style.INK)
    axes.set(ylim=(-0.02, 1.02), yticks=[], xlim=(-0.1, len(names) - 1 + 0.4))
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return [style.save(figure, folder / "parallel-coordinates.png")]


def write_page(findings: Findings, folder: Path) -> list[Path]:
    """Write `parallel-coordinates.html`: ranges can be chosen and axes moved with the mouse."""
    lines = lines_of(findings)
    if lines is None:
        return []
    dimensions = [
        {
            "label": scale.name,
            "values": [places[number] for places in lines.places],
            "range": [0, 1],
            "tickvals": [place for place, _ in scale.marks],
            "ticktext": [text for _, text in scale.marks],
        }
        for number, scale in enumerate(lines.scales)
    ]
    trace = {
        "type": "parcoords",
        "dimensions": dimensions,
        "line": {
            "color": list(lines.shares),
            "cmin": 0,
            "cmax": 1,
            "colorscale": PAGE_SCALE,
        },
        "labelfont": {"size": 14, "color": style.INK},
        "tickfont": {"size": 12, "color": style.INK},
    }
    about = (
        f"{_about(findings)}, in orange. Drag along an axis to choose a range, drag a name to "
        "move its axis."
    )
    page = Page(f"{findings.spec.name}: {TITLE}", about)
    layout = {"margin": {"l": 120, "r": 110, "t": 150, "b": 40}}
    return [page.write([trace], layout, folder / "parallel-coordinates.html")]


def lines_of(findings: Findings) -> Lines | None:
    """A line for every configuration with a score, the best one last; None without any."""
    space = findings.spec.space
    standings = [s for s in reversed(findings.scored) if set(s.values) == set(space)]
    if not standings:
        return None
    scales = [scale_of(findings.names[path], dimension) for path, dimension in space.items()]
    scores = [standing.mean or 0.0 for standing in standings]
    score_scale = of_scores(findings.score, scores)
    places = [
        [
            *(
                scale.place(standing.values[path])
                for path, scale in zip(space, scales, strict=True)
            ),
            score_scale.place(score),
        ]
        for standing, score in zip(standings, scores, strict=True)
    ]
    last = max(len(standings) - 1, 1)
    # By rank, squared: of a hundred lines only the best few are dark.
    shares = [(number / last) ** 2 for number in range(len(standings))]
    return Lines([*scales, score_scale], places, shares)


def _about(findings: Findings) -> str:
    best = findings.scored[0]
    score = findings.score.whole(best.mean, best.deviation)
    if len(findings.scored) == 1:
        return f"1 configuration: {score}"
    return f"{len(findings.scored)} configurations; darker is better; the best: {score}"


def _draw_scale(axes: "Axes", number: int, scale: Scale, best: float) -> None:
    axes.plot([number, number], [0, 1], color=style.QUIET, lw=1.1, zorder=4)
    for place, text in scale.marks:
        axes.plot([number - 0.015, number], [place, place], color=style.QUIET, lw=1.1, zorder=4)
        axes.annotate(
            text,
            xy=(number, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=10,
            color=style.INK,
            zorder=5,
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.8, "lw": 0},
        )
    axes.plot(number, best, "o", color=style.GOOD, ms=6, zorder=4, clip_on=False)
