"""The trials of a search as they stand in files."""

import json
from pathlib import Path

import pytest

from support.search_books import METRIC, report, write_reports
from workers.attempt import AttemptFolder, Reason
from workers.trials import (
    Trial,
    TrialState,
    TrialTable,
    TrialWriter,
    all_reports,
    read_reports,
    read_table,
    read_trials,
    reports_file,
    standings,
    trial_folder,
    trials_file,
)


def a_trial(number: int, score: float | None = None, seeds: int = 1, **fields: object) -> Trial:
    given = {"values": {"epochs": number}, "state": TrialState.SUCCEEDED, **fields}
    configuration, seed = divmod(number, seeds)
    return Trial.model_validate(
        {"number": number, "configuration": configuration, "seed": seed, "score": score, **given}
    )


def written(folder: AttemptFolder, known: TrialTable | None = None) -> TrialWriter:
    return TrialWriter(trials_file(folder), known or TrialTable())


@pytest.fixture
def folder(tmp_path: Path) -> AttemptFolder:
    return AttemptFolder(tmp_path, "s1", 1)


def test_the_last_line_of_a_trial_counts(folder: AttemptFolder) -> None:
    writer = written(folder)
    writer.trial(a_trial(0, state="WAITING"))
    writer.report(report(0, 1, 0.5))
    writer.trial(a_trial(0, 0.5, state="RUNNING", epoch=1))
    table = read_trials(folder)
    assert table == writer.table
    assert table.trials == {0: a_trial(0, 0.5, state="RUNNING", epoch=1)}
    assert table.reports == {0: [report(0, 1, 0.5)]}


@pytest.mark.parametrize("value", [None, [1, None], {"type": None}, 0.1, True, "words", 2**40])
def test_values_come_back_as_they_were_chosen(folder: AttemptFolder, value: object) -> None:
    written(folder).trial(a_trial(0, values={"a": value}, metrics={METRIC: None}))
    found = read_trials(folder).trials[0]
    assert found.values == {"a": value}
    assert type(found.values["a"]) is type(value)
    assert found.metrics == {METRIC: None}


def test_what_has_become_none_is_none_when_read(folder: AttemptFolder) -> None:
    writer = written(folder)
    writer.trial(a_trial(0, 0.5, reason=Reason.DIVERGED, checkpoint="x", ended_at=3.0))
    writer.trial(a_trial(0))
    assert read_trials(folder).trials[0] == a_trial(0)


def test_a_new_attempt_begins_with_what_was_known(folder: AttemptFolder) -> None:
    writer = written(folder)
    for number in (1, 0):
        writer.trial(a_trial(number, 0.1))
        writer.report(report(number, 1, 0.1))
        writer.report(report(number, 2, 0.2))
        writer.trial(a_trial(number, 0.2))
    second = AttemptFolder(folder.storage, "s1", 2)
    assert read_trials(second) == writer.table, "before it has told anything"
    again = written(second, read_trials(second))
    assert again.table == writer.table
    assert read_trials(second) == writer.table
    lines = trials_file(second).read_text().splitlines()
    assert len(lines) == 6, "each trial once, each report once"


@pytest.mark.parametrize("torn", ['{"trial": {"numb', "\xff", "[]", '{"trial": 3}', "nonsense"])
def test_a_torn_line_is_left_out(folder: AttemptFolder, torn: str) -> None:
    writer = written(folder)
    writer.trial(a_trial(0, 0.5))
    with trials_file(folder).open("a", encoding="latin-1") as file:
        file.write(torn)
    assert read_trials(folder) == writer.table
    second = AttemptFolder(folder.storage, "s1", 2)
    written(second, read_trials(second)).trial(a_trial(1, 0.6))
    assert set(read_trials(second).trials) == {0, 1}, "what follows it is whole"


def test_a_field_of_a_later_release_is_ignored(tmp_path: Path) -> None:
    line = {"trial": {**a_trial(0).model_dump(mode="json"), "colour": "blue"}, "mood": "good"}
    path = tmp_path / "trials.jsonl"
    path.write_text(json.dumps(line))
    assert read_table(path).trials == {0: a_trial(0)}


def test_a_report_told_again_takes_the_place_of_what_followed(folder: AttemptFolder) -> None:
    writer = written(folder)
    for epoch, score in [(1, 0.1), (2, 0.2), (3, 0.3), (2, 0.25)]:
        writer.report(report(0, epoch, score))
    assert read_trials(folder).reports[0] == [report(0, 1, 0.1), report(0, 2, 0.25)]


def test_nothing_is_known_where_nothing_was_written(folder: AttemptFolder) -> None:
    assert read_trials(folder) == TrialTable()
    assert all_reports(trial_folder(folder.storage, "s1", 0, 1)) == []


def test_a_trials_reports_of_all_attempts_stand_together(tmp_path: Path) -> None:
    write_reports(tmp_path, 0, 1, report(0, 1, 0.1), report(0, 2, 0.2))
    write_reports(tmp_path, 0, 3, report(0, 3, 0.3))
    third = trial_folder(tmp_path, "s1", 0, 3)
    assert [each.epoch for each in all_reports(third)] == [1, 2, 3]
    assert [each.epoch for each in read_reports(third)] == [3]
    assert [each.epoch for each in all_reports(trial_folder(tmp_path, "s1", 0, 2))] == [1, 2]


def test_a_report_torn_by_a_kill_is_left_out_and_the_next_is_read(tmp_path: Path) -> None:
    write_reports(tmp_path, 0, 1, report(0, 1, 0.1))
    folder = trial_folder(tmp_path, "s1", 0, 1)
    with reports_file(folder).open("a") as file:
        file.write("\n" + report(0, 2, 0.2).model_dump_json()[:40])
    write_reports(tmp_path, 0, 1, report(0, 2, 0.2))
    assert read_reports(folder) == [report(0, 1, 0.1), report(0, 2, 0.2)]


# --------------------------------------------------------------------------------- standings


def test_a_configurations_score_is_the_mean_over_its_seeds() -> None:
    trials = [a_trial(n, score, seeds=2) for n, score in enumerate([0.5, 0.7, 0.9, 0.8])]
    first, second = standings(reversed(trials), "max")
    assert (first.configuration, second.configuration) == (1, 0)
    assert first.mean == pytest.approx(0.85)
    assert first.deviation == pytest.approx(0.1 / 2**0.5)
    best = first.best("max")
    assert best is not None
    assert best.number == 2
    assert [s.configuration for s in standings(trials, "min")] == [0, 1]


def test_a_failed_trial_does_not_count_and_a_pruned_one_does() -> None:
    trials = [
        a_trial(0, 0.9, seeds=2, state="FAILED"),
        a_trial(1, 0.5, seeds=2, state="PRUNED"),
        a_trial(2, 0.99, seeds=2, state="FAILED"),
        a_trial(3, None, seeds=2, state="RUNNING"),
    ]
    first, last = standings(trials, "max")
    assert (first.configuration, first.mean, first.deviation) == (0, 0.5, None)
    assert (last.configuration, last.mean, last.best("max")) == (1, None, None)


def test_a_score_of_zero_is_a_score() -> None:
    """A loss of 0 is the best there is."""
    found = standings([a_trial(0, 0.3), a_trial(1, 0.0), a_trial(2)], "min")
    assert [s.configuration for s in found] == [1, 0, 2]


def test_equal_scores_stand_by_age() -> None:
    found = standings([a_trial(n, 0.5) for n in (2, 0, 1)], "max")
    assert [s.configuration for s in found] == [0, 1, 2]
