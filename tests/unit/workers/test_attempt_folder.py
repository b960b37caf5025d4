"""The attempt's folder: the channel between control plane and worker."""

import math
import os
import threading
from pathlib import Path

import pytest
from pydantic import ValidationError

from support.search_books import make_attempt, make_spec
from workers.attempt import (
    HINTS,
    Attempt,
    AttemptFolder,
    Progress,
    Reason,
    Result,
    TrialCounts,
    write_atomic,
)
from workers.specs import PRESETS
from workers.trials import trial_folder


@pytest.fixture
def folder(tmp_path: Path) -> AttemptFolder:
    return AttemptFolder(tmp_path, "j1", 2)


def attempt(number: int = 2) -> Attempt:
    return Attempt(
        package_version="1",
        job="j1",
        attempt=number,
        spec=PRESETS["demo"],
        tracking_uri="http://mlflow",
        run_id="r1",
    )


def test_documents_come_back_as_they_were_written(folder: AttemptFolder) -> None:
    assert (folder.read_progress(), folder.read_result()) == (None, None)
    assert (folder.heartbeat(), folder.result_written_at()) == (None, None)
    progress = Progress(phase="training", epoch=1, step=7, train_loss=0.5)
    result = Result(outcome="succeeded", reason=Reason.COMPLETED, metrics={"a": 1.0})
    folder.write_attempt(attempt())
    folder.write_progress(progress)
    folder.write_result(result)
    assert folder.read_attempt() == attempt()
    assert folder.read_progress() == progress
    assert folder.read_result() == result
    assert folder.heartbeat() is not None
    assert folder.result_written_at() is not None


def test_numbers_that_are_not_finite_can_be_read_again(folder: AttemptFolder) -> None:
    folder.write_progress(Progress(train_loss=math.nan, eta_s=math.inf))
    progress = folder.read_progress()
    assert progress is not None
    assert (progress.train_loss, progress.eta_s) == (None, None)
    metrics = {"test/accuracy": 0.9, "test/total_loss": math.nan}
    folder.write_result(Result(outcome="succeeded", reason=Reason.COMPLETED, metrics=metrics))
    result = folder.read_result()
    assert result is not None
    assert result.metrics["test/accuracy"] == 0.9
    assert math.isnan(result.metrics["test/total_loss"])


def test_a_document_of_a_later_release_is_read(folder: AttemptFolder) -> None:
    text = '{"schema_version": 1, "outcome": "paused", "reason": "paused", "colour": "blue"}'
    write_atomic(folder.path / "result.json", text.encode())
    assert folder.read_result() == Result(outcome="paused", reason=Reason.PAUSED)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b'{"outcome": "won"}'])
def test_an_unreadable_document_is_refused(folder: AttemptFolder, content: bytes) -> None:
    write_atomic(folder.path / "attempt.json", content)
    write_atomic(folder.path / "result.json", content)
    for read in (folder.read_attempt, folder.read_result):
        with pytest.raises(ValidationError):
            read()


def test_a_missing_attempt_is_refused(folder: AttemptFolder) -> None:
    with pytest.raises(FileNotFoundError):
        folder.read_attempt()


@pytest.mark.parametrize(
    ("content", "kind"),
    [(None, None), (b"pause", "pause"), (b"cancel", "cancel"), (b"", "cancel")],
)
def test_the_stop_flag(folder: AttemptFolder, content: bytes | None, kind: str | None) -> None:
    if content is not None:
        write_atomic(folder.path / "stop", content)
    assert folder.stop_requested() == kind


def test_a_later_stop_flag_replaces_the_earlier(folder: AttemptFolder) -> None:
    folder.request_stop("pause")
    folder.request_stop("cancel")
    assert folder.stop_requested() == "cancel"


def test_attempts_know_those_before_and_after(tmp_path: Path) -> None:
    folders = [AttemptFolder(tmp_path, "j1", number) for number in (1, 2, 10)]
    assert folders[0].earlier() == []
    assert not folders[0].superseded()
    for folder in folders:
        folder.write_progress(Progress())
    for name in ("notes", "²", "-1"):
        (tmp_path / "jobs" / "j1" / name).mkdir()
    assert [f.path.name for f in folders[2].earlier()] == ["2", "1"]
    assert [f.superseded() for f in folders] == [True, True, False]


def test_trials_of_a_search_have_attempts_of_their_own(tmp_path: Path) -> None:
    search = AttemptFolder(tmp_path, "s1", 2)
    search.write_progress(Progress())
    trials = [trial_folder(tmp_path, "s1", 7, number) for number in (1, 2, 3)]
    for folder in trials[:2]:
        folder.write_progress(Progress())
    assert trials[0].relative(trials[0].path) == "jobs/s1/trials/00007/1"
    assert [each.path for each in trials[2].earlier()] == [trials[1].path, trials[0].path]
    assert [each.superseded() for each in trials] == [True, False, False]
    assert search.earlier() == []
    assert not search.superseded(), "the folder of its trials is no attempt"


def test_a_search_is_read_as_one(tmp_path: Path) -> None:
    spec = make_spec(seeds=2)
    attempt_of_search = make_attempt(spec, 3, retry_through=2)
    folder = AttemptFolder(tmp_path, "s1", 3)
    folder.write_attempt(attempt_of_search)
    assert folder.read_attempt() == attempt_of_search


def test_workers_of_a_driver_leave_outcomes_and_are_asked_to_leave(folder: AttemptFolder) -> None:
    lost = Result(outcome="failed", reason=Reason.WORKER_LOST, evidence="worker 1: gone")
    folder.write_outcome(1, lost)
    assert (folder.read_outcome(0), folder.read_outcome(1)) == (None, lost)
    assert not folder.leave_requested()
    folder.request_leave()
    assert folder.leave_requested()
    assert folder.stop_requested() is None


def test_trials_are_counted_as_ended_when_they_run_no_more() -> None:
    counts = TrialCounts(
        total=9, waiting=1, running=2, succeeded=3, pruned=1, failed=1, cancelled=1
    )
    assert counts.ended == 6


def test_paths_are_told_below_the_storage(folder: AttemptFolder) -> None:
    path = folder.checkpoints / "best.pt"
    assert folder.relative(path) == "jobs/j1/2/checkpoints/best.pt"


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_atomic(path, b"a" * 50_000)
    ended = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not ended.is_set():
            seen.add(path.read_bytes())

    def write(letter: bytes) -> None:
        for _ in range(20):
            write_atomic(path, letter * 50_000)

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b")]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    ended.set()
    reader.join()
    assert seen <= {b"a" * 50_000, b"b" * 50_000}
    assert os.listdir(path.parent) == ["file"]


def test_a_write_that_fails_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_hints_are_for_reasons_that_a_user_can_mend() -> None:
    assert set(Reason) - HINTS.keys() == {Reason.COMPLETED, Reason.CANCELLED, Reason.PAUSED}
