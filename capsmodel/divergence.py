"""Detection of losses and gradients that are no longer finite, and where they come from.

The guard looks on the device at every step and the caller asks it now and then, so that a GPU is
not waited for. From the first bad step on it holds back the optimizer's updates: the weights stay
those of the last good step.
"""

from typing import Any

import torch
from torch import Tensor, nn

from capsmodel.batch import Batch
from capsmodel.losses import Loss, LossTerms
from capsmodel.model import Model
from capsmodel.precision import Precision, exact_fp32, mixed_precision

TERMS = ("classification loss", "reconstruction loss", "total loss", "gradient")
"""The parts come first: where one is not finite, neither are those after it."""


class DivergedError(ArithmeticError):
    """A term of the loss, or the gradient, became infinite or NaN.

    Attributes:
        term: Which term, of `TERMS` (or that of an evaluation).
        step: The step at which it did.
        culprit: Where it was first seen in the network; None where that is not known.
        last_good_step: The last step whose weights are finite.
    """

    def __init__(self, term: str, step: int, culprit: str | None = None) -> None:
        self.term = term
        self.step = step
        self.culprit = culprit
        self.last_good_step = max(0, step - 1)
        where = f", first seen in {culprit}" if culprit else ""
        super().__init__(
            f"the {term} is not finite at step {step}{where}; the last good step is "
            f"{self.last_good_step}. Use a lower learning rate, a warm-up "
            "(schedule.warmup_steps) or clipping (optimizer.max_gradient_norm)"
        )


class DivergenceGuard:
    """Remembers on the device at which step each term first was not finite."""

    def __init__(self, device: torch.device) -> None:
        self._first_bad = torch.zeros(len(TERMS), dtype=torch.int64, device=device)  # 0: none
        self.tripped = torch.zeros((), device=device)
        """1 from the first bad step on, else 0: what `torch.optim` calls `found_inf`."""

    def watch(self, terms: LossTerms, gradient_norm: Tensor, step: int) -> None:
        """Take note of what `step` (from 1) computed."""
        values = (terms.classification, terms.reconstruction, terms.total, gradient_norm)
        finite = torch.stack([value.detach().double() for value in values]).isfinite()
        self._first_bad.masked_fill_(~finite & (self._first_bad == 0), step)
        self.tripped.copy_((self._first_bad > 0).any())

    def find(self) -> tuple[str, int] | None:
        """The first bad term and its step; waits for the device."""
        if not self.tripped:
            return None
        found = zip(self._first_bad.tolist(), TERMS, strict=True)
        step, term = min((pair for pair in found if pair[0] > 0), key=lambda pair: pair[0])
        return term, step


def find_culprit(model: Model, loss: Loss, batch: Batch, precision: Precision) -> str | None:
    """Compute a bad step once more and name the first value on its way that is not finite.

    Args:
        model: With the weights of that step; its gradients are lost.
        loss: The training's loss.
        batch: The step's batch, pixels.
        precision: The training's precision.

    Returns:
        A weight, the output of a layer, or the gradient of a weight, by the model's own names;
        None if the step turns out finite.
    """
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            return f"the weights {name}"
    if not batch.images.isfinite().all():
        return "the images"
    outputs: list[str] = []
    hooks = [
        module.register_forward_hook(_note_bad_output(f"the output of {name}", outputs))
        for name, module in model.named_modules()
        if name
    ]
    try:
        model.zero_grad()
        device = batch.images.device
        with exact_fp32(device, precision):
            with mixed_precision(device, precision):
                output = model.compute(batch.images, batch.labels)
            loss(output, batch).total.backward()  # type: ignore[no-untyped-call]
    finally:
        for hook in hooks:
            hook.remove()
    if outputs:
        return outputs[0]
    for name, weight in reversed(list(model.named_parameters())):  # in the order of backward
        if weight.grad is not None and not weight.grad.isfinite().all():
            return f"the gradient of {name}"
    return None


def _note_bad_output(name: str, found: list[str]) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not output.isfinite().all():
            found.append(name)

    return hook
