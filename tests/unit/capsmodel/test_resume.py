"""A training that was interrupted and resumed equals one that never stopped, bit for bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import capsmodel
from capsmodel.callbacks import Callback
from capsmodel.checkpoint import load_checkpoint, save_checkpoint
from capsmodel.config import CosineScheduleConfig, EarlyStoppingConfig
from capsmodel.metrics import EpochMetrics, StepMetrics
from capsmodel.training import Trainer
from capsmodel.training_state import KEYS, MADE_BY, IncompatibleStateError


class Recorder(Callback):
    """Keeps what does not depend on the clock, and the state after one step."""

    def __init__(self, save_at: int | None = None) -> None:
        self.save_at = save_at
        self.state = None
        self.steps: dict[int, list[float]] = {}
        self.epochs: list[tuple] = []

    def on_step(self, trainer: Trainer, metrics: StepMetrics) -> None:
        self.steps[metrics.step] = [metrics.learning_rate, *metrics.measures.tolist()]
        if metrics.step == self.save_at:
            self.state = trainer.state_dict()

    def on_epoch(self, trainer: Trainer, metrics: EpochMetrics) -> None:
        self.epochs.append((metrics.epoch, metrics.train, metrics.validation, metrics.is_best))


def assert_same(first: object, second: object) -> None:
    """Equal to the last bit, through nested containers."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert_same(value, second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert first == second


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("step", [1, 3, 7, 10, 14])  # 7 and 14 end epochs not yet evaluated
def test_resume_is_bit_exact(tiny_config, tiny_dataset, tmp_path, step, precision) -> None:
    config = tiny_config(
        epochs=3, precision=precision, schedule=CosineScheduleConfig(warmup_steps=5)
    )
    whole = Recorder(save_at=step)
    uninterrupted = Trainer(config, tiny_dataset, device="cpu", callbacks=[whole])
    uninterrupted.fit()

    info = save_checkpoint(tmp_path / "state.pt", whole.state, epoch=0, step=step)
    torch.manual_seed(1234)
    rest = Recorder()
    resumed = Trainer(config, tiny_dataset, device="cpu", callbacks=[rest])
    resumed.load_state_dict(load_checkpoint(info.path))
    assert resumed.step == step
    outcome = resumed.fit()

    assert rest.steps == {s: m for s, m in whole.steps.items() if s > step}
    assert rest.epochs == whole.epochs[-len(rest.epochs) :]
    assert outcome.best == uninterrupted.best
    assert_same(resumed.state_dict(), uninterrupted.state_dict())


def test_a_state_from_the_end_of_an_epoch_starts_the_next(tiny_config, tiny_dataset) -> None:
    class SaveEpoch(Callback):
        def on_epoch(self, trainer: Trainer, metrics: EpochMetrics) -> None:
            if metrics.epoch == 1:
                self.state = trainer.state_dict()

    saver = SaveEpoch()
    uninterrupted = Trainer(tiny_config(), tiny_dataset, device="cpu", callbacks=[saver])
    uninterrupted.fit()
    resumed = Trainer(tiny_config(), tiny_dataset, device="cpu")
    resumed.load_state_dict(saver.state)
    assert (resumed.epoch, resumed.step) == (1, 7)
    assert resumed.best is not None
    resumed.fit()
    assert_same(resumed.state_dict(), uninterrupted.state_dict())


def test_a_state_shares_no_memory_with_the_training(tiny_config, tiny_dataset) -> None:
    recorder = Recorder(save_at=3)
    trainer = Trainer(tiny_config(epochs=1), tiny_dataset, device="cpu", callbacks=[recorder])
    trainer.fit()
    kept = recorder.state["model"]["conv.weight"].clone()
    other = Trainer(tiny_config(epochs=1), tiny_dataset, device="cpu")
    other.load_state_dict(recorder.state)
    other.fit()
    assert torch.equal(recorder.state["model"]["conv.weight"], kept)
    assert recorder.state["sampler"]["position"] == 3


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"batch_size": 13}, {"precision": "bf16"}], ids=str
)
def test_the_state_of_another_configuration_is_refused(tiny_config, tiny_dataset, changes) -> None:
    state = Trainer(tiny_config(), tiny_dataset, device="cpu").state_dict()
    trainer = Trainer(tiny_config(**changes), tiny_dataset, device="cpu")
    with pytest.raises(IncompatibleStateError, match="another configuration"):
        trainer.load_state_dict(state)


