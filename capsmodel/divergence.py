"""Detection of losses that are no longer finite, without waiting for the device at every step."""

import torch
from torch import Tensor

TERMS = ("margin loss", "reconstruction loss", "total loss")
"""The parts come first: where one is not finite, neither is the total."""
_COLUMNS = [1, 2, 0]


class DivergedError(ArithmeticError):
    """A term of the loss became infinite or NaN."""

    def __init__(self, term: str, step: int) -> None:
        super().__init__(
            f"the {term} is not finite at step {step}: use a lower learning rate or a warm-up"
        )
        self.term = term
        self.step = step


class DivergenceGuard:
    """Remembers on the device at which step each term first was not finite."""

    def __init__(self, device: torch.device) -> None:
        self._columns = torch.tensor(_COLUMNS, device=device)
        self._first_bad = torch.zeros(len(TERMS), dtype=torch.int64, device=device)  # 0: none

    def watch(self, measures: Tensor, step: int) -> None:
        """Take note of the measures of `step` (from 1), `[4]` as in `metrics.MEASURES`."""
        newly_bad = ~measures[self._columns].isfinite() & (self._first_bad == 0)
        self._first_bad.masked_fill_(newly_bad, step)

    def check(self) -> None:
        """Raise DivergedError if a term was not finite at any step; waits for the device."""
        found = [(step, term) for term, step in zip(TERMS, self._first_bad.tolist(), strict=True)]
        bad = [(step, term) for step, term in found if step > 0]
        if bad:
            step, term = min(bad, key=lambda pair: pair[0])  # of one step, the first in TERMS
            raise DivergedError(term, step)
