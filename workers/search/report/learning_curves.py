"""Learning curves: the search's metric over the epochs, one line a trial, the best in colours."""

import textwrap
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.search.report import style
from workers.search.report.findings import Findings
from workers.search.report.plotly_page import Page
from workers.search.report.scales import Scale, of_scores
from workers.trials import Trial, TrialState

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABEL_DISTANCE = 0.042
"""Of the ranks at the ends of the lines, as a share of the axis."""
LINE = 118
"""Characters of a line of the legend; a configuration has two at most."""


@dataclass(frozen=True)
class Curve:
    """One trial's line."""

    trial: Trial
    points: list[tuple[int, float]]
    """(completed epochs, value)."""
    rank: int | None
    """Of its configuration, from 1, where that is among the best."""
    legend: str
    """What the configuration is."""

    @property
    def colour(self) -> str:
        """That of its rank, or a faint one."""
        return style.FAINT if self.rank is None else style.TOP[self.rank - 1]

    @property
    def pruned(self) -> bool:
        """Whether the line ends with a mark."""
        return self.trial.state is TrialState.PRUNED


def write(findings: Findings, folder: Path) -> list[Path]:
    """Write `learning-curves.png`; nothing before the first epoch's end."""
    curves = curves_of(findings)
    if not curves:
        return []
    scale = _scale(findings, curves)
    legend = _legend(curves)
    lines = sum(1 + text.count("\n") for text in legend.values())
    figure, axes = style.new_figure(10, 5.4 + 0.22 * lines, _title(findings), _about(curves))
    for curve in curves:
        _draw(axes, curve, scale)
    style.draw_marks(axes, scale)
    _draw_epochs(axes, curves)
    _draw_ranks(axes, [curve for curve in curves if curve.rank is not None], scale)
    _draw_legend(figure, axes, legend)
    return [style.save(figure, folder / "learning-curves.png")]


def write_page(findings: Findings, folder: Path) -> list[Path]:
    """Write `learning-curves.html`: a line tells its trial when pointed at."""
    curves = curves_of(findings)
    if not curves:
        return []
    scale, legend = _scale(findings, curves), _legend(curves)
    first = {curve.rank: curve for curve in reversed(curves)}
    traces = []
    for curve in curves:
        named = curve.rank is not None and first[curve.rank] is curve
        traces.append(_trace(findings, curve, scale, legend[curve.rank or 1] if named else ""))
    page = Page(_title(findings), _about(curves))
    layout = _layout(curves, scale, lines=sum(1 + text.count("\n") for text in legend.values()))
    return [page.write(traces, layout, folder / "learning-curves.html")]


def curves_of(findings: Findings) -> list[Curve]:
    """Lines of all trials that ended an epoch; those of the best configurations at the end."""
    ranks = {s.configuration: rank for rank, s in enumerate(findings.scored, start=1)}
    legends = {
        s.configuration: f"{findings.score.whole(s.mean, s.deviation)}   {findings.values_text(s)}"
        for s in findings.standings
    }
    curves = []
    for trial in findings.trials:
        points = findings.curve(trial)
        rank = ranks.get(trial.configuration, len(style.TOP) + 1)
        shown = rank if rank <= len(style.TOP) else None
        if points:
            curves.append(Curve(trial, points, shown, legends[trial.configuration]))
    return sorted(curves, key=lambda curve: -(curve.rank or len(style.TOP) + 1))


def _title(findings: Findings) -> str:
    return f"{findings.spec.name}: learning curves"


def _about(curves: list[Curve]) -> str:
    best = len({curve.rank for curve in curves if curve.rank is not None})
    pruned = sum(curve.pruned for curve in curves)
    trials = "1 trial" if len(curves) == 1 else f"{len(curves)} trials"
    crosses = f"; ×: {pruned} pruned" if pruned else ""
    coloured = f"; the best {best} configurations in colours" if best > 1 else ""
    return trials + coloured + crosses


def _scale(findings: Findings, curves: list[Curve]) -> Scale:
    return of_scores(findings.score, [value for curve in curves for _, value in curve.points])


def _legend(curves: list[Curve]) -> dict[int, str]:
    """What each of the best is, by rank."""
    found = {curve.rank: curve.legend for curve in curves if curve.rank is not None}
    return {
        rank: "\n".join(
            textwrap.wrap(
                f"{rank}.  {found[rank]}",
                LINE,
                max_lines=2,
                placeholder=" …",
                subsequent_indent="     ",
                replace_whitespace=False,
            )
        )
        for rank in sorted(found)
    }