def test_a_finished_training_can_be_made_longer(tiny_config, tiny_dataset) -> None:
    trainer = Trainer(tiny_config(epochs=1), tiny_dataset, device="cpu")
    trainer.fit()
    config = tiny_config(epochs=2, early_stopping=EarlyStoppingConfig(patience=9))
    longer = Trainer(config, tiny_dataset, device="cpu")
    longer.load_state_dict(trainer.state_dict())
    outcome = longer.fit()
    assert (outcome.stopped, outcome.step) == ("completed", 14)


def test_the_settings_around_a_training_do_not_matter(tiny_config, tiny_dataset) -> None:
    class Job(type(tiny_config())):
        name: str = "job"

    config = tiny_config()
    state = Trainer(config, tiny_dataset, device="cpu").state_dict()
    job = Job(name="other", **dict(config))
    Trainer(job, tiny_dataset, device="cpu").load_state_dict(state)


def test_the_state_of_other_data_is_refused(tiny_config, tiny_dataset) -> None:
    state = Trainer(tiny_config(), tiny_dataset, device="cpu").state_dict()
    state["dataset"] = "0" * 64
    with pytest.raises(IncompatibleStateError, match="0000"):
        Trainer(tiny_config(), tiny_dataset, device="cpu").load_state_dict(state)


def test_an_unknown_format_is_refused(tiny_config, tiny_dataset) -> None:
    trainer = Trainer(tiny_config(), tiny_dataset, device="cpu")
    with pytest.raises(IncompatibleStateError, match="format 99"):
        trainer.load_state_dict({"format": 99})


def test_a_new_training_starts_from_anothers_weights(tiny_config, tiny_dataset) -> None:
    first = Trainer(tiny_config(), tiny_dataset, device="cpu")
    first.fit()
    second = Trainer(tiny_config(seed=5, batch_size=20), tiny_dataset, device="cpu")
    second.load_weights(first.state_dict())
    assert_same(dict(second.model.state_dict()), dict(first.model.state_dict()))
    assert (second.step, second.epoch, second.best) == (0, 0, None)


def test_weights_of_another_model_are_refused(tiny_config, tiny_dataset, tiny_net) -> None:
    wider = tiny_config(model=tiny_net.model_copy(update={"class_dim": 7}))
    state = Trainer(wider, tiny_dataset, device="cpu").state_dict()
    trainer = Trainer(tiny_config(), tiny_dataset, device="cpu")
    before = trainer.model.conv.weight.detach().clone()
    with pytest.raises(IncompatibleStateError, match=r"class_caps\.weight"):
        trainer.load_weights(state)
    assert torch.equal(trainer.model.conv.weight, before)
    with pytest.raises(IncompatibleStateError, match="no weights"):
        trainer.load_weights({})
    wrong = {"model": dict.fromkeys(state["model"], torch.zeros(1))}
    with pytest.raises(IncompatibleStateError, match=r"\d+ weights do not fit .* first is "):
        trainer.load_weights(wrong)


@pytest.fixture
def trained(tiny_config, tiny_dataset) -> Trainer:
    trainer = Trainer(tiny_config(epochs=1), tiny_dataset, device="cpu")
    trainer.fit()
    return trainer


def check_refused_whole(trainer: Trainer, state: dict[str, Any], message: str) -> None:
    """The state is refused, and neither the training nor torch's generator has changed."""
    before = trainer.state_dict()
    with pytest.raises(IncompatibleStateError, match=message):
        trainer.load_state_dict(state)
    assert_same(trainer.state_dict(), before)


