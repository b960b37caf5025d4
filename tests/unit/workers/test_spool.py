"""Metric points on disk: each is there once, also after a resume."""

import json
import math
import time
from pathlib import Path

import pytest

from workers.spool import Outgoing, Point, Spool, points_from, ship_all


def read(path: Path) -> list[Point]:
    return points_from(path, 0)[0]


class Sink:
    """Takes batches; gives up at one, or is cut off by the death of its process."""

    def __init__(self, give_up_at: int = 0, die_at: int = 0) -> None:
        self.batches: list[list[Point]] = []
        self.give_up_at = give_up_at
        self.die_at = die_at

    def __call__(self, points: list[Point]) -> bool:
        number = len(self.batches) + 1
        if number == self.give_up_at:
            return False
        self.batches.append(points)
        if number == self.die_at:
            raise KeyboardInterrupt
        return True

    @property
    def steps(self) -> list[int]:
        return [point.step for batch in self.batches for point in batch]


def a_spool(path: Path, steps: int, names: int = 1) -> Path:
    spool = Spool(path, [])
    for step in range(steps):
        spool.append({f"metric-{n}": 1.0 for n in range(names)}, step)
    spool.close()
    return path


def lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line)["values"] for line in path.read_text().splitlines()]


def test_points_come_back_in_order_from_an_offset(tmp_path: Path) -> None:
    path = tmp_path / "1" / "metrics.jsonl"
    spool = Spool(path, [])
    spool.append({"loss": 0.5, "accuracy": 0.9}, 1)
    points, offset = points_from(path, 0)
    assert [(p.name, p.value, p.step) for p in points] == [("loss", 0.5, 1), ("accuracy", 0.9, 1)]
    assert points_from(path, offset) == ([], offset)
    spool.append({"loss": 0.4}, 2)
    points, _ = points_from(path, offset)
    assert [(p.name, p.value, p.step) for p in points] == [("loss", 0.4, 2)]


