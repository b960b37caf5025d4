"""The Trainer: it learns, follows its schedule, tells its callbacks, stops and diverges loudly."""

from collections.abc import Callable

import pytest
import torch

from capsmodel.callbacks import Callback
from capsmodel.capsnet import CapsNet
from capsmodel.config import (
    CapsNetConfig,
    ConstantScheduleConfig,
    CosineScheduleConfig,
    DecoderConfig,
    DynamicRoutingConfig,
    EarlyStoppingConfig,
    Mnist5kConfig,
    OptimizerConfig,
)
from capsmodel.datasets import Dataset, load_dataset
from capsmodel.divergence import DivergedError, DivergenceGuard
from capsmodel.losses import LossTerms
from capsmodel.metrics import Best, EpochMetrics, Evaluation, StepMetrics, Throughput
from capsmodel.training import Trainer


class Diary(Callback):
    """Writes down all that it is told."""

    def __init__(self) -> None:
        self.starts = 0
        self.steps: list[StepMetrics] = []
        self.epochs: list[EpochMetrics] = []

    def on_start(self, trainer: Trainer) -> None:
        self.starts += 1

    def on_step(self, trainer: Trainer, metrics: StepMetrics) -> None:
        self.steps.append(metrics)

    def on_epoch(self, trainer: Trainer, metrics: EpochMetrics) -> None:
        assert trainer.epoch == metrics.epoch
        self.epochs.append(metrics)


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, trainer: Trainer, metrics: StepMetrics) -> None:
        if metrics.step == self.step:
            trainer.request_stop()


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(Mnist5kConfig())


def test_the_loss_falls_within_50_steps(tiny_config, digits) -> None:
    net = CapsNetConfig(conv_channels=32, primary_types=4, decoder=DecoderConfig(hidden=(64,)))
    config = tiny_config(
        model=net,
        optimizer=OptimizerConfig(learning_rate=3e-3),
        schedule=ConstantScheduleConfig(warmup_steps=10),
    )
    diary = Diary()
    Trainer(config, digits, device="cpu", callbacks=[diary, StopAt(50)]).fit()
    losses = [metrics.classification_loss for metrics in diary.steps]
    assert len(losses) == 50
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_initial_capsules_are_neither_saturated_nor_dead(digits) -> None:
    torch.manual_seed(0)
    model = CapsNet(CapsNetConfig())
    with torch.no_grad():
        images = digits.test_images[::250] / 255
        capsules = model.primary_caps(model.conv(images))
        lengths = model.class_caps(capsules).norm(dim=-1)
    assert 0.1 < capsules.norm(dim=-1).median() < 0.4
    assert 0.01 < lengths.median() < 0.3


def test_an_epoch_uses_every_image_once(tiny_config, tiny_dataset) -> None:
    trainer = Trainer(tiny_config(), tiny_dataset, device="cpu")
    assert len(trainer.train_indices) == 80
    assert len(trainer.validation_indices) == 20
    assert not set(trainer.train_indices.tolist()) & set(trainer.validation_indices.tolist())
    assert (trainer.steps_per_epoch, trainer.total_steps) == (7, 14)


def test_callbacks_hear_of_every_step_and_epoch(tiny_config, tiny_dataset) -> None:
    diary = Diary()
    config = tiny_config(schedule=CosineScheduleConfig(warmup_steps=4))
    outcome = Trainer(config, tiny_dataset, device="cpu", callbacks=[diary]).fit()
    assert (outcome.stopped, outcome.epoch, outcome.step) == ("completed", 2, 14)
    assert diary.starts == 1
    assert [metrics.step for metrics in diary.steps] == list(range(1, 15))
    assert [metrics.epoch for metrics in diary.steps] == [0] * 7 + [1] * 7
    rates = [metrics.learning_rate for metrics in diary.steps]
    assert rates[0] == 0
    assert max(rates) < 1e-3
    assert [(metrics.epoch, metrics.step) for metrics in diary.epochs] == [(1, 7), (2, 14)]
    for metrics in diary.epochs:
        assert (metrics.train.images, metrics.validation.images) == (80, 20)
        assert metrics.images_per_s > 0


