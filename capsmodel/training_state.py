"""The state of a training as tensors and plain Python values: taking it, and putting it back."""

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from capsmodel.config import TrainingConfig
from capsmodel.metrics import Best

if TYPE_CHECKING:
    from capsmodel.training import Trainer

FORMAT = 2
MAY_DIFFER = {"epochs", "early_stopping"}
"""Settings that only say when to end: a state may be loaded into a training with others."""


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
    }
    copied: dict[str, Any] = _copy(state)
    return copied


def restore_state(trainer: "Trainer", state: dict[str, Any]) -> None:
    """Put a state back; nothing is changed if it does not fit.

    Raises:
        IncompatibleStateError: It is the state of another configuration or other data.
    """
    _check(trainer, state)
    restore_weights(trainer, state)
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
    weights = state.get("model")
    if not isinstance(weights, dict):
        raise IncompatibleStateError("the state holds no weights: it is not a Trainer's")
    own = {name: list(value.shape) for name, value in trainer.model.state_dict().items()}
    given = {name: list(value.shape) for name, value in weights.items()}
    different = sorted(
        name for name in own.keys() | given.keys() if own.get(name) != given.get(name)
    )
    if different:
        name = different[0]
        raise IncompatibleStateError(
            f"{len(different)} weights do not fit the model; the first is {name}: "
            f"{given.get(name, 'missing')} in the state, {own.get(name, 'missing')} in the model"
        )
    trainer.model.load_state_dict(weights)


def _check(trainer: "Trainer", state: dict[str, Any]) -> None:
    if state.get("format") != FORMAT:
        raise IncompatibleStateError(
            f"the state has format {state.get('format')!r}, this release reads {FORMAT}"
        )
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