def test_a_resumed_attempt_leaves_out_what_earlier_ones_hold(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.jsonl" for n in (1, 2, 3)]
    Spool(paths[0], []).append({"loss": 1.0}, 1)
    Spool(paths[1], [paths[0]]).append({"loss": 2.0}, 2)
    third = Spool(paths[2], [paths[1], paths[0]])
    for step in (1, 2, 3):
        third.append({"loss": 9.0, "new": 9.0}, step)
    assert lines(paths[2]) == [{"new": 9.0}, {"new": 9.0}, {"loss": 9.0, "new": 9.0}]
    assert third.earlier == [paths[1], paths[0]]
    assert Spool(paths[2], []).last_step == 3


def test_the_times_of_earlier_points_stay(tmp_path: Path) -> None:
    path = tmp_path / "1.jsonl"
    Spool(path, []).append({"loss": 1.0}, 1)
    time_ms = json.loads(path.read_text())["t"]
    assert read(path) == [Point("loss", 1.0, time_ms, 1)]
    assert abs(time_ms / 1000 - time.time()) < 60


def test_a_torn_or_foreign_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "1.jsonl"
    Spool(path, []).append({"loss": 1.0}, 1)
    with path.open("a") as file:
        file.write('[]\n"text"\n\n{"t": 1, "step": 2, "values": {"loss": 2.0}}\n{"t": 5, "val')
    assert [(p.value, p.step) for p in read(path)] == [(1.0, 1), (2.0, 2)]
    again = Spool(tmp_path / "2.jsonl", [path, tmp_path / "absent.jsonl"])
    for step in (1, 2, 3):
        again.append({"loss": 0.0}, step)
    assert [p.step for p in read(again.path)] == [3]


def test_a_line_that_is_being_written_is_read_later(tmp_path: Path) -> None:
    path = tmp_path / "1.jsonl"
    spool = Spool(path, [])
    spool.append({"loss": 1.0}, 1)
    _, offset = points_from(path, 0)
    with path.open("a") as file:
        file.write('{"t": 1, "step": 2, ')
        file.flush()
        assert points_from(path, offset) == ([], offset)
        file.write('"values": {"loss": 2.0}}\n')
    assert [p.value for p in points_from(path, offset)[0]] == [2.0]


def test_a_training_that_goes_on_in_its_attempt_adds_each_point_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = Spool(path, [])
    for step in (1, 2):
        first.append({"loss": 1.0 / step}, step)
    again = Spool(path, [])
    for step in (1, 2, 3):
        again.append({"loss": 1.0 / step}, step)
    again.close()
    points, _ = points_from(path, 0)
    assert [(p.value, p.step) for p in points] == [(1.0, 1), (0.5, 2), (1 / 3, 3)]


def test_a_line_torn_by_a_kill_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    Spool(path, []).append({"loss": 1.0}, 1)
    with path.open("a") as file:
        file.write('{"t": 1, "step": 2, "val')
    again = Spool(path, [])
    again.append({"loss": 0.5}, 2)
    points, offset = points_from(path, 0)
    assert [(p.value, p.step) for p in points] == [(1.0, 1), (0.5, 2)]
    assert offset == path.stat().st_size


def test_a_spool_that_is_not_there_yet_has_no_points(tmp_path: Path) -> None:
    assert points_from(tmp_path / "absent.jsonl", 7) == ([], 7)


# ----------------------------------------------------------------------------------- sending


def test_points_go_out_in_batches_that_mlflow_takes(tmp_path: Path) -> None:
    path, sink = a_spool(tmp_path / "m.jsonl", 700, names=7), Sink()
    assert Outgoing(path, "r").ship(sink)
    assert [len(batch) for batch in sink.batches] == [994] * 4 + [924]
    assert sink.steps == [step for step in range(700) for _ in range(7)]


@pytest.mark.parametrize("at", [1, 2, 3])
def test_the_next_sender_goes_on_where_one_gave_up(tmp_path: Path, at: int) -> None:
    path, first, second = a_spool(tmp_path / "m.jsonl", 2500), Sink(give_up_at=at), Sink()
    assert not Outgoing(path, "r").ship(first)
    assert Outgoing(path, "r").ship(second)
    assert first.steps + second.steps == [*range(2500)]


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_sender_that_dies_repeats_one_batch_at_most(tmp_path: Path, at: int) -> None:
    path, first, second = a_spool(tmp_path / "m.jsonl", 2500), Sink(die_at=at), Sink()
    with pytest.raises(KeyboardInterrupt):
        Outgoing(path, "r").ship(first)
    assert Outgoing(path, "r").ship(second)
    assert first.steps[: 1000 * (at - 1)] + second.steps == [*range(2500)]


def test_a_sender_stops_when_its_time_is_over(tmp_path: Path) -> None:
    path, sink = a_spool(tmp_path / "m.jsonl", 10), Sink()
    outgoing = Outgoing(path, "r")
    assert not outgoing.ship(sink, until=-math.inf)
    assert sink.batches == []
    assert outgoing.ship(sink)
    assert outgoing.ship(sink, until=-math.inf), "nothing is left: no time is needed"
    assert sink.steps == [*range(10)]


def test_what_another_run_has_counts_for_nothing(tmp_path: Path) -> None:
    path, sinks = a_spool(tmp_path / "m.jsonl", 3), [Sink(), Sink(), Sink()]
    for run, sink in zip(("r", "other", "other"), sinks, strict=True):
        assert Outgoing(path, run).ship(sink)
    assert [sink.steps for sink in sinks] == [[0, 1, 2], [0, 1, 2], []]


@pytest.mark.parametrize(
    "note", ["", "{", "[]", '{"run": "r"}', '{"run": "r", "offset": 10000}', '{"offset": "x"}']
)
def test_a_note_that_is_damaged_or_foreign_costs_no_point(tmp_path: Path, note: str) -> None:
    path, sink = a_spool(tmp_path / "m.jsonl", 3), Sink()
    path.with_suffix(".sent").write_text(note)
    assert Outgoing(path, "r").ship(sink)
    assert sink.steps == [0, 1, 2]


def test_lines_without_points_hold_nobody_up(tmp_path: Path) -> None:
    path, sink = a_spool(tmp_path / "m.jsonl", 1), Sink()
    with path.open("a") as file:
        file.write('\n{"t": 1, "st\n\n{"t": 1, "step": 1, "values": {"metric-0": 2.0}}\n{"t": 1')
    outgoing = Outgoing(path, "r")
    assert outgoing.ship(sink)
    assert sink.steps == [0, 1]


def test_spools_go_out_in_their_order(tmp_path: Path) -> None:
    paths = [a_spool(tmp_path / f"{n}.jsonl", n) for n in (1, 2, 3)]
    absent, sink = tmp_path / "absent.jsonl", Sink(give_up_at=3)
    assert not ship_all([Outgoing(path, "r") for path in [absent, *paths]], sink)
    assert sink.steps == [0, 0, 1]
    assert ship_all([Outgoing(path, "r") for path in [absent, *paths]], sink) is False
    sink.give_up_at = 0
    assert ship_all([Outgoing(path, "r") for path in [absent, *paths]], sink)
    assert sink.steps == [0, 0, 1, 0, 1, 2]
