"""What a forward makes, what a backward makes. R passes; other letters as everywhere."""

from typing import NamedTuple

from torch import Tensor


class Passes(NamedTuple):
    """What a forward makes and a backward reads."""

    poses: Tensor
    """`[B, J, D]`."""
    totals: Tensor
    """Weighted sums of the votes, `[R, B, J, D]`."""
    pose_sums: Tensor
    """What the logits of the passes 2 .. R were made with, `[R - 1, B, J, D]`."""
    couplings: Tensor
    """Coupling coefficients of the passes 2 .. R, `[R - 1, B, J, I]`."""


class Gradients(NamedTuple):
    """What a backward makes."""

    capsules: Tensor
    """`[B, I, P]`."""
    weight: Tensor
    """`[I, J, P, D]`."""
    totals: Tensor
    """`[R, B, J, D]`; their sum over passes and samples is the gradient of the bias."""


def empty_passes(capsules: Tensor, weight: Tensor, iterations: int) -> Passes:
    """Of the right shapes, of unknown contents."""
    batch, inputs, _ = capsules.shape
    _, classes, _, dim = weight.shape
    return Passes(
        poses=capsules.new_empty(batch, classes, dim),
        totals=capsules.new_empty(iterations, batch, classes, dim),
        pose_sums=capsules.new_empty(iterations - 1, batch, classes, dim),
        couplings=capsules.new_empty(iterations - 1, batch, classes, inputs),
    )


def empty_gradients(capsules: Tensor, weight: Tensor, totals: Tensor) -> Gradients:
    """Of the right shapes, of unknown contents."""
    return Gradients(
        capsules.new_empty(capsules.shape),
        weight.new_empty(weight.shape),
        totals.new_empty(totals.shape),
    )
