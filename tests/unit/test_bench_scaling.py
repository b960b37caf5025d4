"""How a training scales: the arithmetic is a ring's, and a run tells what its workers did."""

import json
import math
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from benchmarks import scaling
from benchmarks.scaling_arithmetic import (
    BF16,
    CLUSTERS,
    LAYERS,
    SMALL_GROUPS,
    STEP_S,
    TODAY,
    Cluster,
    Exchange,
    backward_share,
    compute_seconds,
    efficiency,
    exchange_seconds,
    groups,
    markdown,
    ring_seconds,
    run_seconds,
    step_on,
)
from benchmarks.scaling_race import (
    BESIDE,
    ONE,
    SHARE,
    TWO,
    WIDE,
    Scaling,
    Timing,
    placed,
    run_scaling,
)
from benchmarks.scaling_report import ScalingReport
from capsmodel import CapsNet
from capsmodel.batch import Batch
from capsmodel.config import CapsNetConfig, DecoderConfig, MarginLossConfig
from capsmodel.distributed import Objective, averaged, gradient_bytes
from capsmodel.losses import build_loss

DOCUMENT = Path(__file__).parents[2] / "docs" / "scaling.md"
SMALL = CapsNetConfig(conv_channels=8, primary_types=2, decoder=DecoderConfig(hidden=(8, 8)))
ONE_NODE, _, SLOW = CLUSTERS


def sum_in_a_ring(values: np.ndarray) -> tuple[int, list[int]]:
    """Sum `[ranks, ranks, N]`, a part for each rank, in place; hops, and numbers sent by each."""
    ranks = len(values)
    sent = [0] * ranks
    for hop in range(2 * (ranks - 1)):
        messages = [values[rank, (rank - hop) % ranks].copy() for rank in range(ranks)]
        for rank, message in enumerate(messages):
            part = values[(rank + 1) % ranks, (rank - hop) % ranks]
            part[:] = part + message if hop < ranks - 1 else message
            sent[rank] += message.size
    return 2 * (ranks - 1), sent


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_the_formula_is_that_of_a_ring_that_sums(ranks: int) -> None:
    values = np.random.default_rng(0).integers(0, 100, (ranks, ranks, 5))
    expected = values.sum(axis=0)
    numbers = expected.size
    hops, sent = sum_in_a_ring(values)
    assert (values == expected).all()
    assert ring_seconds(ranks, numbers, bandwidth=7, hop_s=0.5) == pytest.approx(
        sent[0] / 7 + 0.5 * hops
    )
    assert len(set(sent)) == 1


def test_between_nodes_each_gpu_sums_only_its_own_part() -> None:
    cluster = Cluster("c", nodes=4, gpus_per_node=2, link=10, link_hop_s=0, network=1.25)
    # Within the node all 80 bytes at 8 a second, between nodes 40 of them, 60 sent, at 1 a second.
    assert exchange_seconds(cluster, 80) == pytest.approx(80 / 8 + 60 / 1)


