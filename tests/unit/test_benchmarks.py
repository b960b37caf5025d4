"""The stopwatch: the textbook computes what our net computes, and a run writes what it saw."""

import builtins
import json
import os
import statistics
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import contenders, limits, plots, stopwatch, sweeps, textbook, throughput
from benchmarks.child import ALLOCATOR_PREFIXES, Child, ChildError
from benchmarks.contenders import ENTRIES, PHASES, Entry, Ours, Textbook, make_contender
from benchmarks.limits import Peaks, operations, operations_by_frequency, peak_of
from benchmarks.parts import PARTS, STEP, PartsFound, StepParts, TextbookRouting
from benchmarks.race import COMPARED, Measurement, Race
from benchmarks.spread import Spread, ratios, spread
from benchmarks.stopwatch import Stopwatch, time_turn
from benchmarks.sweeps import Line, OurSteps, Sweep, TextbookSteps, growth, points_of, run_sweep
from benchmarks.throughput_report import Report
from capsmodel import CapsNet, Dataset
from capsmodel.allocator import ALLOCATOR_ENVIRONMENT
from capsmodel.config import CapsNetConfig, DecoderConfig, DynamicRoutingConfig

CPU = torch.device("cpu")
SMALL = CapsNetConfig(conv_channels=8, primary_types=2, decoder=DecoderConfig(hidden=(8, 8)))
"""Of the paper's kernels, which the textbook has too."""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine may be shared; children are given the same."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def same_weights(net: CapsNet) -> textbook.TextbookCapsNet:
    """The textbook's net with the weights of ours."""
    routing = net.class_caps.routing
    twin = textbook.TextbookCapsNet(iterations=routing.iterations)
    twin.conv.load_state_dict(net.conv.state_dict())
    twin.primary.conv.load_state_dict(net.primary_caps.conv.state_dict())
    twin.digits.weight.data = net.class_caps.weight.data.transpose(2, 3).clone()
    for layer, original in zip(
        linear_layers(twin.decoder), linear_layers(net.decoder), strict=True
    ):
        layer.load_state_dict(original.state_dict())
    return twin


def linear_layers(decoder: nn.Module | None) -> list[nn.Linear]:
    assert decoder is not None
    return [layer for layer in decoder.modules() if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize("iterations", [1, 3, 4])
def test_the_textbook_computes_what_our_net_computes(iterations: int) -> None:
    torch.manual_seed(1)
    ours = CapsNet(CapsNetConfig(routing=DynamicRoutingConfig(iterations=iterations)))
    with torch.no_grad():
        ours.class_caps.weight *= 2  # so that the routing has something to decide
    theirs = same_weights(ours)
    assert sum(weight.numel() for weight in theirs.parameters()) == 8_215_568
    images, labels = torch.rand(3, 1, 28, 28), torch.tensor([7, 0, 3])
    results = []
    for net in (ours, theirs):
        pixels = images.clone().requires_grad_()
        output = net(pixels, labels)
        lengths, drawn = (output.lengths, output.reconstruction) if net is ours else output
        (lengths.square().sum() + drawn.square().sum()).backward()
        results.append((lengths, drawn, pixels.grad))
    assert results[0][0].std() > 0.02
    for own, other in zip(*results, strict=True):
        torch.testing.assert_close(other, own, rtol=1e-4, atol=1e-4 * own.abs().max().item())


def test_without_labels_the_textbook_draws_from_the_longest_capsule() -> None:
    net = textbook.TextbookCapsNet(channels=4, types=2, hidden=(8, 8))
    images = torch.rand(4, 1, 28, 28)
    lengths, reconstruction = net(images)
    _, expected = net(images, lengths.argmax(dim=1))
    assert torch.equal(reconstruction, expected)


def test_the_textbook_loss_is_the_papers() -> None:
    lengths, labels = torch.rand(5, 4), torch.tensor([0, 3, 1, 1, 2])
    images, drawn = torch.rand(5, 1, 6, 6), torch.rand(5, 1, 6, 6)
    expected = 0.0
    for sample, label in enumerate(labels.tolist()):
        for k, length in enumerate(lengths[sample].double().tolist()):
            if k == label:
                expected += max(0, 0.9 - length) ** 2 / 5
            else:
                expected += 0.5 * max(0, length - 0.1) ** 2 / 5
    error = (drawn.double() - images.double()).numpy()
    expected += 0.0005 * np.square(error).sum() / 5
    loss = textbook.total_loss(lengths, drawn, images, labels)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_the_textbook_learns(bf16: bool, fused: bool) -> None:
    torch.manual_seed(0)
    net = textbook.TextbookCapsNet(channels=16, types=4, hidden=(16, 16))
    optimizer = textbook.make_optimizer(net, fused)
    images, labels = torch.rand(10, 1, 28, 28), torch.arange(10)
    losses = [textbook.train_step(net, optimizer, images, labels, bf16).item() for _ in range(30)]
    assert losses[-1] < 0.8 * losses[0]


def test_the_watch_times_spans_and_nothing_between_them(monkeypatch) -> None:
    clock = iter([0, 1, 3, 10, 14, 20, 21])
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: next(clock))
    watch = Stopwatch(CPU)
    watch.begin()  # at 0
    watch.end()  # at 1
    watch.begin()  # at 3, and anew at 10
    watch.begin()
    watch.end()  # at 14
    assert watch.seconds() == [1, 4]
    assert watch.time(lambda: "result") == "result"
    assert watch.seconds() == [1]


