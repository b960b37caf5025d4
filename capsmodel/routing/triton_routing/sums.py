"""Triton kernels that add up partial sums, in the same order always, and squash or unsquash."""
# mypy: disable-error-code="import-untyped,import-not-found,misc,no-untyped-def,untyped-decorator"
# ruff: noqa: N803  (shape letters and constants, as in every kernel)

import triton
import triton.language as tl

LARGEST_COMPONENT = tl.constexpr(1e17)  # as in capsmodel.functional.squash


@triton.jit
def finish_forward(
    partial,  # [groups, B, J, D]
    bias,  # [J, D], read where BIASED
    earlier,  # [B, J, D]: sum of the earlier passes' poses, read where EARLIER
    total,  # [B, J, D]: written
    result,  # [B, J, D]: written: the pass's poses, with `earlier` where EARLIER
    groups,
    B,
    J: tl.constexpr,
    D: tl.constexpr,
    BIASED: tl.constexpr,
    EARLIER: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The weighted sum of one sample's votes, and its poses."""
    sample = tl.program_id(0)
    offset, known = vector_offsets(tl.program_id(1), J, D, BLOCK_J, BLOCK_D)
    s = sum_of_groups(partial, groups, sample, B, offset, known, J, D, BLOCK_G, BLOCK_J, BLOCK_D)
    if BIASED:
        s += tl.load(bias + offset, known, other=0.0)
    here = sample * (J * D) + offset
    tl.store(total + here, s, known)
    bounded, length = bounded_and_length(s)
    poses = bounded * (length / (1 + length * length))[:, None]
    if EARLIER:
        poses += tl.load(earlier + here, known, other=0.0)
    tl.store(result + here, poses, known)


@triton.jit
def finish_backward(
    partial,  # [groups, B, J, D], read where SUMMED
    later,  # [B, J, D]: the gradient that is known already, read where LATER
    total,  # [B, J, D]: the pass's weighted sum
    gradient,  # [B, J, D]: the gradient of the pass's poses, written where SUMMED
    grad_total,  # [B, J, D]: written
    groups,
    B,
    J: tl.constexpr,
    D: tl.constexpr,
    SUMMED: tl.constexpr,
    LATER: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The gradient of one sample's poses, and that of the weighted sum that was squashed."""
    sample = tl.program_id(0)
    offset, known = vector_offsets(tl.program_id(1), J, D, BLOCK_J, BLOCK_D)
    here = sample * (J * D) + offset
    g = tl.zeros([BLOCK_J, BLOCK_D], tl.float32)
    if SUMMED:
        g = sum_of_groups(
            partial, groups, sample, B, offset, known, J, D, BLOCK_G, BLOCK_J, BLOCK_D
        )
    if LATER:
        g += tl.load(later + here, known, other=0.0)
    if SUMMED:
        tl.store(gradient + here, g, known)
    s = tl.load(total + here, known, other=0.0)
    bounded, length = bounded_and_length(s)
    # v = f(n) s with n = |s|, f = n / (1 + n^2): dv = f ds + f' <s / n, ds> s.
    square = 1 + length * length
    slope = (1 - length * length) / square / square  # the square of `square` could overflow
    unit = bounded / tl.where(length > 0, length, 1.0)[:, None]
    inward = tl.sum(unit * g, axis=1) * slope
    grad_s = g * (length / square)[:, None] + bounded * inward[:, None]
    tl.store(grad_total + here, grad_s, known)


@triton.jit
def bounded_and_length(s):
    """Vectors small enough to be squared, infinite ones NaN, and their lengths."""
    bounded = tl.minimum(tl.maximum(s, -LARGEST_COMPONENT), LARGEST_COMPONENT)
    bounded = tl.where(tl.abs(s) < float("inf"), bounded, float("nan"))
    return bounded, tl.sqrt_rn(tl.sum(bounded * bounded, axis=1))


@triton.jit
def vector_offsets(block, J, D, BLOCK_J: tl.constexpr, BLOCK_D: tl.constexpr):
    """Where in `[J, D]` a block of parents lies, and what of it is there."""
    j = block * BLOCK_J + tl.arange(0, BLOCK_J)
    d = tl.arange(0, BLOCK_D)
    return j[:, None] * D + d[None, :], (j < J)[:, None] & (d < D)[None, :]


@triton.jit
def sum_of_groups(
    partial,
    groups,
    sample,
    B,
    offset,
    known,
    J,
    D,
    BLOCK_G: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One sample's sum over the groups; BLOCK_G of them are under way at once."""
    total = tl.zeros([BLOCK_J, BLOCK_D], tl.float32)
    for start in range(0, groups, BLOCK_G):
        group = start + tl.arange(0, BLOCK_G)
        row = (group * B + sample) * (J * D)
        there = (group < groups)[:, None, None] & known[None, :, :]
        total += tl.sum(tl.load(partial + row[:, None, None] + offset[None, :, :], there, 0.0), 0)
    return total
