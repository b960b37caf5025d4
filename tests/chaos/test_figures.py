"""Which times count, by made-up books: what is slow must not be left out."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chaos.figures import HEAD, ONE, SERVING, SEVERAL, measure
from chaos.kills import Hit, Kill, Kind
from workers.attempt import AttemptFolder, Progress

JOB = "one"


def struck(at: float, attempt: int, kind: Kind = "worker", workers: int = 1) -> Kill:
    """A kill that hits an attempt of our job."""
    hit = Hit(JOB, attempt, workers, training=True, saved=True)
    return Kill(kind, at, [1], [hit])


def told(at: float, type: str, attempt: int, **data: Any) -> SimpleNamespace:
    """An event of our job."""
    return SimpleNamespace(at=at, type=type, attempt=attempt, data=json.dumps(data))


def trains(storage: Path, attempt: int, at: float | None) -> None:
    """An attempt has done its first step then, or was lost before it."""
    progress = Progress(phase="training", first_step_at=at)
    AttemptFolder(storage, JOB, attempt).write_progress(progress)


EVENTS = [
    told(90.0, "started", 1),
    told(101.0, "requeued", 1, delay_s=0.0),
    told(102.0, "started", 2),
]


def test_the_next_attempt_trains(tmp_path: Path) -> None:
    trains(tmp_path, 2, 106.0)
    times = measure([struck(100.0, 1)], {JOB: EVENTS}, tmp_path)
    assert times.seconds[ONE] == [6.0]
    assert times.left_out == 0


@pytest.mark.parametrize(
    ("kind", "workers", "what"), [("together", 2, SEVERAL), ("head", 1, HEAD), ("gcs", 2, HEAD)]
)
def test_each_kind_has_a_row(tmp_path: Path, kind: Kind, workers: int, what: str) -> None:
    trains(tmp_path, 2, 106.0)
    times = measure([struck(100.0, 1, kind, workers)], {JOB: EVENTS}, tmp_path)
    assert times.seconds[what] == [6.0]


def test_an_attempt_that_was_lost_by_itself_is_part_of_the_time(tmp_path: Path) -> None:
    """With the pause that the queue makes after it: no kill of ours is why it waits."""
    events = [
        *EVENTS,
        told(110.0, "requeued", 2, delay_s=10.0),
        told(120.0, "started", 3),
        told(122.0, "requeued", 3, delay_s=20.0),
        told(142.0, "started", 4),
    ]
    trains(tmp_path, 2, None)
    trains(tmp_path, 4, 150.0)  # the third has told nothing at all
    times = measure([struck(100.0, 1)], {JOB: events}, tmp_path)
    assert times.seconds[ONE] == [50.0]
    assert times.left_out == 0


def test_who_is_killed_again_before_it_trains_is_left_out(tmp_path: Path) -> None:
    """The second kill is not: nothing disturbed its mending."""
    events = [*EVENTS, told(105.0, "requeued", 2, delay_s=0.0), told(106.0, "started", 3)]
    trains(tmp_path, 2, None)
    trains(tmp_path, 3, 112.0)
    times = measure([struck(100.0, 1), struck(104.0, 2)], {JOB: events}, tmp_path)
    assert times.seconds[ONE] == [8.0]
    assert times.left_out == 1


@pytest.mark.parametrize("kind", ["control plane", "head", "gcs", "up"])
def test_whose_mending_another_kill_disturbs_is_left_out(tmp_path: Path, kind: Kind) -> None:
    trains(tmp_path, 2, 106.0)
    kills = [struck(100.0, 1), Kill(kind, 103.0, [2], serving_again_s=1.5)]
    times = measure(kills, {JOB: EVENTS}, tmp_path)
    assert times.seconds[ONE] == []
    assert times.left_out == 1
    assert times.seconds[SERVING] == ([1.5] if kind == "control plane" else [])


def test_another_jobs_kill_disturbs_nothing(tmp_path: Path) -> None:
    trains(tmp_path, 2, 106.0)
    other = Kill("worker", 103.0, [2], [Hit("other", 1, 1, training=False, saved=False)])
    times = measure([struck(100.0, 1), other], {JOB: EVENTS}, tmp_path)
    assert times.seconds[ONE] == [6.0]


@pytest.mark.parametrize(
    "event",
    [
        told(103.0, "pause-requested", 2),
        told(101.0, "requeued", 1, delay_s=10.0),  # it had been killed for nothing before
    ],
)
def test_who_waits_on_purpose_is_left_out(tmp_path: Path, event: SimpleNamespace) -> None:
    trains(tmp_path, 2, 106.0)
    times = measure([struck(100.0, 1)], {JOB: [*EVENTS, event]}, tmp_path)
    assert times.seconds[ONE] == []
    assert times.left_out == 1


def test_who_never_trains_again_is_left_out(tmp_path: Path) -> None:
    """All was trained, or it was given up: that is for the verdict."""
    trains(tmp_path, 2, None)
    times = measure([struck(100.0, 1)], {JOB: EVENTS}, tmp_path)
    assert times.left_out == 1