def test_an_epochs_means_weigh_every_image_alike(tiny_config, tiny_dataset) -> None:
    diary = Diary()
    Trainer(tiny_config(epochs=1), tiny_dataset, device="cpu", callbacks=[diary]).fit()
    sizes = [12] * 6 + [8]
    train = diary.epochs[0].train
    for name in ("total_loss", "classification_loss", "reconstruction_loss", "accuracy"):
        values = [getattr(metrics, name) for metrics in diary.steps]
        expected = sum(v * n for v, n in zip(values, sizes, strict=True)) / 80
        assert getattr(train, name) == pytest.approx(expected)


def test_the_total_is_the_sum_of_its_terms(tiny_config, tiny_dataset) -> None:
    evaluation = Trainer(tiny_config(), tiny_dataset, device="cpu").evaluate("test")
    expected = evaluation.classification_loss + 0.0005 * evaluation.reconstruction_loss
    assert evaluation.total_loss == pytest.approx(expected)
    assert evaluation.images == 30


def test_evaluation_equals_one_pass_by_hand(tiny_config, tiny_dataset) -> None:
    trainer = Trainer(tiny_config(), tiny_dataset, device="cpu")
    with torch.no_grad():
        images, labels = tiny_dataset.test_images / 255, tiny_dataset.test_labels
        output = trainer.model(images, labels)
    evaluation = trainer.evaluate("test")
    correct = (output.lengths.argmax(dim=1) == labels).sum().item()
    assert evaluation.accuracy == correct / 30
    squares = (output.reconstruction - images).square().sum() / 30
    assert evaluation.reconstruction_loss == pytest.approx(squares.item(), rel=1e-5)
    assert trainer.model.training


def test_the_decoder_is_trained_on_the_label(tiny_config, tiny_dataset, monkeypatch) -> None:
    trainer = Trainer(tiny_config(epochs=1), tiny_dataset, device="cpu")
    targets = []
    compute = trainer.model.compute

    def spy(images, target=None):
        targets.append(target)
        return compute(images, target)

    monkeypatch.setattr(trainer.model, "compute", spy)
    trainer.fit()
    expected = tiny_dataset.train_labels[trainer.train_indices].sort().values
    assert torch.equal(torch.cat(targets[:7]).sort().values, expected)


def test_training_touches_no_test_image(tiny_config, tiny_dataset, monkeypatch) -> None:
    trainer = Trainer(tiny_config(), tiny_dataset, device="cpu")
    parts = []
    evaluate = trainer._evaluate

    def spy(split, **options):
        parts.append(split)
        return evaluate(split, **options)

    monkeypatch.setattr(trainer, "_evaluate", spy)
    trainer.fit()
    assert parts == ["validation"] * 2


def test_a_seed_decides_everything(tiny_config, tiny_dataset) -> None:
    weights = []
    for seed in (1, 1, 2):
        trainer = Trainer(tiny_config(seed=seed, epochs=1), tiny_dataset, device="cpu")
        trainer.fit()
        weights.append(trainer.model.conv.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        {"dataset": Mnist5kConfig(validation_fraction=0, max_shift=0)},
        {"model": {"routing": {"type": "uniform"}, "decoder": None}},
        {"model": {"routing": DynamicRoutingConfig(iterations=2, detach=True)}},
    ],
    ids=str,
)
def test_other_settings_train_too(tiny_config, tiny_dataset, tiny_net, changes) -> None:
    if "model" in changes:
        model = CapsNetConfig.model_validate({**dict(tiny_net), **changes["model"]})
        changes = {"model": model}
    trainer = Trainer(tiny_config(**changes), tiny_dataset, device="cpu")
    before = trainer.evaluate("test").classification_loss
    assert trainer.fit().stopped == "completed"
    assert trainer.evaluate("test").classification_loss != before