class FakeEvent:
    """A CUDA event by a clock of milliseconds: the first at 0, then 100, 300, 600."""

    times = iter([0, 100, 300, 600])

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = next(self.times)

    def elapsed_time(self, later: "FakeEvent") -> float:
        return later.at - self.at


def test_on_a_gpu_the_watch_goes_by_events_and_waits_for_them_at_the_end(monkeypatch) -> None:
    waits: list[bool] = []
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(True))
    watch = Stopwatch(torch.device("cuda"))
    for _ in range(2):
        watch.begin()
        watch.end()
    assert not waits
    assert watch.seconds() == [0.1, 0.3]
    assert waits


def test_a_turn_on_a_cpu_is_one_step() -> None:
    calls: list[int] = []
    assert time_turn(lambda: calls.append(1), CPU) >= 0
    assert len(calls) == 1


@pytest.fixture
def five_digits(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """What the contenders of this process learn from."""
    pixels = torch.randint(256, (5, 1, 28, 28), dtype=torch.uint8)
    digits = Dataset("five", pixels, torch.arange(5), pixels, torch.arange(5), classes=10)
    monkeypatch.setattr(contenders, "load_digits", lambda: digits)
    return digits


def test_our_turns_go_on_with_one_training_over_the_end_of_an_epoch(five_digits) -> None:
    ours = make_contender(Entry("ours", "fp32"), "cpu", 2)
    assert isinstance(ours, Ours)
    ours.warm_up("training")  # two steps
    for done in (3, 4, 5):  # of three steps an epoch
        assert ours.turn("training") > 0
        assert ours.trainer.step == done
    assert ours.trainer.epoch == 1
    assert ours.turn("inference") > 0
    assert ours.peak_mib() > 50


def test_a_whole_epoch_is_timed_apart_from_the_turns(five_digits) -> None:
    ours = Ours("cpu", 2, "fp32")
    ours.turn("training")
    assert ours.epoch_seconds() > 0
    assert (ours.trainer.epoch, ours.trainer.step) == (2, 6)
    assert ours.turn("training") > 0
    assert ours.trainer.step == 7


def test_the_tuned_textbook_is_the_same_net_with_fused_adam_and_autocast(five_digits) -> None:
    plain, tuned = (
        make_contender(entry, "cpu", 2)
        for entry in (Entry("plain", "fp32"), Entry("tuned", "bf16"))
    )
    assert isinstance(plain, Textbook)
    assert isinstance(tuned, Textbook)
    for own, other in zip(plain.net.parameters(), tuned.net.parameters(), strict=True):
        assert torch.equal(own, other)
    assert not plain.optimizer.defaults["fused"]
    assert tuned.optimizer.defaults["fused"]
    dtypes = []
    for contender in (plain, tuned):
        contender.net.primary.conv.register_forward_hook(
            lambda module, inputs, output: dtypes.append(output.dtype)
        )
        assert min(contender.turn(phase) for phase in PHASES) > 0
    assert dtypes == [torch.float32] * 2 + [torch.bfloat16] * 2


def test_those_that_are_compared_follow_on_each_other() -> None:
    for ours, other in COMPARED:
        if other.kind == "tuned" or ours.precision == other.precision:
            assert abs(ENTRIES.index(ours) - ENTRIES.index(other)) == 1
    assert [str(entry) for entry in ENTRIES if entry.kind == "plain"] == ["plain fp32"]


class Answers:
    """A worker that tells of its process."""

    def environment(self) -> dict[str, str]:
        return {k: v for k, v in os.environ.items() if k.startswith(ALLOCATOR_PREFIXES)}

    def fail(self, reason: str) -> None:
        raise ValueError(reason)

    def die(self) -> None:
        os._exit(7)


@pytest.mark.slow
def test_a_child_has_its_own_allocator_and_tells_what_failed(monkeypatch) -> None:
    for name in ALLOCATOR_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    with Child("set", ALLOCATOR_ENVIRONMENT, Answers) as one, Child("plain", {}, Answers) as two:
        assert one.ask(Answers.environment) == ALLOCATOR_ENVIRONMENT
        assert two.ask(Answers.environment) == {}
        with pytest.raises(ChildError, match=r"set: fail failed[\s\S]*ValueError: no reason"):
            one.ask(Answers.fail, "no reason")
        assert one.ask(Answers.environment) == ALLOCATOR_ENVIRONMENT
        with pytest.raises(ChildError, match="the process of plain is gone, with exit code 7"):
            two.ask(Answers.die)
    assert os.environ["MALLOC_ARENA_MAX"] == "1"
    assert ALLOCATOR_ENVIRONMENT.keys().isdisjoint(os.environ)


def test_a_spread_is_the_median_and_the_quartiles() -> None:
    assert spread([3.0, 1.0, 2.0, 5.0, 4.0]) == Spread(3, 2, 4)
    assert spread([7.0]) == Spread(7, 7, 7)
    assert f"{spread([1.0, 2.0, 3.0]):.1f}" == "2.0 (1.5 to 2.5)"


def test_the_ratio_compares_turns_of_the_same_round() -> None:
    assert ratios([2.0, 8.0, 3.0], [1.0, 4.0, 1.0]) == Spread(2, 2, 2.5)


def test_operations_are_those_that_were_counted() -> None:
    first = 2 * 20 * 20 * 81 * 256
    primary = 2 * 36 * 256 * 81 * 256
    dense = 2 * (160 * 512 + 512 * 1024 + 1024 * 784)
    votes_and_routing = 1152 * 10 * 16 * (2 * 8 + 1 + 2 * 4)
    forward = first + primary + dense + votes_and_routing
    assert operations("inference") == forward
    assert operations("training") == 3 * forward - first
    for phase, mega in (("inference", 132), ("training", 379)):
        assert operations_by_frequency(phase) / 1e6 == pytest.approx(mega, abs=1)


def test_peaks_of_product_and_convolution_are_measured(monkeypatch) -> None:
    monkeypatch.setitem(limits.PRODUCT_SIDE, "cpu", 256)
    peaks = Peaks("cpu", batch_size=1)
    peaks.warm_up()
    found = peaks.turn()
    assert set(found) == {f"{k} {p}" for k in ("product", "convolution") for p in ("fp32", "bf16")}
    assert all(1e8 < rate < 1e15 for rate in found.values())
    assert peak_of(found, "bf16") == max(found["product bf16"], found["convolution bf16"])


def a_race(batch_size: int = 128) -> Race:
    """Two rounds in which ours takes 1 s and then 2 s, the tuned 3 times that, the plain 12."""
    steps = {"ours": [1.0, 2.0], "tuned": [3.0, 6.0], "plain": [12.0, 24.0]}
    memory = {"ours": 550.0, "tuned": 600.0, "plain": 500.0}
    return Race(
        batch_size=batch_size,
        rounds=2,
        data="mnist",
        start_mib=300,
        torch_flags={},
        measurements=[
            Measurement(str(entry), phase, steps[entry.kind], memory[entry.kind])
            for entry in ENTRIES
            for phase in PHASES
        ],
        peaks=[{f"{kind} {precision}": rate for kind in ("product", "convolution")
                for precision in ("fp32", "bf16")} for rate in (2e11, 1e11)],
    )  # fmt: skip


def test_a_race_compares_ours_with_both_textbooks() -> None:
    race = a_race()
    found = {(c.phase, c.ours, c.other): c for c in race.comparisons}
    assert len(found) == len(race.comparisons) == 8
    against_plain = found["training", "ours bf16", "plain fp32"]
    assert against_plain.ratio == Spread(12, 12, 12)
    assert against_plain.memory == pytest.approx(1.1)
    assert found["inference", "ours fp32", "tuned fp32"].ratio == Spread(3, 3, 3)
    assert race.images_per_s(race.find("ours fp32", "training")) == pytest.approx(128 / 1.5)


def test_our_share_of_the_limit_is_that_of_the_same_rounds() -> None:
    shares = {(share.phase, share.precision): share for share in a_race().shares}
    assert len(shares) == 4
    share = shares["training", "bf16"]
    needed = 128 * operations("training")
    # 128 images in 1 s at a peak of 2e11, then in 2 s at 1e11.
    assert share.direct.median == pytest.approx(needed / 2e11)
    assert share.direct.high == share.direct.low
    assert share.direct_images_per_s == pytest.approx(1.5e11 / operations("training"))
    assert share.frequency.median < share.direct.median


def test_the_parts_of_a_step_are_timed_on_our_own_net() -> None:
    parts = StepParts("cpu", 2, "bf16", SMALL)
    before = [weight.clone() for weight in parts.trainer.model.parameters()]
    found = parts.turn()
    assert set(found) == {*PARTS, STEP}
    assert min(found.values()) > 0
    assert parts.trainer.step == 1
    changed = zip(before, parts.trainer.model.parameters(), strict=True)
    assert not any(torch.equal(old, new) for old, new in changed)
    assert TextbookRouting("cpu", 2, SMALL).turn() > 0


def some_parts() -> PartsFound:
    """Each part takes 1 s, the step 10 s, the textbook's routing 30 s."""
    seconds = {**{name: [1.0, 1.0, 1.0] for name in PARTS}, STEP: [10.0, 10.0, 10.0]}
    return PartsFound(128, "bf16", seconds, [30.0, 30.0, 30.0])


def test_parts_and_rest_make_the_step() -> None:
    parts = some_parts()
    assert parts.median_s["rest"] == pytest.approx(10 - len(PARTS))
    assert sum(parts.shares.values()) == pytest.approx(1)
    assert parts.routing_ratio.median == 15
    assert parts.routing_share.median == pytest.approx(0.2)


@pytest.mark.parametrize("name", sweeps.VALUES)
def test_a_sweep_changes_what_it_names_and_nothing_else(name: str) -> None:
    points = points_of(name, CapsNetConfig(), 128)
    assert tuple(point.value for point in points) == sweeps.VALUES[name]
    paper = [point for point in points if (point.net, point.batch_size) == (CapsNetConfig(), 128)]
    assert len(paper) == 1
    for point in points:
        changed = {
            field
            for field, value in point.net.model_dump().items()
            if value != CapsNetConfig().model_dump()[field]
        }
        assert len(changed) + (point.batch_size != 128) == (point not in paper)


class Here:
    """In place of a `Child`: asks a worker of this process."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker

    def ask(self, method: Callable[..., Any], *arguments: Any) -> Any:
        return getattr(self.worker, method.__name__)(*arguments)


def test_a_sweep_runs_all_points_and_the_textbook_where_it_can() -> None:
    points = points_of("classes", SMALL, 2)[:3]
    most = points[1].votes
    children: Any = [Here(OurSteps("cpu")), Here(TextbookSteps("cpu"))]
    sweep = run_sweep("classes", points, *children, seconds=0, most_votes=most)
    assert [line.value for line in sweep.of("ours", "training")] == [2, 10, 50]
    assert [line.value for line in sweep.of("plain", "inference")] == [2, 10]
    for line in sweep.lines:
        assert len(line.step_s) == (3 if line.contender == "ours" else 2)
        assert line.images_per_s == 2 / statistics.median(line.step_s) > 0


def a_sweep() -> Sweep:
    """From 1 to 5 our step grows by 0.1 s and 0.2 s; the textbook was run at 1 alone."""
    steps = {1: [1.0, 2.0], 5: [1.1, 2.2]}
    ours = [Line("ours", p, value, 64, step_s) for p in PHASES for value, step_s in steps.items()]
    plain = [Line("plain", phase, 1, 64, [5.0]) for phase in PHASES]
    return Sweep("routing iterations", [*ours, *plain])


def test_growth_is_that_of_128_images_round_by_round() -> None:
    found = growth(a_sweep())
    assert found.ms.median == pytest.approx(2 * 150)
    assert found.share.median == pytest.approx(0.1)


def a_report() -> Report:
    machine = {"device": "a CPU", "kind": "cpu", "threads": 2, "python": "3.11.0", "load": 0.1,
               "date": "today", "torch": "2.13", "cuda": None}  # fmt: skip
    return Report(machine, {}, [a_race()], [some_parts()], [a_sweep()])


def test_the_tables_tell_figures_and_goals() -> None:
    told = a_report().markdown()
    row = "| training, ours bf16 / plain fp32 | 12.00 (12.00 to 12.00) | at least 10 | 1.10 |"
    assert row in told
    assert "| inference, ours fp32 / plain fp32 | 12.00 (12.00 to 12.00) |  | 1.10 |" in told
    assert "| ours bf16 | 85 | 1,500.00 | 550 | 85 | 1,500.00 | 550 |" in told
    assert "| routing, backward | 1000.00 | 10.0% |" in told
    assert "15.0 (15.0 to 15.0) times as fast as the textbook's" in told
    assert "1 to 5: +300.00 (+250.00 to +350.00) ms, +10% (+10% to +10%) for 128" in told
    assert "images (goal: at most 45 ms, or 25%)." in told
    assert "| 5 | 64 | 39 |  |  | 39 |  |  |" in told
    assert "product fp32 150" in told
    other = Report(a_report().machine, {}, [a_race(batch_size=64)], [], []).markdown()
    assert "at least" not in other  # the goals are of batches of 128
    assert "Sweep" not in other


def test_pictures_are_800_pixels_wide(tmp_path: Path) -> None:
    content = json.loads(json.dumps(a_report().content()))
    drawn = plots.draw(content, tmp_path / "new", "here")
    names = [f"throughput-here-{kind}.png" for kind in ("ratios", "parts", "sweeps")]
    assert [path.name for path in drawn] == names
    for path in drawn:
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        assert width == 800
        assert 150 < height < 1000


def test_a_section_that_was_left_out_is_not_drawn(tmp_path: Path) -> None:
    content = Report(a_report().machine, {}, [], [some_parts()], []).content()
    (drawn,) = plots.draw(content, tmp_path, "here")
    assert drawn.name == "throughput-here-parts.png"


def test_without_matplotlib_nothing_is_drawn(monkeypatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert plots.draw(a_report().content(), tmp_path, "here") == []


@pytest.mark.slow
def test_a_run_writes_tables_and_every_figure(monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setenv("CAPS_DATA_DIR", str(tmp_path))
    monkeypatch.setitem(limits.PRODUCT_SIDE, "cpu", 256)
    output = tmp_path / "results" / "here.json"
    options = ["--batch-sizes", "2", "--precisions", "fp32", "--seconds", "0.01"]
    throughput.main([*options, "--sections", "race", "parts", "--output", str(output)])
    result = json.loads(output.read_text())
    assert result["machine"]["torch"] == torch.__version__
    (race,) = result["races"]
    assert (race["data"], race["rounds"]) == ("synthetic", 2)
    measured = {(m["contender"], m["phase"]): m for m in race["measurements"]}
    kinds = ("ours fp32", "plain fp32", "tuned fp32")
    assert set(measured) == {(name, phase) for name in kinds for phase in PHASES}
    for line in measured.values():
        assert len(line["step_s"]) == 2
        assert min(line["step_s"]) > 0
    for name in kinds:
        peaks = [measured[name, phase]["peak_mib"] for phase in PHASES]
        assert race["start_mib"] < peaks[0] < peaks[1]
    assert len(race["peaks"]) == 2
    (parts,) = result["parts"]
    assert set(parts["median_s"]) == {*PARTS, "rest", STEP}
    assert result["sweeps"] == []
    tables = output.with_suffix(".md").read_text()
    assert tables in capsys.readouterr().out
    for comparison in race["comparisons"]:
        assert f"| {comparison['ratio']['median']:.2f} (" in tables
    assert (output.parent / "throughput-here-ratios.png").is_file()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--device", "cuda"], "finds no CUDA device"),
        (["--batch-sizes", "128", "0"], "--batch-sizes: 0, expected more than 0"),
        (["--seconds", "nan"], "--seconds: nan, expected more than 0"),
        (["--output", "table.txt"], "expected a name that ends in .json"),
        (["--sweeps", "colours"], "invalid choice: 'colours'"),
    ],
)
def test_wrong_options_are_refused(options, complaint, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as refusal:
        throughput.main(options)
    assert refusal.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_quick_run_is_shorter() -> None:
    quick, whole = (throughput.parse_options(options) for options in (["--quick"], []))
    assert quick.seconds == pytest.approx(0.1 * whole.seconds)
    assert whole.batch_sizes == [128]
