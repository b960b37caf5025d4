"""The state of a training as tensors and plain Python values: taking it, and putting it back."""

import hashlib
import json
import logging
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import torch

import capsmodel
from capsmodel.config import TrainingConfig
from capsmodel.metrics import Best

if TYPE_CHECKING:
    from capsmodel.training import Trainer

logger = logging.getLogger(__name__)

FORMAT = 2
MAY_DIFFER = {"epochs", "early_stopping"}
"""Settings that only say when to end: a state may be loaded into a training with others."""


KEYS = (
    "format",
    "config",
    "dataset",
    "epoch",
    "step",
    "best",
    "stale_epochs",
    "model",
    "optimizer",
    "sampler",
    "draws",
    "epoch_means",
    "rng_cpu",
    "rng_cuda",
)
"""What a state consists of."""
MADE_BY = "made_by"
"""What took the state. It decides nothing, and states of earlier releases lack it; it tells where a
training goes on bit for bit."""
ADAM_SETTINGS = {"lr", "betas", "eps", "params"}
ADAM_MEMORY = {"step", "exp_avg", "exp_avg_sq"}
"""What Adam keeps of each weight: a number and two tensors of the weight's shape."""


class IncompatibleStateError(ValueError):
    """A state belongs to another configuration, other data or another model."""


def config_digest(config: TrainingConfig) -> str:
    """Digest of the settings that decide what a training computes at each step."""
    settings = config.model_dump(mode="json", include=set(TrainingConfig.model_fields) - MAY_DIFFER)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def take_state(trainer: "Trainer") -> dict[str, Any]:
    """The whole state of a training; it shares no memory with the trainer."""
    state: dict[str, Any] = {
        "format": FORMAT,
        "config": config_digest(trainer.config),
        "dataset": trainer.dataset.sha256,
        "epoch": trainer.epoch,
        "step": trainer.step,
        "best": asdict(trainer.best) if trainer.best else None,
        "stale_epochs": trainer.stale_epochs,
        "model": dict(trainer.model.state_dict()),
        "optimizer": trainer.optimizer.state_dict(),
        "sampler": trainer.sampler.state_dict(),
        "draws": trainer.draws.get_state(),
        "epoch_means": trainer.epoch_means.state_dict(),
        "rng_cpu": torch.get_rng_state(),
        "rng_cuda": _cuda_rng_state(trainer.device),
        MADE_BY: _maker(trainer),
    }
    copied: dict[str, Any] = _copy(state)
    return copied


def restore_state(trainer: "Trainer", state: dict[str, Any]) -> None:
    """Put a state back; nothing is changed if it does not fit.

    A state holds nothing that is one rank's alone, so any number of processes may go on with it.
    With the same number, software and kind of device they do so bit for bit.

    Raises:
        IncompatibleStateError: It is the state of another configuration or other data, or lacks
            something.
    """
    _check(trainer, state)
    _tell_other_maker(state.get(MADE_BY), _maker(trainer))
    trainer.model.load_state_dict(state["model"])
    trainer.optimizer.load_state_dict(_copy(state["optimizer"]))
    trainer.sampler.load_state_dict(state["sampler"])
    trainer.draws.set_state(state["draws"])
    trainer.epoch_means.load_state_dict(state["epoch_means"])
    trainer.epoch = state["epoch"]
    trainer.step = state["step"]
    trainer.best = Best(**state["best"]) if state["best"] else None
    trainer.stale_epochs = state["stale_epochs"]
    torch.set_rng_state(state["rng_cpu"])
    if state["rng_cuda"] is not None and trainer.device.type == "cuda":
        torch.cuda.set_rng_state(state["rng_cuda"], trainer.device)


def restore_weights(trainer: "Trainer", state: dict[str, Any]) -> None:
    """Copy the model's weights out of a state; nothing is changed if they do not fit.

    Raises:
        IncompatibleStateError: They are missing, or those of another model.
    """
    _check_weights(trainer, state)
    trainer.model.load_state_dict(state["model"])


def _maker(trainer: "Trainer") -> dict[str, Any]:
    return {
        "release": capsmodel.__version__,
        "torch": str(torch.__version__),
        "device": trainer.device.type,
        "processes": trainer.ranks.size,
    }


def _tell_other_maker(maker: Any, own: dict[str, Any]) -> None:
    """Tell that the training goes on, but not with the bits of one that was never interrupted."""
    if not isinstance(maker, dict):
        return
    different = [
        f"{name} {maker[name]}, now {value}"
        for name, value in own.items()
        if maker.get(name, value) != value
    ]
    if different:
        logger.warning(
            "the state was taken elsewhere (%s): training goes on from it, but not bit for bit as "
            "it would have there",
            "; ".join(different),
        )


