"""Pictures of what `throughput` found; needs matplotlib, and nothing else of ours.

    python -m benchmarks.plots benchmarks/results/some-machine.json docs/images

draws the results of a machine that has no matplotlib.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Content = dict[str, Any]

WIDTH, DOTS = 8.0, 100
"""Inches, and dots an inch: 800 pixels."""
OURS, PLAIN, TUNED = "#1f5fa8", "#c8702a", "#8a8a8a"
PART_COLOURS = {
    "convolutions, forward": "#1f5fa8",
    "convolutions, backward": "#6f9fd0",
    "routing, forward": "#c8702a",
    "routing, backward": "#e5ad7d",
    "decoder and loss, forward": "#3d8b57",
    "decoder and loss, backward": "#93c7a4",
    "optimizer": "#7a559c",
    "rest": "#b5b5b5",
}


def draw(content: Content, folder: Path, name: str) -> list[Path]:
    """Draw what a report holds.

    Args:
        content: Of `Report.content`, or read from its JSON.
        folder: Is made.
        name: Of the machine: the pictures are `throughput-NAME-ratios.png` and so on.

    Returns:
        The files, none where matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    kinds: dict[str, tuple[str, Callable[[Content], Any]]] = {
        "ratios": ("races", draw_ratios),
        "parts": ("parts", draw_parts),
        "sweeps": ("sweeps", draw_sweeps),
    }
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for kind, (needed, make) in kinds.items():
        if content[needed]:
            drawn.append(folder / f"throughput-{name}-{kind}.png")
            _save(make(content), drawn[-1])
    return drawn


def draw_ratios(content: Content) -> Any:
    """A bar for each comparison, with its quartiles; the two phases side by side."""
    from matplotlib import pyplot

    races = content["races"]
    figure, axes = pyplot.subplots(
        len(races),
        2,
        figsize=(WIDTH, 0.6 + 2.2 * len(races)),
        squeeze=False,
        sharex=True,
        layout="constrained",
    )
    for race, row in zip(races, axes, strict=True):
        for phase, axis in zip(("training", "inference"), row, strict=True):
            lines = [line for line in race["comparisons"] if line["phase"] == phase]
            _bars(axis, lines)
            axis.set_title(f"{phase}, batches of {race['batch_size']}", fontsize=10)
        row[1].set_yticklabels([])
    for axis in axes[-1]:
        axis.set_xlabel("times as many images/s, with quartiles", fontsize=8)
    figure.suptitle(f"Ours against a textbook CapsNet, {content['machine']['device']}", fontsize=11)
    return figure


def draw_parts(content: Content) -> Any:
    """A stacked bar of milliseconds for each precision."""
    from matplotlib import pyplot

    found = content["parts"]
    figure, axis = pyplot.subplots(figsize=(WIDTH, 1.5 + 0.5 * len(found)), layout="constrained")
    for number, parts in enumerate(found):
        left = 0.0
        for part, colour in PART_COLOURS.items():
            ms = max(0.0, 1000 * parts["median_s"][part])
            label = part if number == 0 else None
            axis.barh(number, ms, left=left, color=colour, label=label, height=0.6)
            if parts["shares"][part] > 0.05:
                share = f"{parts['shares'][part]:.0%}"
                axis.text(left + ms / 2, number, share, ha="center", va="center", fontsize=8)
            left += ms
    axis.set_yticks(range(len(found)), [parts["precision"] for parts in found])
    axis.invert_yaxis()
    axis.set_xlabel(f"ms of a training step of {found[0]['batch_size']} images")
    figure.legend(fontsize=8, ncols=4, loc="outside lower center", frameon=False)
    axis.set_title(
        f"Where a training step's time goes, {content['machine']['device']}", fontsize=11
    )
    return figure


def draw_sweeps(content: Content) -> Any:
    """Images a second over the values of each sweep, both phases of ours and of the textbook."""
    from matplotlib import pyplot

    sweeps = content["sweeps"]
    rows = -(-len(sweeps) // 2)
    figure, axes = pyplot.subplots(
        rows,
        2,
        figsize=(WIDTH, 0.8 + 2.4 * rows),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for sweep, axis in zip(sweeps, axes.flat, strict=False):
        _sweep_lines(axis, sweep)
    for axis in axes.flat[len(sweeps) :]:
        axis.set_axis_off()
    for row in axes:
        row[0].set_ylabel("images/s")
    axes[0][0].legend(fontsize=8)
    figure.suptitle(
        f"Ours in bf16, the plain textbook in fp32, {content['machine']['device']}", fontsize=11
    )
    return figure


def _bars(axis: Any, lines: list[Content]) -> None:
    names = [f"{line['ours']} / {line['other']}" for line in lines]
    medians = [line["ratio"]["median"] for line in lines]
    below = [line["ratio"]["median"] - line["ratio"]["low"] for line in lines]
    above = [line["ratio"]["high"] - line["ratio"]["median"] for line in lines]
    colours = [PLAIN if "plain" in line["other"] else TUNED for line in lines]
    axis.barh(names, medians, xerr=[below, above], color=colours, height=0.6, ecolor="#222222")
    for number, line in enumerate(lines):
        place = line["ratio"]["high"]
        axis.text(place, number, f"  {medians[number]:.1f}", va="center", fontsize=8)
    axis.axvline(1, color="#222222", linewidth=0.8)
    axis.invert_yaxis()
    axis.margins(x=0.15)
    axis.tick_params(labelsize=8)


def _sweep_lines(axis: Any, sweep: Content) -> None:
    for contender, colour in (("ours", OURS), ("plain", PLAIN)):
        for phase, style in (("training", "-"), ("inference", "--")):
            lines = sorted(
                (line["value"], line["images_per_s"])
                for line in sweep["lines"]
                if (line["contender"], line["phase"]) == (contender, phase)
            )
            label = f"{contender}, {phase}"
            axis.plot(*zip(*lines, strict=True), style, marker="o", color=colour, label=label,
                      markersize=4)  # fmt: skip
    values = sorted({line["value"] for line in sweep["lines"]})
    if values[-1] > 5 * values[0]:
        axis.set_xscale("log")
    axis.set_xticks(values, [str(value) for value in values])
    axis.minorticks_off()
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.set_xlabel(sweep["name"], fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, dpi=DOTS)
    pyplot.close(figure)


def main(arguments: list[str]) -> None:
    """Draw a file of results into a folder."""
    if len(arguments) != 2:
        raise SystemExit("usage: python -m benchmarks.plots RESULTS.json FOLDER")
    results = Path(arguments[0])
    drawn = draw(json.loads(results.read_text()), Path(arguments[1]), results.stem)
    if not drawn:
        raise SystemExit("nothing was drawn: is matplotlib installed?")
    print(*drawn, sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