def _draw(axes: "Axes", curve: Curve, scale: Scale) -> None:
    epochs = [epoch for epoch, _ in curve.points]
    places = [scale.place(value) for _, value in curve.points]
    best = curve.rank is not None
    dot = "o" if len(epochs) == 1 and not curve.pruned else ""
    width = 2.2 if best else 1
    axes.plot(epochs, places, color=curve.colour, lw=width, marker=dot, ms=4, zorder=2 + best)
    if curve.pruned:
        colour = curve.colour if best else style.QUIET
        axes.plot(epochs[-1], places[-1], "x", color=colour, ms=5, mew=1.2, zorder=3)


def _draw_epochs(axes: "Axes", curves: list[Curve]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(*_epochs_shown(curves))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=14, min_n_ticks=1))
    axes.set_xlabel("epoch")


def _epochs_shown(curves: list[Curve]) -> tuple[float, float]:
    epochs = [epoch for curve in curves for epoch, _ in curve.points]
    room = 0.03 * (max(epochs) - min(epochs)) or 0.5
    return min(epochs) - room, max(epochs) + room


def _draw_ranks(axes: "Axes", best: list[Curve], scale: Scale) -> None:
    """The rank of each of the best lines at its end, moved apart where they meet."""
    ends = [scale.place(curve.points[-1][1]) for curve in best]
    for curve, place in zip(best, style.apart(ends, LABEL_DISTANCE), strict=True):
        axes.annotate(
            str(curve.rank),
            xy=(curve.points[-1][0], place),
            xytext=(7, 0),
            textcoords="offset points",
            color=curve.colour,
            fontsize=10,
            fontweight="bold",
            va="center",
            annotation_clip=False,
            zorder=4,
        )


def _draw_legend(figure: "Figure", axes: "Axes", legend: dict[int, str]) -> None:
    if not legend:
        return
    handles = [axes.plot([], [], color=style.TOP[rank - 1], lw=2.2)[0] for rank in legend]
    figure.legend(handles, legend.values(), loc="outside lower left", fontsize=9.5, frameon=False)


def _layout(curves: list[Curve], scale: Scale, lines: int) -> dict[str, Any]:
    """Axes of the page, and room for so many lines of the legend below them."""
    axis = {"gridcolor": style.GRID, "zeroline": False}
    return {
        "xaxis": {
            **axis,
            "title": {"text": "epoch", "standoff": 8, "font": {"size": 14}},
            "range": list(_epochs_shown(curves)),
        },
        "yaxis": {
            **axis,
            "title": {"text": scale.name, "font": {"size": 14}},
            "range": [0, 1],
            "tickvals": [place for place, _ in scale.marks],
            "ticktext": [text for _, text in scale.marks],
        },
        "legend": {
            "traceorder": "reversed",
            "x": 0,
            "yref": "container",
            "y": 0.01,
            "yanchor": "bottom",
            "font": {"size": 12},
        },
        "margin": {"l": 80, "r": 30, "t": 80, "b": 80 + 19 * lines},
        "hovermode": "closest",
    }


def _trace(findings: Findings, curve: Curve, scale: Scale, name: str) -> dict[str, Any]:
    """A line of the page; without a name it does not stand in the legend."""
    sizes = [4 if len(curve.points) == 1 else 0] * len(curve.points)
    symbols = ["circle"] * len(curve.points)
    if curve.pruned:
        sizes[-1], symbols[-1] = 7, "x-thin"
    about = f"trial {curve.trial.number}, {curve.trial.state.lower()}<br>{_broken(curve.legend)}"
    return {
        "type": "scatter",
        "mode": "lines+markers" if any(sizes) else "lines",
        "x": [epoch for epoch, _ in curve.points],
        "y": [scale.place(value) for _, value in curve.points],
        "customdata": [findings.score.whole(value) for _, value in curve.points],
        "name": _broken(name),
        "legendgroup": str(curve.rank),
        "showlegend": bool(name),
        "line": {"color": curve.colour, "width": 1 if curve.rank is None else 2.5},
        "marker": {
            "size": sizes,
            "symbol": symbols,
            "color": curve.colour,
            "line": {"width": 1.5, "color": style.QUIET},
        },
        "hovertemplate": f"{about}<br>epoch %{{x}}: %{{customdata}}<extra></extra>",
    }


def _broken(text: str) -> str:
    """Text for Plotly, which reads it as HTML."""
    return "<br>".join(escape(line) for line in textwrap.wrap(text, LINE))
