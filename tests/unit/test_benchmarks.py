"""The stopwatch: the textbook computes what our net computes, and a run writes what it saw."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import contenders, textbook, throughput
from benchmarks.contenders import Ours, Turn
from benchmarks.throughput_report import Measurement, compare
from capsmodel import CapsNet, Dataset

CPU = torch.device("cpu")


def same_weights(net: CapsNet) -> textbook.TextbookCapsNet:
    """The textbook's net with the weights of ours."""
    twin = textbook.TextbookCapsNet()
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


def test_the_textbook_computes_what_our_net_computes() -> None:
    torch.manual_seed(1)
    ours = CapsNet()
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
def test_the_textbook_learns(bf16: bool) -> None:
    torch.manual_seed(0)
    net = textbook.TextbookCapsNet(channels=16, types=4, hidden=(16, 16))
    optimizer = textbook.make_optimizer(net)
    images, labels = torch.rand(10, 1, 28, 28), torch.arange(10)
    losses = [textbook.train_step(net, optimizer, images, labels, bf16).item() for _ in range(30)]
    assert losses[-1] < 0.8 * losses[0]


def test_a_turn_times_its_steps_and_nothing_between_stretches(monkeypatch) -> None:
    clock = iter([0, 0, 1, 3, 10, 14, 14, 15, 15])
    monkeypatch.setattr(contenders.time, "perf_counter", lambda: next(clock))
    turn = Turn(CPU, steps=2, seconds=15, uncounted=1)  # from 0
    turn.step_done()  # at 1, not counted
    turn.step_done()  # at 3
    turn.resume()  # at 10
    turn.step_done()  # at 14
    assert not turn.over  # enough steps, but it is 14
    turn.step_done()  # at 15
    assert turn.over
    assert turn.seconds_per_step() == [2, 4, 1]


class FakeEvent:
    """A CUDA event by a clock of milliseconds: the first at 0, then 100, 300, 600."""

    times = iter([0, 100, 300, 600])

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = next(self.times)

    def elapsed_time(self, later: "FakeEvent") -> float:
        return later.at - self.at


def test_on_a_gpu_a_turn_goes_by_events_and_waits_for_them_at_its_end(monkeypatch) -> None:
    waits: list[bool] = []
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(True))
    turn = Turn(torch.device("cuda"), steps=2, uncounted=1)
    for _ in range(3):
        turn.step_done()
    assert turn.over
    assert not waits
    assert turn.seconds_per_step() == [0.2, 0.3]
    assert waits


def test_our_turns_go_on_with_one_training_over_the_end_of_an_epoch() -> None:
    pixels = torch.randint(256, (5, 1, 28, 28), dtype=torch.uint8)
    digits = Dataset("five", pixels, torch.arange(5), pixels, torch.arange(5), classes=10)
    ours = Ours(digits, CPU, batch_size=2, precision="fp32")
    for steps, done in ((4, 4), (1, 5)):
        turn = Turn(CPU, steps=steps)
        ours.run("training", turn)
        assert len(turn.seconds_per_step()) == steps
        assert ours.trainer.step == done
    assert ours.trainer.epoch == 1


def test_the_ratio_compares_turns_of_the_same_round() -> None:
    ours = Measurement("ours", "fp32", "training", [1.0, 4.0, 1.0], 6, peak_mib=10)
    other = Measurement("textbook", "fp32", "training", [2.0, 8.0, 3.0], 6, peak_mib=20)
    line = compare(ours, other, batch_size=60)
    assert (line.ours_images_per_s, line.textbook_images_per_s) == (60, 20)
    assert (line.lowest_ratio, line.ratio, line.highest_ratio) == (2, 2, 3)


def test_a_run_writes_a_table_and_every_figure(monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CAPS_DATA_DIR", str(tmp_path))
    output = tmp_path / "results" / "here.json"
    options = ["--batch-size", "2", "--precisions", "fp32", "--rounds", "1", "--seconds", "0.01"]
    throughput.main([*options, "--output", str(output)])
    result = json.loads(output.read_text())
    assert result["settings"]["data"] == "synthetic"
    assert result["machine"]["torch"] == torch.__version__
    measured = {(m["contender"], m["phase"]): m for m in result["measurements"]}
    assert len(measured) == 4
    for line in measured.values():
        assert len(line["step_s"]) == 1
        assert line["steps"] >= 2
        assert min(line["step_s"]) > 0
    for name in ("ours", "textbook"):
        peaks = [measured[name, phase]["peak_mib"] for phase in ("inference", "training")]
        assert result["start_mib"] < peaks[0] < peaks[1]
    table = output.with_suffix(".md").read_text()
    assert table in capsys.readouterr().out
    for comparison in result["comparisons"]:
        assert f"| {comparison['ratio']:.2f} (" in table


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--device", "cuda"], "finds no CUDA device"),
        (["--rounds", "0"], "--rounds is 0, expected more than 0"),
        (["--seconds", "nan"], "--seconds is nan, expected more than 0"),
        (["--output", "table.txt"], "expected a name that ends in .json"),
    ],
)
def test_wrong_options_are_refused(options, complaint, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as refusal:
        throughput.main(options)
    assert refusal.value.code == 2
    assert complaint in capsys.readouterr().err
