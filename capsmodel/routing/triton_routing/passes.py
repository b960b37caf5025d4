"""Triton kernels over tiles of votes: a pass of the routing, its gradient, the weight's gradient.

Votes are never stored. What a pass needs of them is had from products with the weight, which the
tensor cores take: with u the capsules and W[j] the matrices of one parent,

    <u_hat, x>          = sum over p of u * (x W[j]^T)     how a vote agrees with a vector x
    sum of k * u_hat    = (k u) W[j]                       votes weighted by coefficients k

A program holds the capsules of a tile, BLOCK_B samples by BLOCK_I inputs, as a matrix of BLOCK_B
rows and BLOCK_P * BLOCK_I columns, and goes through the parents one by one. The columns are in the
order p, i: so sums over p stay within a thread. It does so for PARTS tiles of inputs, a group,
whose sums go to `partial[group]`; `capsmodel.routing.triton_routing.sums` adds the groups up,
always in the same order. What one thread stores another may read: so there are barriers, and no
tensor is overwritten that is still read. Blocks are powers of two; what they hold beyond I, P and
D is masked.

Tensor cores round fp32 to TF32, ten bits of mantissa. Every operand is split in two such numbers,
and three of the four products are taken, which keeps the precision of fp32. (Triton's own "tf32x3"
does the same, and spends as many instructions again on infinities, which are to end as NaN here.)
"""
# mypy: disable-error-code="import-untyped,import-not-found,misc,no-untyped-def,untyped-decorator"
# ruff: noqa: E741, N803  (shape letters and constants, as in every kernel)

import triton
import triton.language as tl


