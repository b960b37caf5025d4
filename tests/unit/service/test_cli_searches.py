"""`capsctl search` and what follows it, against a real server."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from service.cli import app
from service.cli.leaderboard import values
from service.queue.job import State
from support.searches import RATES, SEARCH, start, trials, write_trials
from workers.attempt import AttemptFolder, Progress, TrialCounts
from workers.trials import TrialState


@pytest.fixture
def capsctl(api: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("CAPS_URL", api.url)

    def run(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, list(arguments), input=stdin)

    return run


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(SEARCH))
    return str(path)


def submitted(capsctl: Any, file: str, *arguments: str) -> str:
    result = capsctl("search", file, *arguments, "-o", "json")
    assert result.exit_code == 0, result.output
    return str(json.loads(result.stdout)["id"])


def ended(api: Any, search: str, state: State = State.SUCCEEDED) -> None:
    """A search whose eight trials are known."""
    start(api.store, search)
    folder = AttemptFolder(api.settings.storage_root, search, 1)
    write_trials(folder)
    folder.write_progress(
        Progress(phase="searching", trials=TrialCounts(total=10, succeeded=4), best_score=0.96)
    )
    api.store.update(api.store.get(search), state=state, finished_at=api.store.now())


def test_a_search_is_submitted_and_says_what_to_do_next(capsctl: Any, file: str) -> None:
    result = capsctl("search", file, "--set", "base.epochs=3", "--set", "seeds=1", "--name", "x")
    assert result.exit_code == 0, result.output
    search = result.stdout.split()[1]
    assert "5 trials" in result.stdout
    for command in ("watch", "trials", "promote", "cancel"):
        assert f"capsctl {command} {search}" in result.stdout
    view = json.loads(capsctl("show", search, "-o", "json").stdout)
    assert (view["spec"]["base"]["epochs"], view["spec"]["seeds"], view["name"]) == (3, 1, "x")
    assert view["counts"]["total"] == 5


def test_a_type_in_the_base_is_set_with_its_own_defaults(capsctl: Any, file: str) -> None:
    search = submitted(
        capsctl, file, "--set", "base.schedule.floor=0.1", "--set",
        "base.schedule.type=exponential",
    )  # fmt: skip
    view = json.loads(capsctl("show", search, "-o", "json").stdout)
    schedule = view["spec"]["base"]["schedule"]
    assert (schedule["type"], schedule["floor"]) == ("exponential", 0.1)


def test_a_preview_submits_nothing(capsctl: Any, file: str) -> None:
    before = len(json.loads(capsctl("jobs", "--kind", "search", "-o", "json").stdout))
    text = capsctl("search", file, "--preview").stdout
    assert "configurations     5" in text
    assert "training images    144,000" in text
    assert f"optimizer.learning_rate = {RATES[0]}" in text
    told = json.loads(capsctl("search", file, "--preview", "-o", "json").stdout)
    assert told["trials"] == 10
    assert len(json.loads(capsctl("jobs", "--kind", "search", "-o", "json").stdout)) == before


@pytest.mark.parametrize(
    ("arguments", "tells"),
    [
        (["--set", "base.epochs=0"], "/base/epochs"),
        (["--set", "base.epoch=1"], "did you mean 'epochs'"),
        (["--set", "epochs=1"], "base.epochs"),
        (["--set", "trials=3"], "/trials"),
        (["--set", "metric=test/accuracy"], "val/accuracy"),
    ],
)
def test_a_bad_search_names_the_field_and_exits_2(
    capsctl: Any, file: str, arguments: list[str], tells: str
) -> None:
    result = capsctl("search", file, *arguments)
    assert result.exit_code == 2
    assert tells in result.stderr
    assert "capsctl schema search" in result.stderr


def test_a_preset_is_no_search(capsctl: Any) -> None:
    result = capsctl("search", "demo")
    assert result.exit_code == 2
    assert "'demo' is no file" in result.stderr


def test_trials_are_listed_the_best_first(capsctl: Any, api: Any, file: str) -> None:
    search = submitted(capsctl, file)
    ended(api, search)
    lines = capsctl("trials", search).stdout.splitlines()
    assert lines[0].split()[:4] == ["TRIAL", "CONFIG", "SEED", "STATE"]
    assert [line.split()[0] for line in lines[1:]] == ["5", "2", "3", "1", "0", "6", "4", "7"]
    assert lines[2].split() == [
        "2", "1", "0", "done", "0.9700", "3/4", "0:14", "learning_rate=0.002",
    ]  # fmt: skip
    assert "diverged: loss is nan" in lines[1]
    text = capsctl("trials", search, "--state", "failed", "--sort", "-number").stdout
    assert [line.split()[0] for line in text.splitlines()[1:]] == ["5", "4"]
    found = json.loads(capsctl("trials", search, "--limit", "3", "-o", "json").stdout)
    assert [trial["number"] for trial in found] == [5, 2, 3]
    assert len(capsctl("trials", search, "--configuration", "1").stdout.splitlines()) == 3
    assert capsctl("trials", search, "--sort", "rank").exit_code == 2


def test_watch_shows_the_leaderboard_and_exits_by_the_end(
    capsctl: Any, api: Any, file: str
) -> None:
    good, bad = submitted(capsctl, file), submitted(capsctl, file)
    ended(api, good)
    ended(api, bad, State.FAILED)
    result = capsctl("watch", good)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == (
        "succeeded: 8 of 10 trials ended (4 done, 1 pruned, 2 failed, 1 cancelled); best "
        "val/accuracy 0.9600 ± 0.0141 (learning_rate=0.002)"
    )
    assert lines[1].split() == ["RANK", "CONFIG", "SCORE", "EPOCH", "TRIALS", "VALUES"]
    assert lines[2].split()[:5] == ["1", "1", "0.9600", "±", "0.0141"]
    assert lines[5].split()[0] == "-"
    assert f"search {good} (rates): SUCCEEDED" in result.stdout
    assert "\x1b" not in result.stdout
    assert capsctl("watch", bad).exit_code == 1
    told = capsctl("watch", good, "-o", "json").stdout.splitlines()
    assert json.loads(told[-1])["best"]["configuration"] == 1


def test_the_live_board_is_drawn(capsctl: Any, api: Any, file: str) -> None:
    from rich.console import Console

    from service.cli.leaderboard import _board
    from service.client import CapsClient

    search = submitted(capsctl, file)
    ended(api, search)
    with CapsClient(api.url) as client:
        board = _board(client.search(search), client.configurations(search))
    narrow = Console(width=100, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115
    narrow.print(board)
    drawn = narrow.export_text()
    for part in ("succeeded", "8 of 10 trials ended", "0.9600 ± 0.0141", "learning_rate=0.002"):
        assert part in drawn


def test_a_narrow_terminal_wraps_the_state_of_a_search(capsctl: Any, api: Any, file: str) -> None:
    from rich.console import Console
    from rich.live import Live

    from service.cli.leaderboard import _board
    from service.client import CapsClient

    search = submitted(capsctl, file)
    ended(api, search)
    screen = StringIO()
    narrow = Console(file=screen, width=60, height=40, force_terminal=True, soft_wrap=True)
    with CapsClient(api.url) as client, Live(console=narrow, auto_refresh=False) as live:
        board = _board(client.search(search), client.configurations(search))
        live.update(board, refresh=True)
    drawn = " ".join(screen.getvalue().split())
    assert "best val/accuracy 0.9600 ± 0.0141 (learning_rate=0.002)" in drawn


def test_a_long_reason_says_that_it_is_cut(capsctl: Any, api: Any, file: str) -> None:
    search = submitted(capsctl, file)
    start(api.store, search)
    failed = next(trial for trial in trials() if trial.state is TrialState.FAILED)
    told = [
        failed.model_copy(update={"number": number, "evidence": evidence})
        for number, evidence in enumerate(("x" * 200, "y" * 70))
    ]
    write_trials(AttemptFolder(api.settings.storage_root, search, 1), told)
    cut, whole = sorted(
        line.split()[-1] for line in capsctl("trials", search).stdout.splitlines()[1:]
    )
    assert cut == "x" * 69 + "…"
    assert whole == "y" * 70


def test_jobs_of_both_kinds_are_listed(capsctl: Any, api: Any, file: str) -> None:
    search = submitted(capsctl, file, "--set", "experiment=kinds")
    ended(api, search)
    capsctl("submit", "demo", "--set", "experiment=kinds")
    lines = capsctl("jobs", "--experiment", "kinds").stdout.splitlines()
    assert lines[0].split() == [
        "ID", "KIND", "NAME", "EXPERIMENT", "STATE", "PHASE", "DONE", "VALIDATION", "AGE",
    ]  # fmt: skip
    assert lines[1].split()[1:7] == ["train", "demo", "kinds", "QUEUED", "waiting", "-"]
    assert lines[2].split()[1:9] == [
        "search", "rates", "kinds", "SUCCEEDED", "succeeded", "4/10", "trials", "0.9600",
    ]  # fmt: skip
    text = capsctl("jobs", "--experiment", "kinds", "--kind", "search").stdout
    assert len(text.splitlines()) == 2


def test_failed_trials_are_retried(capsctl: Any, api: Any, file: str) -> None:
    search = submitted(capsctl, file)
    result = capsctl("retry-failed", search)
    assert (result.exit_code, "is QUEUED" in result.stderr) == (1, True)
    ended(api, search)
    assert capsctl("retry-failed", search).stdout == f"search {search}: waiting\n"
    assert f"search {search}: cancelling" in capsctl("cancel", search).stdout


def test_the_best_is_promoted(capsctl: Any, api: Any, file: str) -> None:
    search = submitted(capsctl, file)
    assert capsctl("promote", search).exit_code == 1
    ended(api, search)
    result = capsctl("promote", search, "--set", "epochs=30", "--set", "model.decoder=null")
    assert result.exit_code == 0, result.output
    job = result.stdout.split()[1]
    spec = json.loads(capsctl("show", job, "-o", "json").stdout)["spec"]
    assert (spec["epochs"], spec["model"]["decoder"]) == (30, None)
    assert spec["optimizer"]["learning_rate"] == RATES[1]
    other = capsctl(
        "promote", search, "--configuration", "0", "--name", "second", "--priority", "5", "-o",
        "json",
    )  # fmt: skip
    told = json.loads(other.stdout)
    assert (told["name"], told["priority"]) == ("second", 5)
    assert told["spec"]["optimizer"]["learning_rate"] == RATES[0]
    bad = capsctl("promote", search, "--set", "epoch=30")
    assert bad.exit_code == 2
    assert "/set/epoch" in bad.stderr
    assert capsctl("promote", search, "--set", "epochs=1", "--set", "epochs=2").exit_code == 2


def test_the_schema_of_a_search_is_printed(capsctl: Any) -> None:
    assert json.loads(capsctl("schema", "search").stdout)["title"] == "SearchSpec"
    assert capsctl("schema", "search", "--preset", "demo").exit_code == 2


def test_values_are_named_by_the_ends_of_their_paths() -> None:
    assert values({"model.routing.iterations": 3, "loss.m_minus": 0.123456}) == (
        "iterations=3, m_minus=0.1235"
    )
    assert values({"model.type": "cnn", "loss.type": "margin"}) == (
        "model.type=cnn, loss.type=margin"
    )