def test_without_a_validation_part_the_last_epoch_is_the_best(tiny_config, tiny_dataset) -> None:
    diary = Diary()
    config = tiny_config(dataset=Mnist5kConfig(validation_fraction=0))
    trainer = Trainer(config, tiny_dataset, device="cpu", callbacks=[diary])
    outcome = trainer.fit()
    assert [metrics.validation for metrics in diary.epochs] == [None, None]
    assert [metrics.is_best for metrics in diary.epochs] == [True, True]
    assert outcome.best.epoch == 2
    with pytest.raises(ValueError, match="validation_fraction is 0"):
        trainer.evaluate("validation")


def validation(accuracy: float, loss: float = 0.5) -> Evaluation:
    return Evaluation(loss, loss, 0, accuracy, None, 20)


def test_the_best_has_the_highest_accuracy_then_the_lowest_loss() -> None:
    best = Best(epoch=1, step=7, accuracy=0.8, total_loss=0.5)
    assert best.beaten_by(validation(0.9, 0.9))
    assert not best.beaten_by(validation(0.7, 0.1))
    assert best.beaten_by(validation(0.8, 0.4))
    assert not best.beaten_by(validation(0.8, 0.5))


def test_early_stopping_waits_for_a_better_accuracy(tiny_config, tiny_dataset, monkeypatch) -> None:
    diary = Diary()
    config = tiny_config(epochs=9, early_stopping=EarlyStoppingConfig(patience=2))
    trainer = Trainer(config, tiny_dataset, device="cpu", callbacks=[diary])
    # The third is better only in its loss: the best so far, but no rise of the accuracy.
    results = [validation(0.5), validation(0.7), validation(0.7, 0.4), validation(0.6)]
    answers = iter(results)
    monkeypatch.setattr(trainer, "_validate", lambda: next(answers))
    outcome = trainer.fit()
    assert (outcome.stopped, outcome.epoch, outcome.best.epoch) == ("early-stopping", 4, 3)
    assert [metrics.is_best for metrics in diary.epochs] == [True, True, True, False]
    assert trainer.fit().stopped == "early-stopping"
    assert trainer.step == 28


def test_a_requested_stop_comes_after_the_step_and_fit_goes_on(tiny_config, tiny_dataset) -> None:
    trainer = Trainer(tiny_config(), tiny_dataset, device="cpu", callbacks=[StopAt(3)])
    outcome = trainer.fit()
    assert (outcome.stopped, outcome.epoch, outcome.step) == ("requested", 0, 3)
    assert outcome.best is None
    assert trainer.fit().stopped == "completed"
    assert trainer.step == 14


def test_a_stop_requested_before_fit_counts(tiny_config, tiny_dataset) -> None:
    trainer = Trainer(tiny_config(), tiny_dataset, device="cpu")
    trainer.request_stop()
    assert trainer.fit().step == 0


def test_a_requested_stop_interrupts_the_evaluation(tiny_config, tiny_dataset, monkeypatch) -> None:
    trainer = Trainer(tiny_config(), tiny_dataset, device="cpu")
    validate = trainer._validate

    def validate_when_a_signal_comes() -> Evaluation | None:
        trainer.request_stop()
        return validate()

    monkeypatch.setattr(trainer, "_validate", validate_when_a_signal_comes)
    outcome = trainer.fit()
    assert (outcome.stopped, outcome.epoch, outcome.step) == ("requested", 0, 7)
    monkeypatch.undo()
    assert trainer.fit().stopped == "completed"
    assert trainer.step == 14


def test_divergence_is_named_before_it_reaches_the_weights(tiny_config, tiny_dataset) -> None:
    config = tiny_config(optimizer=OptimizerConfig(learning_rate=1e-3))
    trainer = Trainer(config, tiny_dataset, device="cpu", callbacks=[StopAt(3)])
    trainer.fit()
    with torch.no_grad():
        trainer.model.decoder.layers[0].bias.fill_(float("nan"))
    with pytest.raises(
        DivergedError, match="reconstruction loss is not finite at step 4"
    ) as caught:
        trainer.fit()
    assert (caught.value.term, caught.value.step) == ("reconstruction loss", 4)
    assert trainer.model.conv.weight.isfinite().all()
    with pytest.raises(DivergedError):
        trainer.state_dict()


