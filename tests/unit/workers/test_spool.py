"""Metric points on disk: each is there once, also after a resume."""

import json
from pathlib import Path

from workers.spool import Point, Spool, points_from


def lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line)["values"] for line in path.read_text().splitlines()]


def test_points_come_back_in_order_from_an_offset(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "1" / "metrics.jsonl", [])
    spool.append({"loss": 0.5, "accuracy": 0.9}, 1)
    points, offset = spool.points_from(0)
    assert [(p.name, p.value, p.step) for p in points] == [("loss", 0.5, 1), ("accuracy", 0.9, 1)]
    assert spool.points_from(offset) == ([], offset)
    spool.append({"loss": 0.4}, 2)
    points, _ = spool.points_from(offset)
    assert [(p.name, p.value, p.step) for p in points] == [("loss", 0.4, 2)]


def test_a_resumed_attempt_leaves_out_what_earlier_ones_hold(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.jsonl" for n in (1, 2, 3)]
    Spool(paths[0], []).append({"loss": 1.0}, 1)
    Spool(paths[1], [paths[0]]).append({"loss": 2.0}, 2)
    third = Spool(paths[2], [paths[1], paths[0]])
    for step in (1, 2, 3):
        third.append({"loss": 9.0, "new": 9.0}, step)
    assert lines(paths[2]) == [{"new": 9.0}, {"new": 9.0}, {"loss": 9.0, "new": 9.0}]
    assert [(p.value, p.step) for p in third.earlier_points()] == [(1.0, 1), (2.0, 2)]


def test_the_times_of_earlier_points_stay(tmp_path: Path) -> None:
    path = tmp_path / "1.jsonl"
    Spool(path, []).append({"loss": 1.0}, 1)
    time_ms = json.loads(path.read_text())["t"]
    again = list(Spool(tmp_path / "2.jsonl", [path]).earlier_points())
    assert again == [Point("loss", 1.0, time_ms, 1)]


def test_a_torn_or_foreign_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "1.jsonl"
    Spool(path, []).append({"loss": 1.0}, 1)
    with path.open("a") as file:
        file.write('[]\n"text"\n\n{"t": 1, "step": 2, "values": {"loss": 2.0}}\n{"t": 5, "val')
    found = Spool(tmp_path / "2.jsonl", [path, tmp_path / "absent.jsonl"]).earlier_points()
    assert [(p.value, p.step) for p in found] == [(1.0, 1), (2.0, 2)]


def test_a_line_that_is_being_written_is_read_later(tmp_path: Path) -> None:
    path = tmp_path / "1.jsonl"
    spool = Spool(path, [])
    spool.append({"loss": 1.0}, 1)
    _, offset = spool.points_from(0)
    with path.open("a") as file:
        file.write('{"t": 1, "step": 2, ')
        file.flush()
        assert spool.points_from(offset) == ([], offset)
        file.write('"values": {"loss": 2.0}}\n')
    assert [p.value for p in spool.points_from(offset)[0]] == [2.0]


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
