"""The attempt's folder: the channel between control plane and worker."""

import json
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
    ProcessRecord,
    Progress,
    Reason,
    Result,
    Resumed,
    TrialCounts,
    VersionMismatchError,
    installed_release,
    reason_of_ray,
    write_atomic,
)
from workers.specs import PRESETS
from workers.trials import trial_folder


@pytest.fixture
def folder(tmp_path: Path) -> AttemptFolder:
    return AttemptFolder(tmp_path, "j1", 2)


def attempt(number: int = 2, release: str = "1") -> Attempt:
    return Attempt(
        package_version=release,
        job="j1",
        attempt=number,
        spec=PRESETS["demo"],
        tracking_uri="http://mlflow",
        run_id="r1",
    )


def test_documents_come_back_as_they_were_written(folder: AttemptFolder) -> None:
    assert (folder.read_progress(), folder.read_result()) == (None, None)
    assert folder.heartbeat() is None
    progress = Progress(phase="training", epoch=1, step=7, train_loss=0.5)
    result = Result(outcome="succeeded", reason=Reason.COMPLETED, metrics={"a": 1.0})
    folder.write_attempt(attempt())
    folder.write_progress(progress)
    folder.write_result(result)
    assert folder.read_attempt() == attempt()
    assert folder.read_progress() == progress.model_copy(
        update={"package_version": installed_release()}
    )
    assert folder.read_result() == result
    assert folder.heartbeat() is not None


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


@pytest.mark.parametrize("name", ["attempt.json", "progress.json", "result.json"])
@pytest.mark.parametrize("version", [0, 2, 10**30])
def test_a_document_of_another_schema_version_is_refused_by_name(
    folder: AttemptFolder, name: str, version: int
) -> None:
    folder.write_attempt(attempt())
    folder.write_progress(Progress())
    folder.write_result(Result(outcome="paused", reason=Reason.PAUSED))
    file = folder.path / name
    changed = json.loads(file.read_text()) | {"schema_version": version, "outcome": "won"}
    file.write_text(json.dumps(changed))
    readers = {
        "attempt.json": folder.read_attempt,
        "progress.json": folder.read_progress,
        "result.json": folder.read_result,
    }
    for other, read in readers.items():
        if other != name:
            assert read() is not None
    message = rf"{name} has schema_version {version}, expected 1: install the same release"
    with pytest.raises(VersionMismatchError, match=message) as caught:
        readers[name]()
    assert isinstance(caught.value, ValueError)
    assert (caught.value.file, caught.value.found, caught.value.expected) == (file, version, 1)


def test_a_worker_does_what_its_own_release_asks_for(folder: AttemptFolder) -> None:
    folder.write_attempt(attempt(release=installed_release()))
    assert folder.accept_attempt() == attempt(release=installed_release())
    folder.write_attempt(attempt(release="0.0.7"))
    message = f"attempt.json has package_version 0.0.7, expected {installed_release()}"
    with pytest.raises(VersionMismatchError, match=message):
        folder.accept_attempt()
    assert folder.read_attempt() == attempt(release="0.0.7"), "the control plane reads it"


def test_a_worker_tells_its_release_and_where_it_began(folder: AttemptFolder) -> None:
    resumed = Resumed(attempt=1, epoch=2, step=30, skipped=["step-00000040.pt is damaged"])
    folder.write_progress(Progress(resumed=resumed))
    found = folder.read_progress()
    assert found is not None
    assert (found.resumed, found.package_version) == (resumed, installed_release())


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


def test_processes_are_written_down_and_stay_so(folder: AttemptFolder) -> None:
    assert folder.processes() == []
    records = [
        ProcessRecord(host="a", pid=7, created=1.25, role="driver"),
        ProcessRecord(host="a", pid=8, created=1.5, role="rank-0"),
        ProcessRecord(host="b", pid=7, created=1.75, role="rank-1"),
    ]
    for record in records:
        folder.register(record)
    assert folder.processes() == records
    later = ProcessRecord(host="a", pid=7, created=99.5, role="worker")
    folder.register(later)
    assert folder.processes() == [later, *records[1:]], "the same id, so the earlier one is gone"
    (folder.path / "processes" / ".a-9.json.0123").write_bytes(b"ha")
    assert len(folder.processes()) == 3, "a file that is just being written is none"


def test_a_damaged_record_proves_no_death(folder: AttemptFolder) -> None:
    folder.register(ProcessRecord(host="a", pid=7, created=1.25, role="driver"))
    (folder.path / "processes" / "a-7.json").write_bytes(b'{"host": "a"')
    with pytest.raises(ValueError, match="ProcessRecord"):
        folder.processes()


def test_the_kill_flag_is_the_attempts_own(folder: AttemptFolder) -> None:
    other = AttemptFolder(folder.storage, "j1", 3)
    assert not folder.kill_requested()
    folder.request_kill()
    assert (folder.kill_requested(), other.kill_requested()) == (True, False)
    assert folder.stop_requested() is None


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
    assert (trials[0].owner, search.owner) == ("s1/trials/00007", "s1")
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


NODE = (
    "The actor died because its node has died. Node Id: 0badcafe\n"
    "\tthe actor's node was terminated unexpectedly: health check failed"
)
CRASH = (
    "The actor died unexpectedly before finishing this task. The actor is dead because its worker "
    "process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Some common causes "
    "include: (1) the process was killed by the OOM killer due to high memory usage"
)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("1 worker(s) were killed due to the node running low on memory.", Reason.OUT_OF_MEMORY),
        (f"Job supervisor actor died: {NODE}", Reason.NODE_LOST),
        ("ClusterLostError: NodeDiedError: unreachable", Reason.NODE_LOST),
        ("The task's local raylet died. Check raylet.out", Reason.NODE_LOST),
        ("RpcError: failed to connect to all addresses", Reason.NODE_LOST),
        ("ConnectionError: Failed to connect to Ray cluster at 10.0.0.1:1", Reason.NODE_LOST),
        (CRASH, Reason.WORKER_LOST),
        ("Job entrypoint command failed with exit code -9. No logs available.", Reason.WORKER_LOST),
        ("", Reason.WORKER_LOST),
    ],
)
def test_rays_words_tell_memory_and_nodes_apart(message: str, reason: Reason) -> None:
    assert reason_of_ray(message) is reason
