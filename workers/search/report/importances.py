"""How much of the variance of scores a parameter explains: fANOVA (Hutter et al. 2014)."""

from pathlib import Path

from workers.search.report import style
from workers.search.report.findings import Findings
from workers.search.report.plotly_page import Page
from workers.trials import Trial, TrialState

SEED = 0
"""Of the forest that stands for the scores: the same trials give the same importances."""


def write(findings: Findings, folder: Path) -> list[Path]:
    """Write `parameter-importances.png`; nothing where nothing can be told."""
    shares = findings.importances
    if not shares:
        return []
    title = f"{findings.spec.name}: what matters for {findings.spec.metric}"
    figure, axes = style.new_figure(9, 1.9 + 0.5 * len(shares), title, _about(findings))
    names = [findings.names[path] for path in shares]
    colours = [style.GOOD, *[style.SCALE[2]] * (len(shares) - 1)]
    bars = axes.barh(names, [100 * share for share in shares.values()], 0.62, color=colours)
    axes.bar_label(
        bars, [f"{100 * share:.0f} %" for share in shares.values()], padding=5, color=style.INK
    )
    axes.invert_yaxis()
    axes.set_xlim(0, 108)
    axes.set_xlabel("share of the explained variance (%)")
    axes.tick_params(axis="y", length=0, labelsize=12, labelcolor=style.INK)
    axes.grid(False, axis="y")
    return [style.save(figure, folder / "parameter-importances.png")]


def write_page(findings: Findings, folder: Path) -> list[Path]:
    """Write `parameter-importances.html`."""
    shares = findings.importances
    if not shares:
        return []
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": [findings.names[path] for path in shares],
        "x": [100 * share for share in shares.values()],
        "text": [f"{100 * share:.0f} %" for share in shares.values()],
        "textposition": "outside",
        "cliponaxis": False,
        "customdata": list(shares),
        "hovertemplate": "%{customdata}: %{x:.1f} %<extra></extra>",
        "marker": {"color": [style.GOOD, *[style.SCALE[2]] * (len(shares) - 1)]},
    }
    layout = {
        "xaxis": {
            "title": {"text": "share of the explained variance (%)"},
            "range": [0, 108],
            "gridcolor": style.GRID,
            "zeroline": False,
        },
        "yaxis": {"autorange": "reversed", "automargin": True, "ticksuffix": "  "},
        "bargap": 0.4,
        "height": 190 + 60 * len(shares),
    }
    page = Page(f"{findings.spec.name}: what matters for {findings.spec.metric}", _about(findings))
    return [page.write([bars], layout, folder / "parameter-importances.html")]


def importances(findings: Findings) -> dict[str, float]:
    """Share of every parameter, from 0 to 1, the largest first; they add up to 1.

    Empty where fewer than two trials count, where all of these have the same score, and where no
    parameter has two values.
    """
    trials = counted(findings)
    varied = [path for path in findings.spec.space if _varies(path, trials)]
    if len({trial.score for trial in trials}) < 2 or not varied:
        return {}
    import optuna

    from workers.search.distributions import distributions, encoded

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = findings.spec.space
    known = distributions(space)
    study = optuna.create_study()
    for trial in trials:
        study.add_trial(
            optuna.trial.create_trial(
                params=encoded(space, trial.values), distributions=known, value=trial.score
            )
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=SEED)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=varied)
    shares = {path: float(share) for path, share in found.items()}
    unvaried = dict.fromkeys((path for path in space if path not in shares), 0.0)
    return dict(sorted({**shares, **unvaried}.items(), key=lambda item: -item[1]))


def counted(findings: Findings) -> list[Trial]:
    """Trials that have ended with a score; of those cut off early it is the score until then."""
    ended = (TrialState.SUCCEEDED, TrialState.PRUNED)
    return [
        trial
        for trial in findings.trials
        if trial.state in ended and trial.counts and set(trial.values) == set(findings.spec.space)
    ]


def _varies(path: str, trials: list[Trial]) -> bool:
    return any(trial.values[path] != trials[0].values[path] for trial in trials)


def _about(findings: Findings) -> str:
    trials = counted(findings)
    pruned = sum(trial.state is TrialState.PRUNED for trial in trials)
    cut = f", {pruned} of them pruned: with their score until then" if pruned else ""
    return f"fANOVA over {len(trials)} trials{cut}"
