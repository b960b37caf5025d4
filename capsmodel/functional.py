"""The elementary functions of capsules: squash, length, votes.

Shape letters, here and in the whole library: B batch, I input (primary) capsules, P their
dimensions, J classes (output capsules), D their dimensions, C, H, W channels, height and width of
an image.
"""

import torch
from torch import Tensor

# Its square, summed over 1,000 dimensions, still fits fp32; a longer vector has length 1 anyway.
_LARGEST_COMPONENT = 1e17


def squash(s: Tensor, dim: int = -1) -> Tensor:
    """Shrink vectors to lengths in [0, 1) and keep their directions (section 2, equation 1).

    `v = |s|^2 / (1 + |s|^2) * s / |s|`; exactly 0, with gradient 0, at s = 0. Long vectors come
    out 1 long but for rounding; where a component is infinite or NaN the result is NaN.

    Args:
        s: Vectors of any shape and any floating dtype; the arithmetic is at least fp32.
        dim: The axis along which the vectors lie.

    Returns:
        Tensor of the shape and dtype of `s`.
    """
    wide = _bounded(s)
    length = torch.linalg.vector_norm(wide, dim=dim, keepdim=True)
    squashed: Tensor = wide * (length / (1 + length.square()))
    return squashed.to(s.dtype)


def exponential_squash(s: Tensor, dim: int = -1) -> Tensor:
    """Shrink vectors to lengths in [0, 1) and keep their directions (Efficient-CapsNet, eq. 2).

    `v = (1 - e^-|s|) s / |s|`: steeper than `squash` near 0, where it is s itself. Rounding
    and infinite components are as in `squash`.

    Args:
        s: Vectors of any shape and any floating dtype; the arithmetic is at least fp32.
        dim: The axis along which the vectors lie.

    Returns:
        Tensor of the shape and dtype of `s`.
    """
    wide = _bounded(s)
    length = torch.linalg.vector_norm(wide, dim=dim, keepdim=True)
    safe = torch.where(length > 0, length, 1)  # 0 / 0 would give NaN to the gradient
    factor = torch.where(length > 0, -torch.expm1(-safe) / safe, 1)
    squashed: Tensor = wide * factor
    return squashed.to(s.dtype)


def lengths(poses: Tensor, dim: int = -1) -> Tensor:
    """Length of every vector: the probability that its entity is present (section 2).

    Args:
        poses: Vectors of any shape, `[B, J, D]` for class capsules.
        dim: The axis along which the vectors lie.

    Returns:
        Tensor without the axis `dim`, at least 0; the gradient of a zero vector's length is 0.
    """
    length: Tensor = torch.linalg.vector_norm(_widened(poses), dim=dim)
    return length.to(poses.dtype)


def compute_votes(capsules: Tensor, weight: Tensor) -> Tensor:
    """Votes of every input capsule for every class: `u_hat[j|i] = W[i,j] u[i]` (equation 2).

    The result lies in memory as `[B, J, I, D]`, so that each pass of the routing is two batched
    matrix products; measured on CPUs, the copy costs less than it saves.

    Args:
        capsules: `[B, I, P]`.
        weight: `[I, J, P, D]`.

    Returns:
        `[B, J, I, D]`, contiguous.
    """
    inputs, classes, _, _ = weight.shape
    matrices = weight.transpose(1, 2).flatten(start_dim=2)  # [I, P, J*D]
    votes = torch.bmm(capsules.transpose(0, 1), matrices)  # [I, B, J*D]
    return votes.view(inputs, len(capsules), classes, -1).permute(1, 2, 0, 3).contiguous()


def _bounded(s: Tensor) -> Tensor:
    """At least fp32, small enough to be squared; infinite becomes NaN, so that it is noticed."""
    wide = _widened(s)
    bounded = wide.clamp(-_LARGEST_COMPONENT, _LARGEST_COMPONENT)
    return bounded.masked_fill(wide.isinf(), float("nan"))


def _widened(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