def _check(trainer: "Trainer", state: dict[str, Any]) -> None:
    if state.get("format") != FORMAT:
        raise IncompatibleStateError(
            f"the state has format {state.get('format')!r}, this release reads {FORMAT}"
        )
    missing = [name for name in KEYS if name not in state]
    if missing:
        raise IncompatibleStateError(f"the state lacks {', '.join(missing)}")
    if state["config"] != config_digest(trainer.config):
        raise IncompatibleStateError(
            "the state belongs to another configuration; only "
            f"{' and '.join(sorted(MAY_DIFFER))} may differ"
        )
    if state["dataset"] != trainer.dataset.sha256:
        raise IncompatibleStateError(
            f"the state was trained on data with sha256 {state['dataset']}, "
            f"these have {trainer.dataset.sha256}"
        )
    _check_weights(trainer, state)
    _check_optimizer(trainer, state["optimizer"])
    for name in ("epoch", "step", "stale_epochs"):
        _check_alike(name, state[name], 0)
    if state["best"] is not None:
        names = {field.name for field in fields(Best)}
        _check_keys("best", state["best"], names)
        if unknown := sorted(state["best"].keys() - names):
            raise IncompatibleStateError(f"the state's best has {', '.join(unknown)} too")
    _check_alike("sampler", state["sampler"], trainer.sampler.state_dict())
    _check_alike("epoch_means", state["epoch_means"], trainer.epoch_means.state_dict())
    generators = {
        "sampler.generator": state["sampler"]["generator"],
        "draws": state["draws"],
        "rng_cpu": state["rng_cpu"],
    }
    for name, value in generators.items():
        _check_alike(name, value, torch.get_rng_state())
        try:
            torch.Generator().set_state(value)
        except (RuntimeError, TypeError) as error:
            raise IncompatibleStateError(f"the state's {name} is none: {error}") from error
    if state["rng_cuda"] is not None and trainer.device.type == "cuda":
        _check_alike("rng_cuda", state["rng_cuda"], _cuda_rng_state(trainer.device))


def _check_weights(trainer: "Trainer", state: dict[str, Any]) -> None:
    weights = state.get("model")
    if not isinstance(weights, dict):
        raise IncompatibleStateError("the state holds no weights: it is not a Trainer's")
    own = {name: _form(value) for name, value in trainer.model.state_dict().items()}
    given = {name: _form(value) for name, value in weights.items()}
    different = sorted(
        name for name in own.keys() | given.keys() if own.get(name) != given.get(name)
    )
    if different:
        name, count = different[0], len(different)
        which = f"{count} weights do not fit the model; the first is {name}"
        if count == 1:
            which = f"1 weight does not fit the model: {name}"
        raise IncompatibleStateError(
            f"{which}: {given.get(name, 'missing')} in the state, "
            f"{own.get(name, 'missing')} in the model"
        )


def _check_optimizer(trainer: "Trainer", given: Any) -> None:
    """Whether Adam's memory is that of these weights; it is empty before the first step."""
    _check_keys("optimizer", given, {"state", "param_groups"})
    own = trainer.optimizer.state_dict()["param_groups"]
    groups = given["param_groups"]
    if not isinstance(groups, list) or len(groups) != len(own):
        raise IncompatibleStateError(f"the state's optimizer.param_groups are not {len(own)}")
    for number, (group, own_group) in enumerate(zip(groups, own, strict=True)):
        _check_keys(f"optimizer.param_groups[{number}]", group, ADAM_SETTINGS)
        if group["params"] != own_group["params"]:
            raise IncompatibleStateError(
                f"the state's optimizer.param_groups[{number}] has other params"
            )
    _check_keys("optimizer.state", given["state"], set())
    weights = [weight for group in trainer.optimizer.param_groups for weight in group["params"]]
    for number, memory in given["state"].items():
        name = f"optimizer.state[{number!r}]"
        if number not in range(len(weights)):
            raise IncompatibleStateError(f"the state's {name} belongs to no weight")
        _check_keys(name, memory, ADAM_MEMORY)
        for key in ADAM_MEMORY:
            wanted = [] if key == "step" else _form(weights[number])
            if _form(memory[key]) != wanted:
                raise IncompatibleStateError(
                    f"the state's {name}.{key} is {_form(memory[key])}, expected {wanted}"
                )


def _check_keys(name: str, given: Any, keys: set[str]) -> None:
    """Whether a part of the state is a dict with at least these keys."""
    if not isinstance(given, dict):
        raise IncompatibleStateError(f"the state's {name} is a {type(given).__name__}, not a dict")
    if missing := sorted(keys - given.keys()):
        raise IncompatibleStateError(f"the state's {name} lacks {', '.join(missing)}")


def _check_alike(name: str, given: Any, own: Any) -> None:
    """Whether a part of the state has the form of the training's own."""
    if isinstance(own, dict):
        _check_keys(name, given, set(own))
        for key, value in own.items():
            _check_alike(f"{name}.{key}", given[key], value)
    elif _form(given) != _form(own):
        raise IncompatibleStateError(f"the state's {name} is {_form(given)}, expected {_form(own)}")


def _form(value: Any) -> list[int] | str:
    """A tensor's shape; of anything else the name of its type."""
    return list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__


def _cuda_rng_state(device: torch.device) -> torch.Tensor | None:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _copy(value: Any) -> Any:
    """A copy of nested dicts, lists and tuples in which no tensor shares memory, on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copy(item) for item in value)
    return value