def test_weights_that_diverge_at_the_last_step_are_found_by_the_evaluation(
    tiny_config, tiny_dataset
) -> None:
    trainer = Trainer(tiny_config(), tiny_dataset, device="cpu")
    with torch.no_grad():
        trainer.model.class_caps.weight.fill_(float("nan"))
    with pytest.raises(DivergedError, match="test loss"):
        trainer.evaluate("test")


def terms(classification: float, reconstruction: float, total: float) -> LossTerms:
    return LossTerms(*(torch.tensor(v) for v in (total, classification, reconstruction)))


def test_the_guard_names_the_first_bad_step() -> None:
    guard, nan, fine = DivergenceGuard(torch.device("cpu")), float("nan"), torch.tensor(1.0)
    guard.watch(terms(1.0, 1.0, 1.0), fine, 1)
    assert guard.find() is None
    assert guard.tripped == 0
    guard.watch(terms(1.0, nan, nan), torch.tensor(nan), 2)
    guard.watch(terms(nan, nan, nan), torch.tensor(nan), 3)
    assert guard.find() == ("reconstruction loss", 2)
    assert guard.tripped == 1


class Sabotage(Callback):
    """Makes something infinite after a step, so that the next one fails."""

    def __init__(self, after: int, break_it: Callable[[Trainer], None]) -> None:
        self.after = after
        self.break_it = break_it

    def on_step(self, trainer: Trainer, metrics: StepMetrics) -> None:
        if metrics.step == self.after:
            self.break_it(trainer)


def infinite_weight(trainer: Trainer) -> None:
    with torch.no_grad():
        trainer.model.decoder.layers[0].weight[0, 0] = float("inf")


def infinite_activation(trainer: Trainer) -> None:
    trainer.model.primary_caps.register_forward_hook(
        lambda *_: torch.tensor(float("inf")).expand(_[2].shape)
    )


def infinite_gradient(trainer: Trainer) -> None:
    trainer.model.class_caps.weight.register_hook(lambda gradient: gradient * float("inf"))


@pytest.mark.parametrize(
    ("break_it", "term", "culprit"),
    [
        (infinite_weight, "reconstruction loss", "the weights decoder.layers.0.weight"),
        (infinite_activation, "classification loss", "the output of primary_caps"),
        (infinite_gradient, "gradient", "the gradient of class_caps.weight"),
    ],
)
def test_a_divergence_is_diagnosed(
    tiny_config, tiny_dataset, break_it: Callable[[Trainer], None], term: str, culprit: str
) -> None:
    trainer = Trainer(tiny_config(), tiny_dataset, device="cpu", callbacks=[Sabotage(3, break_it)])
    with pytest.raises(DivergedError, match=r"at step 4, first seen in .*last good step is 3") as e:
        trainer.fit()
    assert (e.value.term, e.value.culprit, e.value.last_good_step) == (term, culprit, 3)


def test_weights_stay_those_of_the_last_good_step_until_the_guard_is_asked(
    tiny_config, tiny_dataset, monkeypatch
) -> None:
    """As on a GPU, where the guard is asked only now and then."""
    trainer = Trainer(tiny_config(), tiny_dataset, device="cpu")
    batch = trainer.examples("train", 8).as_pixels()
    for _ in range(2):
        trainer.train_on(batch)
    good = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    check = trainer._check_guard
    monkeypatch.setattr(trainer, "_check_guard", lambda: None)
    infinite_gradient(trainer)
    for _ in range(3):
        trainer.train_on(batch)
    assert all(torch.equal(good[name], value) for name, value in trainer.model.state_dict().items())
    with pytest.raises(DivergedError, match="gradient is not finite at step 3"):
        check()


