"""The queue's stopwatch: what it sends is answered, and what it tells is what was measured."""

import json
from pathlib import Path

import pytest

from benchmarks import queue
from benchmarks.http_load import Order, request
from benchmarks.queue_report import Line, Report
from service.queue.store import JobFilter, Store
from workers.specs import TrainSpec


def line(*milliseconds: float, goal_s: float | None = None) -> Line:
    return Line("sqlite", "claim", 1, [m / 1000 for m in milliseconds], goal_s, seconds=2.0)


def test_percentiles_are_those_that_so_many_did_not_exceed() -> None:
    found = line(*range(100, 0, -1))
    assert [found.percentile(share) for share in (50, 99, 99.9, 100)] == [50, 99, 100, 100]
    assert found.rate == 50
    assert line(7).percentile(50) == 7


def test_requests_are_whole() -> None:
    order = Order("http://127.0.0.1:8000", ["/a", "/b"], 1, 9, bodies=['{"a":1}'], keys="k")
    head, _, body = request(order, 3).partition(b"\r\n\r\n")
    assert body == b'{"a":1}'
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /b HTTP/1.1"
    assert {"Host: 127.0.0.1:8000", "Content-Length: 7", "Idempotency-Key: k-3"} <= set(lines)
    assert request(Order("http://h:1", ["/a"], 1, 1), 0) == b"GET /a HTTP/1.1\r\nHost: h:1\r\n\r\n"


def test_what_is_submitted_is_what_lies_in_the_queue() -> None:
    sent = TrainSpec.model_validate_json(queue.submission(20))
    assert sent == queue.specification(20)
    assert sent.priority == 1


def test_the_queue_is_filled_with_real_jobs(store: Store) -> None:
    ids = queue.fill(store, 250)
    assert ids == sorted(ids)
    jobs = store.list(JobFilter(labels={"team": "team-3"}), limit=200).jobs
    assert len(jobs) == 25
    assert store.events(ids[7])[0].type == "submitted"
    assert len(store.positions(ids)) == 250
    found = {name: line for name, *line in queue.claims(store, 4)}
    assert all(len(line[1]) == 4 for line in found.values())
    assert len(store.running()) == 4
    queue.settle(store)
    assert store.running() == []


@pytest.mark.long
def test_a_run_writes_a_table_a_plot_and_every_figure(tmp_path: Path, capsys) -> None:
    output = tmp_path / "here.json"
    options = ["--databases", "sqlite", "--jobs", "300", "--claims", "3", "--lists", "2"]
    queue.main([*options, "--submits", "120", "--output", str(output)])
    found = json.loads(output.read_text())
    counts = {each["name"]: each["count"] for each in found["lines"]}
    assert counts["claim: the look and the commit"] == 3
    assert counts["submit, again when answered"] == 120
    assert all(0 < each["p50_ms"] <= each["p99_ms"] for each in found["lines"])
    assert found["memory_mib"]["sqlite"]["end"] > 20
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert output.with_suffix(".md").read_text() in capsys.readouterr().out


def test_the_levels_of_memory_are_those_of_the_marks() -> None:
    report = Report({}, {})
    report.memory["sqlite"] = [(0.0, 50.0), (1.0, 60.0), (2.0, 70.0), (3.0, 71.0)]
    report.marks["sqlite"] = {"lists": 1.5, "submits": 2.5, "end": 9.0}
    assert report.levels("sqlite") == {"lists": 60.0, "submits": 70.0, "end": 71.0}
