"""Weights of convolutions with the channels last in memory, which a GPU's tensor cores read.

A convolution whose weight lies so takes and gives its features so, whatever its input was. States
stay as they ever were: their tensors are contiguous, and go to any device.
"""

from typing import Any

import torch
from torch import Tensor, nn

ADAM_MEMORY = ("exp_avg", "exp_avg_sq")


def put_channels_last(model: nn.Module) -> None:
    """Lay the weights of all convolutions out anew.

    Not the capsules' matrices, which have four dimensions too: their kernels read them contiguous.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.register_state_dict_post_hook(_contiguous_weights)  # type: ignore[no-untyped-call]


def follow_weights(optimizer: torch.optim.Adam) -> None:
    """Let Adam's memory lie as the weights do, after a state was loaded too."""
    optimizer.register_state_dict_post_hook(_contiguous_memory)
    optimizer.register_load_state_dict_post_hook(_memory_as_weights)


def _contiguous_weights(model: nn.Module, state: dict[str, Any], *_: Any) -> None:
    for name, value in state.items():
        if isinstance(value, Tensor):
            state[name] = _contiguous(value)


def _contiguous_memory(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    memory = {
        number: {key: _contiguous(value) for key, value in kept.items()}
        for number, kept in state["state"].items()
    }
    return {**state, "state": memory}


def _memory_as_weights(optimizer: torch.optim.Optimizer) -> None:
    """Fused Adam refuses a weight and its memory where they lie differently."""
    for weight, kept in optimizer.state.items():
        for key in ADAM_MEMORY:
            if key in kept and kept[key].stride() != weight.stride():
                kept[key] = torch.empty_like(weight, requires_grad=False).copy_(kept[key])


def _contiguous(value: Tensor) -> Tensor:
    """The tensor itself where it is; with one channel `is_contiguous` would not see it."""
    standard = torch.empty(value.shape, device="meta").stride()
    if value.stride() == standard:
        return value
    return value.detach().clone(memory_format=torch.contiguous_format)