def test_the_gradient_is_clipped_to_the_length_asked_for(tiny_config, tiny_dataset) -> None:
    lengths = []
    for limit in (None, 1e-3):
        optimizer = OptimizerConfig(max_gradient_norm=limit)
        trainer = Trainer(tiny_config(optimizer=optimizer), tiny_dataset, device="cpu")
        batch = trainer.examples("train", 8).as_pixels()
        _, before = trainer.train_on(batch)
        after = torch.stack([w.grad.norm() for w in trainer.model.parameters()]).norm()
        lengths.append((before.item(), after.item()))
    (unclipped, same), (reported, clipped) = lengths
    assert unclipped == pytest.approx(same)
    assert reported == pytest.approx(unclipped)
    assert unclipped > 2e-3
    assert clipped == pytest.approx(1e-3, rel=1e-3)


def test_deterministic_mode_is_on_in_training_and_off_after_it(tiny_config, tiny_dataset) -> None:
    seen = []

    class Look(Callback):
        def on_step(self, trainer: Trainer, metrics: StepMetrics) -> None:
            seen.append(torch.are_deterministic_algorithms_enabled())

    for wanted in (False, True):
        seen.clear()
        config = tiny_config(deterministic=wanted)
        Trainer(config, tiny_dataset, device="cpu", callbacks=[Look()]).fit()
        assert set(seen) == {wanted}
        assert not torch.are_deterministic_algorithms_enabled()


def test_fewer_images_of_each_class(tiny_config, tiny_dataset) -> None:
    config = tiny_config(dataset=Mnist5kConfig(validation_fraction=0.2, per_class=3))
    trainer = Trainer(config, tiny_dataset, device="cpu")
    chosen = tiny_dataset.train_labels[trainer.train_indices]
    assert torch.bincount(chosen).tolist() == [3] * 10
    assert not set(trainer.train_indices.tolist()) & set(trainer.validation_indices.tolist())


def test_data_that_do_not_fit_the_model_are_refused(tiny_config, tiny_dataset) -> None:
    smaller = Dataset(
        name="small",
        train_images=tiny_dataset.train_images[..., :20],
        train_labels=tiny_dataset.train_labels,
        test_images=tiny_dataset.test_images[..., :20],
        test_labels=tiny_dataset.test_labels,
        classes=10,
    )
    with pytest.raises(ValueError, match=r"'small' has images \[1, 28, 20\]"):
        Trainer(tiny_config(), smaller, device="cpu")


def test_throughput_counts_the_last_steps(monkeypatch) -> None:
    clock = iter([0.0, 1.0, 2.0, 4.0])
    monkeypatch.setattr("capsmodel.metrics.time.perf_counter", lambda: next(clock))
    throughput = Throughput(steps=2)
    assert throughput.add(10) == 10
    assert throughput.add(30) == 20
    assert throughput.add(60) == 30  # 90 images in the 3 seconds of the last two steps


@pytest.mark.parametrize("limit", [1, 20, 29, 30, 100])
def test_examples_are_spread_over_the_whole_part(tiny_config, tiny_dataset, limit: int) -> None:
    """Sets may be sorted by class: the first images alone would be of the first classes."""
    trainer = Trainer(tiny_config(), tiny_dataset, device="cpu")
    shown = trainer.examples("test", limit).images
    expected = [k * 30 // min(limit, 30) for k in range(min(limit, 30))]
    assert torch.equal(shown, tiny_dataset.test_images[expected])


def test_early_stopping_is_refused_where_nothing_is_held_out(tiny_config, tiny_dataset) -> None:
    config = tiny_config(
        dataset=Mnist5kConfig(validation_fraction=0.01),
        early_stopping=EarlyStoppingConfig(patience=2),
    )
    with pytest.raises(ValueError, match=r"0.01, which of each class of 100 images holds out none"):
        Trainer(config, tiny_dataset, device="cpu")
