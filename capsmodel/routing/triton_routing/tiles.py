"""Sizes of the tiles that a program takes: plain functions of the shapes, so that runs repeat.

They were chosen by what the compiler says of sm_90 (registers, spills, instructions issued), not
by a stopwatch.
"""

from typing import NamedTuple

LARGEST_DIM = 128
"""Of an input capsule's or a class capsule's dimensions."""
LARGEST_MATRIX = 2048
"""Elements of one pair's matrix, its sides taken to powers of two: it has to lie in registers."""
LARGEST_COUNT = 2**31 - 1
"""Elements of a tensor that the kernels can count."""
ENOUGH_PROGRAMS = 512
"""About four for each multiprocessor of a large GPU."""
ENOUGH_SUMS = 2**23
"""Elements of partial sums that stay in a large GPU's cache."""


class Shape(NamedTuple):
    """Sizes of the operands."""

    batch: int
    inputs: int
    classes: int
    input_dim: int
    dim: int


class Tile(NamedTuple):
    """What one program holds at once; powers of two, but for `parts`."""

    samples: int
    inputs: int
    input_dim: int
    dim: int
    parts: int
    """Tiles of inputs that the program goes through, one after the other."""
    warps: int

    def groups(self, inputs: int) -> int:
        """Programs along the input capsules."""
        return -(-inputs // (self.inputs * self.parts))


def pass_tile(shape: Shape) -> Tile:
    """The tile of the kernels that go through the parents.

    64 samples are what the wide products of Hopper's tensor cores take, and 64 columns of their
    capsules leave room in the registers; smaller batches take the narrow products. Where partial
    sums would not stay in the cache, a program adds up several tiles.
    """
    samples = 16 if shape.batch <= 16 else 32 if shape.batch <= 32 else 64
    tile = _tile(shape, samples, columns=64, warps=4 if samples == 64 else 2)
    programs = -(-shape.batch // samples) * tile.groups(shape.inputs)
    sums = tile.groups(shape.inputs) * shape.batch * shape.classes * shape.dim
    wanted = min(programs // ENOUGH_PROGRAMS, -(-sums // ENOUGH_SUMS))
    return tile._replace(parts=max(1, wanted))


def gradient_tile(shape: Shape) -> Tile:
    """The tile of the kernel of the weight's gradient, which goes through all samples."""
    return _tile(shape, samples=16 if shape.batch <= 16 else 32, columns=128, warps=4)


def fits(shape: Shape) -> bool:
    """Whether the kernels can route this shape."""
    batch, inputs, classes, input_dim, dim = shape
    if min(shape) < 1 or max(input_dim, dim) > LARGEST_DIM:
        return False
    if power_of_two(input_dim) * power_of_two(dim) > LARGEST_MATRIX:
        return False
    sums = pass_tile(shape).groups(inputs) * batch * classes * dim
    pairs = batch * classes * inputs
    largest = max(sums, pairs, batch * inputs * input_dim, inputs * classes * input_dim * dim)
    return largest <= LARGEST_COUNT


def power_of_two(size: int) -> int:
    """The smallest power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()


def _tile(shape: Shape, samples: int, columns: int, warps: int) -> Tile:
    """Columns are input capsules by their dimensions; products need at least 16 of everything."""
    input_dim, dim = power_of_two(shape.input_dim), max(16, power_of_two(shape.dim))
    columns = max(16, input_dim, min(columns, LARGEST_MATRIX // dim))
    return Tile(samples, columns // input_dim, input_dim, dim, parts=1, warps=warps)
