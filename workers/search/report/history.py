"""The history: each trial's score when it ended, and the best until then."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from workers.search.report import style
from workers.search.report.findings import Findings
from workers.search.report.scales import Scale, of_scores
from workers.trials import Trial, TrialState

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOOKS = {
    TrialState.SUCCEEDED: ("o", style.GOOD, "succeeded"),
    TrialState.PRUNED: ("x", style.QUIET, "pruned"),
    TrialState.CANCELLED: ("s", style.FAINT, "cancelled"),
    TrialState.FAILED: ("v", style.BAD, "failed"),
}
"""Mark, colour and name of what became of a trial."""


@dataclass(frozen=True)
class Clock:
    """How the axis of time counts."""

    start: float
    unit: str
    seconds: float
    """Of one unit."""

    def at(self, trial: Trial) -> float:
        """When a trial ended, in units since the start."""
        return ((trial.ended_at or self.start) - self.start) / self.seconds


def write(findings: Findings, folder: Path) -> list[Path]:
    """Write `history.png`; nothing before a trial with a score has ended."""
    ended = [trial for trial in findings.trials if trial.state.ended and trial.ended_at is not None]
    ended.sort(key=lambda trial: trial.ended_at or 0.0)
    counting = [trial for trial in ended if trial.counts]
    if not counting:
        return []
    clock = _clock(findings.trials, ended)
    scale = of_scores(findings.score, [trial.score or 0.0 for trial in counting])
    title = f"{findings.spec.name}: history"
    figure, axes = style.new_figure(10, 5, title, findings.counts_text())
    style.draw_marks(axes, scale)
    axes.set_xlabel(f"{clock.unit} since the first trial began")
    _draw_best(axes, findings, counting, clock, scale)
    for state, (mark, colour, name) in LOOKS.items():
        shown = [trial for trial in ended if trial.state is state and _has_place(trial)]
        if shown:
            places = [_place(findings, trial, scale) for trial in shown]
            at = [clock.at(trial) for trial in shown]
            axes.plot(at, places, mark, color=colour, ms=6, label=name, clip_on=False, zorder=3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=10, frameon=False)
    return [style.save(figure, folder / "history.png")]


def _clock(trials: Sequence[Trial], ended: Sequence[Trial]) -> Clock:
    """From the first start; in minutes where the search took at least two, else in seconds."""
    ends = [trial.ended_at for trial in ended if trial.ended_at is not None]
    starts = [trial.started_at for trial in trials if trial.started_at is not None]
    start = min([*starts, *ends])
    taken = max(ends) - start
    if taken >= 3 * 3600:
        return Clock(start, "hours", 3600)
    return Clock(start, "minutes", 60) if taken >= 120 else Clock(start, "seconds", 1)


def _has_place(trial: Trial) -> bool:
    return trial.counts or trial.state is TrialState.FAILED


def _place(findings: Findings, trial: Trial, scale: Scale) -> float:
    """Where a trial stands; one that failed stands at the edge of the worse."""
    if trial.counts and trial.score is not None:
        return scale.place(trial.score)
    return 0.0 if findings.spec.mode == "max" else 1.0


def _draw_best(
    axes: "Axes", findings: Findings, counting: Sequence[Trial], clock: Clock, scale: Scale
) -> None:
    """A staircase of the best score so far; the last step tells its trial."""
    steps: list[Trial] = []
    for trial in counting:
        if not steps or findings.better(trial.score or 0.0, steps[-1].score or 0.0):
            steps.append(trial)
    at = [*map(clock.at, steps), clock.at(counting[-1])]
    places = [scale.place(trial.score) for trial in [*steps, steps[-1]]]
    axes.step(at, places, where="post", color=style.GOOD, lw=1.6, label="best so far")
    axes.annotate(
        f"trial {steps[-1].number}: {findings.score.whole(steps[-1].score)}",
        xy=(at[-2], places[-1]),
        xytext=(0, 8 if findings.spec.mode == "max" else -16),
        textcoords="offset points",
        color=style.GOOD,
        fontweight="bold",
        ha=_aligned(at),
    )


def _aligned(at: Sequence[float]) -> str:
    """Towards the middle, where the last step stands near an end of the axis."""
    share = (at[-2] - at[0]) / ((at[-1] - at[0]) or 1)
    return "left" if share < 0.2 else "right" if share > 0.8 else "center"
