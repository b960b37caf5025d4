"""Detection of losses and gradients that are no longer finite, and where they come from.

The guard looks on the device at every step and the caller asks it now and then: for certain, which
waits for a GPU, or by glances, which do not but come late. From the first bad step on it holds back
the optimizer's updates: the weights stay those of the last good step.
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
    """Remembers on the device at which step each term first was not finite.

    Its tensors stay where they are: a recorded step writes to them.
    """

    def __init__(self, device: torch.device) -> None:
        self._first_bad = torch.zeros(len(TERMS), dtype=torch.int64, device=device)  # 0: none
        self.tripped = torch.zeros((), device=device)
        """1 from the first bad step on, else 0: what `torch.optim` calls `found_inf`."""
        self._told = torch.zeros_like(self._first_bad, device="cpu")
        """What the last glance sent for; not to be read before it has arrived."""
        self._arrival: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._told = self._told.pin_memory()  # or the copy would be waited for
            self._arrival = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def reset(self) -> None:
        """Forget everything."""
        self._first_bad.zero_()
        self.tripped.zero_()
        self._arrive()
        self._told.zero_()

    def watch(self, terms: LossTerms, gradient_norm: Tensor, step: int | Tensor) -> None:
        """Take note of what `step` (from 1) computed."""
        values = (terms.classification, terms.reconstruction, terms.total, gradient_norm)
        finite = torch.stack([value.detach().double() for value in values]).isfinite()
        newly_bad = ~finite & (self._first_bad == 0)
        self._first_bad.copy_(torch.where(newly_bad, step, self._first_bad))
        self.tripped.copy_((self._first_bad > 0).any())

    def find(self) -> tuple[str, int] | None:
        """The first bad term and its step, for certain; waits for the device."""
        if not self.tripped:
            return None
        return _earliest(self._first_bad.tolist())

    def glance(self) -> tuple[str, int] | None:
        """What `find` would have told at the last glance.

        Sends for what the next one will tell. Waits only where the device has not even come to the
        last glance, so that the host never runs further ahead than from one to the next.
        """
        self._arrive()
        found = _earliest(self._told.tolist())
        self._told.copy_(self._first_bad, non_blocking=True)
        if self._arrival is not None:
            self._arrival.record(torch.cuda.current_stream(self._first_bad.device))
        return found

    def _arrive(self) -> None:
        """Wait for what was sent for, if anything was."""
        if self._arrival is not None:
            self._arrival.synchronize()


def _earliest(first_bad: list[int]) -> tuple[str, int] | None:
    """The first bad term and its step, of the steps at which each of `TERMS` went bad."""
    found = [(term, step) for term, step in zip(TERMS, first_bad, strict=True) if step > 0]
    return min(found, key=lambda pair: pair[1], default=None)


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
