"""Pictures without a package for them: binary PGM (grey) and PPM (colour), as most viewers open."""

from pathlib import Path

import torch
from torch import Tensor

KINDS = {1: "P5", 3: "P6"}
"""First word of the file for each number of channels."""


def write_grid(path: Path, images: Tensor) -> None:
    """Write images beside and below each other as one picture.

    Args:
        path: The file; usually `.pgm` for grey images and `.ppm` for colour.
        images: `[rows, columns, C, H, W]` in [0, 1], C 1 or 3.
    """
    rows, columns, channels, height, width = images.shape
    header = f"{KINDS[channels]} {columns * width} {rows * height} 255\n"
    pixels = (255 * images).round().to(torch.uint8).cpu()
    lines = pixels.permute(0, 3, 1, 4, 2).contiguous()  # [rows, H, columns, W, C]
    path.write_bytes(header.encode() + lines.numpy().tobytes())
