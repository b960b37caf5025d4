"""The IDX format of MNIST: two zero bytes, a type, the number of axes, their sizes, the values."""

import gzip
import math
import struct
import zlib

import torch
from torch import Tensor

from capsmodel.datasets import DataCorruptError

UNSIGNED_BYTE = 0x08


def decompress(stored: bytes, name: str) -> bytes:
    """Content of a gzip file.

    Args:
        stored: The whole file.
        name: Names the file in errors.

    Raises:
        DataCorruptError: It is no gzip file, or damaged.
    """
    try:
        return gzip.decompress(stored)
    except (OSError, EOFError, zlib.error) as error:
        raise DataCorruptError(f"{name} is no whole gzip file: {error}") from error


def parse_idx(content: bytes, axes: int, name: str) -> Tensor:
    """Values of an IDX file of unsigned bytes.

    Args:
        content: The whole file, decompressed.
        axes: Expected number of axes: 3 for images, 1 for labels.
        name: Names the file in errors.

    Returns:
        uint8 tensor of the shape that the header states.

    Raises:
        DataCorruptError: Wrong magic number, truncated, or trailing bytes.
    """
    magic = bytes([0, 0, UNSIGNED_BYTE, axes])
    if content[:4] != magic:
        raise DataCorruptError(
            f"{name} begins with {content[:4].hex(' ') or 'nothing'}, expected the magic number "
            f"{magic.hex(' ')} (unsigned bytes, {axes} axes)"
        )
    header_size = 4 + 4 * axes
    if len(content) < header_size:
        raise DataCorruptError(
            f"{name} is truncated: {len(content)} bytes, the header alone takes {header_size}"
        )
    shape = struct.unpack(f">{axes}I", content[4:header_size])
    expected = header_size + math.prod(shape)
    if len(content) != expected:
        problem = "is truncated" if len(content) < expected else "has trailing bytes"
        raise DataCorruptError(
            f"{name} {problem}: {len(content)} bytes, {expected} expected for shape {list(shape)}"
        )
    if math.prod(shape) == 0:
        return torch.empty(shape, dtype=torch.uint8)
    values = torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header_size)
    return values.reshape(shape)