def test_the_layers_are_the_papers() -> None:
    net = CapsNet()
    assert sum(layer.gradient_bytes for layer in LAYERS) == gradient_bytes(net) == 32_862_272
    flops = CapsNetConfig().forward_flops
    assert flops is not None
    assert sum(layer.forward_mflop for layer in LAYERS) == pytest.approx(flops / 1e6, rel=0.005)
    by_name = {layer.name: layer for layer in LAYERS}
    assert by_name["PrimaryCaps"].gradient_bytes == gradient_bytes(net.primary_caps)
    assert by_name["class capsules"].gradient_bytes == gradient_bytes(net.class_caps)
    assert by_name["Conv1"].gradient_bytes == gradient_bytes(net.conv)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_the_groups_are_those_in_which_pytorch_sends() -> None:
    seen: list[int] = []

    def note(_: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        seen.append(bucket.buffer().nbytes)
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    objective = Objective(CapsNet(), build_loss(MarginLossConfig()), "fp32")
    batch = Batch(torch.rand(2, 1, 28, 28), torch.tensor([3, 4]))
    parallel: Any = averaged(objective, batch)
    parallel.register_comm_hook(None, note)
    parallel(batch)[0].total.backward()
    # Within a layer PyTorch also parts weight and bias.
    assert seen == pytest.approx([bytes_ for bytes_, _ in groups(TODAY)], rel=0.02)


def test_a_group_is_whole_when_its_last_layer_is() -> None:
    together = list(groups(Exchange(1 << 40, 1 << 40)))
    assert together == [(32_862_272, 1.0)]
    each = list(groups(Exchange(1, 1)))
    assert [bytes_ for bytes_, _ in each] == [layer.gradient_bytes for layer in LAYERS]
    ready = [ready for _, ready in each]
    assert ready == sorted(ready)
    assert ready[3] == pytest.approx(1 - 16.6 / (2 * (406 - 16.6) + 16.6), abs=1e-3)
    assert sum(bytes_ for bytes_, _ in groups(BF16)) == 32_862_272 // 2


def test_a_step_is_estimated_between_and_beyond_the_estimates() -> None:
    for images, seconds in STEP_S.items():
        assert compute_seconds(images) == pytest.approx(seconds)
    assert compute_seconds(320) == pytest.approx((STEP_S[128] + STEP_S[512]) / 2)
    slope = (STEP_S[512] - STEP_S[128]) / 384
    assert compute_seconds(2) == pytest.approx(STEP_S[128] - 126 * slope)
    steeper = (STEP_S[1024] - STEP_S[512]) / 512
    assert compute_seconds(2048) == pytest.approx(STEP_S[1024] + 1024 * steeper)


def test_what_is_sent_early_hides_behind_the_way_back() -> None:
    # A second of latency for each of the groups, no bandwidth to speak of.
    latency = Cluster("c", 1, 2, math.inf, link_hop_s=0.5)
    found = step_on(latency, 128, TODAY)
    assert found.exchange == pytest.approx(3)
    backward = backward_share() * found.compute
    # The first group goes out at the start of the way back; the measures add another second.
    (_, first), *_ = groups(TODAY)
    assert found.exposed == pytest.approx(3 + first * backward - backward + 1)
    free = Cluster("c", 1, 2, math.inf, link_hop_s=0)
    assert step_on(free, 128).total == compute_seconds(128)


def test_efficiency_is_one_where_nothing_is_exchanged() -> None:
    free = Cluster("c", 1, 8, math.inf, link_hop_s=0)
    assert efficiency(free, 8 * 128, step_on(free, 128).total) == pytest.approx(1)
    assert efficiency(free, 8 * 1024, step_on(free, 1024).total) == pytest.approx(1)
    # A batch of 16 keeps no GPU as busy as one of 128.
    assert efficiency(free, 128, step_on(free, 16).total) == pytest.approx(
        compute_seconds(128) / 8 / compute_seconds(16)
    )


@pytest.mark.parametrize("cluster", CLUSTERS, ids=lambda cluster: cluster.name)
def test_larger_batches_fewer_bytes_and_smaller_groups_help(cluster: Cluster) -> None:
    def reached(images: int, exchange: Exchange) -> float:
        seconds = step_on(cluster, images, exchange).total
        return efficiency(cluster, images * cluster.gpus, seconds)

    assert 0 < reached(128, TODAY) < reached(1024, TODAY) < 1
    assert reached(1024, TODAY) < reached(1024, SMALL_GROUPS) < reached(1024, BF16) < 1


def test_a_run_is_its_steps() -> None:
    assert run_seconds(0.5, 128) == 300 * 469 * 0.5


def test_the_document_holds_every_figure_of_the_arithmetic(capsys) -> None:
    scaling.main(["--arithmetic"])
    printed = capsys.readouterr().out
    assert printed == markdown()
    text = DOCUMENT.read_text()
    for line in printed.splitlines():
        assert line in text, (
            f"docs/scaling.md: run python -m benchmarks.scaling --arithmetic: {line}"
        )


def made_up() -> Scaling:
    """One worker takes 1 s; two take 0.625 s for as many images, 1.25 s for twice as many."""
    timings = [
        Timing(ONE, 128, [1.0, 2.0]),
        Timing(SHARE, 64, [0.5625, 1.125]),
        Timing(TWO, 128, [0.625, 1.25]),
        Timing(TWO, 256, [1.25, 2.5]),
        Timing(WIDE, 128, [0.5, 1.0]),
        Timing(WIDE, 256, [1.0, 2.0]),
        Timing(BESIDE, 256, [1.125, 2.25]),
    ]
    return Scaling("bf16", 128, 2, "mnist", 1000, [1010, 1020], timings, [0.1, 0.2], [1e-4, 3e-4])


def test_efficiencies_are_taken_round_by_round() -> None:
    found = made_up()
    assert found.efficiency(128).median == pytest.approx(0.8)
    assert found.efficiency(256).median == pytest.approx(0.8)
    assert found.efficiency(128, SHARE).median == pytest.approx(0.9)
    assert found.efficiency(128, WIDE).median == pytest.approx(0.8)
    assert found.efficiency(256, WIDE).median == pytest.approx(0.8)
    assert found.efficiency(256, BESIDE).median == pytest.approx(0.9)
    assert found.exchange_share(128).median == pytest.approx(0.16)
    assert found.efficiency(128).low == found.efficiency(128).high


def test_the_report_tells_them(tmp_path: Path) -> None:
    machine = {
        "device": "a CPU", "date": "today", "torch": "2", "python": "3", "cores": [0, 1],
        "threads": 2, "load": 0.1,
    }  # fmt: skip
    report = ScalingReport(machine, {}, [made_up()])
    report.write(tmp_path / "here.json")
    content = json.loads((tmp_path / "here.json").read_text())
    derived = content["found"][0]["efficiency"]
    assert derived["256"][BESIDE]["median"] == pytest.approx(0.9)
    assert list(derived["128"]) == [ONE, SHARE, WIDE]
    assert list(derived["256"]) == [ONE, WIDE, BESIDE]
    text = (tmp_path / "here.md").read_text()
    assert "| two workers, a core each | 256 | 1875.0" in text
    assert "takes 150.0 (125.0 to 175.0) ms: as much as 16.0%" in text
    assert "send 1,010 and 1,020 bytes" in text
    assert "vote takes 200" in text


def test_a_process_is_started_on_its_cores_and_the_caller_keeps_its_own(monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    before = os.sched_getaffinity(0)
    core = min(before)
    with placed([core, core]):
        assert os.sched_getaffinity(0) == {core}
        assert os.environ["OMP_NUM_THREADS"] == "1"
    assert os.sched_getaffinity(0) == before
    assert os.environ["OMP_NUM_THREADS"] == "7"


@pytest.mark.long
def test_two_workers_train_beside_one(monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    usable = sorted(os.sched_getaffinity(0))
    found = run_scaling((usable[0], usable[-1]), "fp32", 8, seconds=0.001, net=SMALL)
    assert found.gradient_bytes == gradient_bytes(CapsNet(SMALL))
    for sent in found.sent_bytes:  # a ring of two sends what it has; votes and headers come on top
        assert found.gradient_bytes <= sent < found.gradient_bytes + 20_000
    assert found.rounds == 2
    assert {(t.name, t.images) for t in found.timings} == {
        (SHARE, 4), (ONE, 8), (TWO, 8), (TWO, 16), (WIDE, 8), (WIDE, 16), (BESIDE, 16)
    }  # fmt: skip
    assert all(len(t.step_s) == 2 and min(t.step_s) > 0 for t in found.timings)
    assert statistics.median(found.vote_s) > 0
    assert found.exchange_share(8).median > 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--seconds", "0"], "--seconds: 0.0, expected more than 0"),
        (["--batch-size", "1"], "at least an image a worker"),
        (["--cores", "0", "0"], "expected two different ones"),
        (["--cores", "0", "99999"], "expected two different ones"),
        (["--output", "table.txt"], "ends in .json"),
    ],
)
def test_a_wrong_option_is_told(options: list[str], told: str, capsys) -> None:
    with pytest.raises(SystemExit):
        scaling.parse_options(options)
    assert told in capsys.readouterr().err


def test_the_options_that_are_not_given(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 4})
    options = scaling.parse_options(["--quick"])
    assert options.cores == [3, 4]
    assert options.seconds == pytest.approx(7.5)
    assert options.precisions == ["fp32", "bf16"]