def test_a_state_has_no_other_keys_than_are_looked_for(trained) -> None:
    assert set(trained.state_dict()) == {*KEYS, MADE_BY}


def test_a_state_tells_what_took_it_and_another_maker_is_told(trained, caplog) -> None:
    state = trained.state_dict()
    assert state[MADE_BY] == {
        "release": capsmodel.__version__,
        "torch": torch.__version__,
        "device": "cpu",
        "processes": 1,
    }
    trained.load_state_dict(state)
    trained.load_state_dict({key: state[key] for key in KEYS})  # of an earlier release
    assert caplog.messages == []
    trained.load_state_dict({**state, MADE_BY: {**state[MADE_BY], "processes": 4}})
    (told,) = caplog.messages
    assert "processes 4, now 1" in told
    assert "not bit for bit" in told


@pytest.mark.parametrize("key", KEYS)
def test_nothing_is_changed_where_something_is_missing(
    tiny_config, tiny_dataset, trained, key
) -> None:
    state = trained.state_dict()
    del state[key]
    message = "format None" if key == "format" else f"the state lacks {key}$"
    fresh = Trainer(tiny_config(epochs=1), tiny_dataset, device="cpu")
    check_refused_whole(fresh, state, message)


def without(*keys: Any) -> Callable[[dict[str, Any]], None]:
    def remove(state: dict[str, Any]) -> None:
        inner: Any = state
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]

    return remove


def with_other(value: Any, *keys: Any) -> Callable[[dict[str, Any]], None]:
    def replace(state: dict[str, Any]) -> None:
        inner: Any = state
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value

    return replace


DAMAGES = {
    r"optimizer lacks state": without("optimizer", "state"),
    r"optimizer lacks param_groups": without("optimizer", "param_groups"),
    r"optimizer is a list": with_other([], "optimizer"),
    r"param_groups are not 1": with_other([], "optimizer", "param_groups"),
    r"param_groups\[0\] lacks lr": without("optimizer", "param_groups", 0, "lr"),
    r"param_groups\[0\] lacks params": without("optimizer", "param_groups", 0, "params"),
    r"has other params": with_other([0, 1], "optimizer", "param_groups", 0, "params"),
    r"state\[0\] lacks exp_avg_sq": without("optimizer", "state", 0, "exp_avg_sq"),
    r"state\[0\]\.exp_avg is \[3\]": with_other(torch.zeros(3), "optimizer", "state", 0, "exp_avg"),
    r"state\[99\] belongs to no weight": with_other({}, "optimizer", "state", 99),
    r"sampler lacks position": without("sampler", "position"),
    r"sampler lacks generator": without("sampler", "generator"),
    r"sampler.position is str": with_other("3", "sampler", "position"),
    r"epoch_means lacks sums": without("epoch_means", "sums"),
    r"epoch_means.sums is \[2\]": with_other(torch.zeros(2), "epoch_means", "sums"),
    r"best lacks accuracy": without("best", "accuracy"),
    r"best has colour too": with_other("blue", "best", "colour"),
    r"draws is \[5\]": with_other(torch.zeros(5, dtype=torch.uint8), "draws"),
    r"rng_cpu is none": with_other(torch.zeros(5056, dtype=torch.uint8), "rng_cpu"),
    r"draws is none": with_other(torch.zeros(5056), "draws"),
    r"step is NoneType": with_other(None, "step"),
    r"1 weight does not fit the model: conv.bias": with_other(None, "model", "conv.bias"),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_nothing_is_changed_where_a_part_does_not_fit(
    tiny_config, tiny_dataset, trained, message
) -> None:
    state = trained.state_dict()
    DAMAGES[message](state)
    fresh = Trainer(tiny_config(epochs=1), tiny_dataset, device="cpu")
    check_refused_whole(fresh, state, message)


def test_a_state_from_before_the_first_step_fits(tiny_config, tiny_dataset, trained) -> None:
    start = Trainer(tiny_config(epochs=1), tiny_dataset, device="cpu").state_dict()
    trained.load_state_dict(start)
    assert_same(trained.state_dict(), start)