@triton.jit
def forward_pass(
    capsules,  # [B, I, P]
    weight,  # [I, J, P, D]
    pose_sum,  # [B, J, D]: sum of the earlier poses; not read in the first pass
    logits,  # [B, J, I]: room for a program's own use
    coupling,  # [B, J, I]: written; not in the first pass
    partial,  # [groups of tiles, B, J, D]: written
    B,
    I: tl.constexpr,
    J: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    SHARE: tl.constexpr,  # coupling coefficient of the first pass
    FIRST: tl.constexpr,
    LEAKY: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Partial sums of the votes, weighted by the coupling that agreement with `pose_sum` gives."""
    samples = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    group = tl.program_id(1)
    for part in range(PARTS):
        if PARTS > 1:
            tl.debug_barrier()  # other threads of the program add to the sums that these stored
        tile = group * PARTS + part
        inputs = tile * BLOCK_I + tl.arange(0, BLOCK_I)
        u = load_capsules(capsules, samples, tile, B, I, P, BLOCK_I, BLOCK_P)
        if FIRST:
            u = u * SHARE
        else:
            # The softmax over the parents needs the largest logit and the sum of exponentials.
            largest = tl.full([BLOCK_B, BLOCK_I], 0.0 if LEAKY else float("-inf"), tl.float32)
            exponentials = tl.full([BLOCK_B, BLOCK_I], 1.0 if LEAKY else 0.0, tl.float32)
            for j in range(J):
                matrices = load_matrices(weight, tile, j, I, J, P, D, BLOCK_I, BLOCK_P, BLOCK_D)
                poses = load_vectors(pose_sum, samples, j, B, J, D, BLOCK_D)
                logit = sum_over_p(u * times(poses, tl.trans(matrices)), BLOCK_I, BLOCK_P)
                store_pairs(logits, logit, samples, inputs, j, B, I, J)
                larger = tl.maximum(largest, logit)
                exponentials *= tl.exp(largest - larger)
                exponentials += tl.exp(logit - larger)
                largest = larger
            inverse = 1 / exponentials
            tl.debug_barrier()  # other threads of the program read the logits that these stored
        for j in range(J):
            matrices = load_matrices(weight, tile, j, I, J, P, D, BLOCK_I, BLOCK_P, BLOCK_D)
            weighted = u
            if not FIRST:
                logit = load_pairs(logits, samples, inputs, j, B, I, J)
                share = tl.exp(logit - largest) * inverse
                store_pairs(coupling, share, samples, inputs, j, B, I, J)
                weighted = u * over_p(share, BLOCK_P)
            add_vectors(partial, times(weighted, matrices), samples, group, part, j, B, J, D)


@triton.jit
def backward_pass(
    capsules,  # [B, I, P]
    weight,  # [I, J, P, D]
    pose_sum,  # [B, J, D]: what the pass's logits were made with
    coupling,  # [B, J, I]: coefficients of the pass; not read in the first pass
    grad_total,  # [B, J, D]: gradient of the pass's weighted sum
    grad_coupling,  # [B, J, I]: room for a program's own use
    grad_logit,  # [B, J, I]: written where LOGITS
    grad_capsules,  # [B, I, P]: written, or added to where ADD
    partial,  # [groups of tiles, B, J, D]: of the gradient of pose_sum, written where LOGITS
    B,
    I: tl.constexpr,
    J: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    SHARE: tl.constexpr,
    FIRST: tl.constexpr,
    LOGITS: tl.constexpr,  # the coupling passes a gradient on
    ADD: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Gradients of the capsules, the logits and `pose_sum` in one pass."""
    samples = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    group = tl.program_id(1)
    for part in range(PARTS):
        if PARTS > 1:
            tl.debug_barrier()  # other threads of the program add to the sums that these stored
        tile = group * PARTS + part
        inputs = tile * BLOCK_I + tl.arange(0, BLOCK_I)
        u = load_capsules(capsules, samples, tile, B, I, P, BLOCK_I, BLOCK_P)
        grad_u = tl.zeros([BLOCK_B, BLOCK_I * BLOCK_P], tl.float32)
        mean = tl.zeros([BLOCK_B, BLOCK_I], tl.float32)  # of the coupling's gradient, by coupling
        for j in range(J):
            matrices = load_matrices(weight, tile, j, I, J, P, D, BLOCK_I, BLOCK_P, BLOCK_D)
            gradient = load_vectors(grad_total, samples, j, B, J, D, BLOCK_D)
            turned = times(gradient, tl.trans(matrices))
            if FIRST:
                grad_u += SHARE * turned
            else:
                share = load_pairs(coupling, samples, inputs, j, B, I, J)
                grad_u += over_p(share, BLOCK_P) * turned
                if LOGITS:
                    grad_share = sum_over_p(u * turned, BLOCK_I, BLOCK_P)
                    mean += share * grad_share
                    store_pairs(grad_coupling, grad_share, samples, inputs, j, B, I, J)
        if LOGITS:
            tl.debug_barrier()  # other threads of the program read what these stored
            for j in range(J):
                share = load_pairs(coupling, samples, inputs, j, B, I, J)
                grad_share = load_pairs(grad_coupling, samples, inputs, j, B, I, J)
                slope = share * (grad_share - mean)
                store_pairs(grad_logit, slope, samples, inputs, j, B, I, J)
                matrices = load_matrices(weight, tile, j, I, J, P, D, BLOCK_I, BLOCK_P, BLOCK_D)
                poses = load_vectors(pose_sum, samples, j, B, J, D, BLOCK_D)
                slopes = over_p(slope, BLOCK_P)
                grad_u += slopes * times(poses, tl.trans(matrices))
                total = times(u * slopes, matrices)
                add_vectors(partial, total, samples, group, part, j, B, J, D)
        if ADD:
            grad_u += load_capsules(grad_capsules, samples, tile, B, I, P, BLOCK_I, BLOCK_P)
        store_capsules(grad_capsules, grad_u, samples, tile, B, I, P, BLOCK_I, BLOCK_P)


@triton.jit
def weight_gradient(
    capsules,  # [B, I, P]
    pose_sums,  # [R - 1, B, J, D]
    couplings,  # [R - 1, B, J, I]
    grad_totals,  # [R, B, J, D]
    grad_logits,  # [R - 1, B, J, I]; its passes before FIRST_LOGITS are not read
    grad_weight,  # [I, J, P, D]: written
    B,
    I: tl.constexpr,
    J: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,  # passes
    SHARE: tl.constexpr,
    FIRST_LOGITS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The gradient of one parent's matrices at a tile of inputs: a sum over all samples."""
    j = tl.program_id(0)
    tile = tl.program_id(1)
    inputs = tile * BLOCK_I + tl.arange(0, BLOCK_I)
    vectors = tl.cast(B, tl.int64) * J * D
    pairs = tl.cast(B, tl.int64) * J * I
    total = tl.zeros([BLOCK_I * BLOCK_P, BLOCK_D], tl.float32)
    for start in range(0, B, BLOCK_B):
        samples = start + tl.arange(0, BLOCK_B)
        u = load_capsules(capsules, samples, tile, B, I, P, BLOCK_I, BLOCK_P)
        gradient = load_vectors(grad_totals, samples, j, B, J, D, BLOCK_D)
        total += times(tl.trans(u), SHARE * gradient)
        # Unrolled for three passes: fewer instructions are issued, and registers suffice.
        for r in tl.range(R - 1, loop_unroll_factor=2):
            share = load_pairs(couplings + r * pairs, samples, inputs, j, B, I, J)
            gradient = load_vectors(grad_totals + (r + 1) * vectors, samples, j, B, J, D, BLOCK_D)
            total += times(tl.trans(u * over_p(share, BLOCK_P)), gradient)
            if r >= FIRST_LOGITS:
                slope = load_pairs(grad_logits + r * pairs, samples, inputs, j, B, I, J)
                poses = load_vectors(pose_sums + r * vectors, samples, j, B, J, D, BLOCK_D)
                total += times(tl.trans(u * over_p(slope, BLOCK_P)), poses)
    offset, known = matrix_offsets(tile, j, I, J, P, D, BLOCK_I, BLOCK_P, BLOCK_D)
    tl.store(grad_weight + offset, total, known)


@triton.jit
def times(left, right):
    """`left @ right`, as precise as fp32."""
    coarse_left, fine_left = split(left)
    coarse_right, fine_right = split(right)
    product = tl.dot(fine_left, coarse_right, input_precision="tf32")
    product = tl.dot(coarse_left, fine_right, product, input_precision="tf32")
    return tl.dot(coarse_left, coarse_right, product, input_precision="tf32")


@triton.jit
def split(values):
    """A number to the nearest TF32, and what is left of it; of infinity, NaN is left."""
    bits = values.to(tl.int32, bitcast=True)
    coarse = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return coarse, values - coarse


@triton.jit
def over_p(pairs, BLOCK_P: tl.constexpr):
    """One value an input capsule, repeated for each of its dimensions: `[b, i]` to `[b, p * i]`."""
    rows: tl.constexpr = pairs.shape[0]
    inputs: tl.constexpr = pairs.shape[1]
    repeated = tl.broadcast_to(pairs[:, None, :], [rows, BLOCK_P, inputs])
    return tl.reshape(repeated, [rows, BLOCK_P * inputs])


@triton.jit
def sum_over_p(values, BLOCK_I: tl.constexpr, BLOCK_P: tl.constexpr):
    """The sum over each input capsule's dimensions: `[b, p * i]` to `[b, i]`."""
    return tl.sum(tl.reshape(values, [values.shape[0], BLOCK_P, BLOCK_I]), axis=1)


@triton.jit
def swap(values, FIRST: tl.constexpr, SECOND: tl.constexpr):
    """Columns in the order of two axes, put in the other order."""
    rows: tl.constexpr = values.shape[0]
    apart = tl.reshape(values, [rows, FIRST, SECOND])
    return tl.reshape(tl.permute(apart, (0, 2, 1)), [rows, SECOND * FIRST])


@triton.jit
def capsule_offsets(samples, tile, B, I, P, BLOCK_I: tl.constexpr, BLOCK_P: tl.constexpr):
    """Where in `[B, I, P]` a tile lies as `[b, i * p]`, and what of it is there."""
    column = tl.arange(0, BLOCK_I * BLOCK_P)
    inputs = tile * BLOCK_I + column // BLOCK_P
    p = column % BLOCK_P
    offset = samples[:, None] * (I * P) + (inputs * P + p)[None, :]
    return offset, (samples < B)[:, None] & ((inputs < I) & (p < P))[None, :]


@triton.jit
def load_capsules(base, samples, tile, B, I, P, BLOCK_I: tl.constexpr, BLOCK_P: tl.constexpr):
    """A tile of `[B, I, P]` as `[b, p * i]`."""
    offset, known = capsule_offsets(samples, tile, B, I, P, BLOCK_I, BLOCK_P)
    return swap(tl.load(base + offset, known, other=0.0), BLOCK_I, BLOCK_P)


@triton.jit
def store_capsules(
    base, values, samples, tile, B, I, P, BLOCK_I: tl.constexpr, BLOCK_P: tl.constexpr
):
    """To a tile of `[B, I, P]` from `[b, p * i]`."""
    offset, known = capsule_offsets(samples, tile, B, I, P, BLOCK_I, BLOCK_P)
    tl.store(base + offset, swap(values, BLOCK_P, BLOCK_I), known)


@triton.jit
def matrix_offsets(
    tile, j, I, J, P, D, BLOCK_I: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Where in `[I, J, P, D]` the matrices of one parent lie, and what of them is there."""
    row = tl.arange(0, BLOCK_I * BLOCK_P)
    inputs = tile * BLOCK_I + row % BLOCK_I
    p = row // BLOCK_I
    d = tl.arange(0, BLOCK_D)
    offset = (((inputs * J + j) * P + p) * D)[:, None] + d[None, :]
    return offset, ((inputs < I) & (p < P))[:, None] & (d < D)[None, :]


@triton.jit
def load_matrices(
    weight, tile, j, I, J, P, D, BLOCK_I: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr
):
    """The matrices of one parent, one below the other: `[p * i, d]`."""
    offset, known = matrix_offsets(tile, j, I, J, P, D, BLOCK_I, BLOCK_P, BLOCK_D)
    return tl.load(weight + offset, known, other=0.0)


@triton.jit
def load_vectors(base, samples, j, B, J, D, BLOCK_D: tl.constexpr):
    """One parent's vectors `[b, d]` of `[B, J, D]`."""
    d = tl.arange(0, BLOCK_D)
    known = (samples < B)[:, None] & (d < D)[None, :]
    return tl.load(base + (samples * J + j)[:, None] * D + d[None, :], known, other=0.0)


@triton.jit
def add_vectors(partial, values, samples, group, part, j, B, J, D):
    """To one parent's vectors of a group in `[groups, B, J, D]`; the first part begins the sum."""
    d = tl.arange(0, values.shape[1])
    known = (samples < B)[:, None] & (d < D)[None, :]
    place = partial + ((group * B + samples) * J + j)[:, None] * D + d[None, :]
    tl.store(place, values + tl.load(place, known & (part > 0), other=0.0), known)


@triton.jit
def load_pairs(base, samples, inputs, j, B, I, J):
    """One parent's values `[b, i]` of `[B, J, I]`."""
    known = (samples < B)[:, None] & (inputs < I)[None, :]
    return tl.load(base + (samples * J + j)[:, None] * I + inputs[None, :], known, other=0.0)


@triton.jit
def store_pairs(base, values, samples, inputs, j, B, I, J):
    """To one parent's values of `[B, J, I]`."""
    known = (samples < B)[:, None] & (inputs < I)[None, :]
    tl.store(base + (samples * J + j)[:, None] * I + inputs[None, :], values, known)
