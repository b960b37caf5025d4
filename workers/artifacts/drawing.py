"""What the sheets share: colours, letters, distances, and a picture from a tensor."""

import torch
from PIL import Image, ImageFont
from torch import Tensor

MARGIN = 16
GAP = 6
TITLE_HEIGHT = 40

PAPER = (255, 255, 255)
INK = (33, 37, 41)
QUIET = (108, 117, 125)
GOOD = (25, 110, 60)
BAD = (176, 42, 55)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own letters, which every machine has."""
    return ImageFont.load_default(size)


def text_width(text: str, size: int) -> int:
    """Pixels that a line of text takes."""
    return int(font(size).getlength(text)) + 1


def cell_side(image: Tensor, about: int) -> int:
    """Side of the square in which an image is shown: near `about` pixels.

    A multiple of the image's longer side, so that its pixels become equal squares; an image larger
    than `about` is made smaller.

    Args:
        image: `[..., H, W]`.
        about: The side wished for.
    """
    longer = max(image.shape[-2:])
    return longer * max(1, round(about / longer)) if longer <= about else about


def as_bytes(drawings: Tensor) -> Tensor:
    """uint8, on the CPU, from values in [0, 1]; a little beyond them is cut off."""
    rounded: Tensor = (drawings.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    return rounded


def picture(image: Tensor, side: int) -> Image.Image:
    """A square picture of `side` pixels from uint8 `[C, H, W]`.

    Three channels are shown in colour, any other number as the grey of their mean. What is not
    square stands in the middle of paper.
    """
    pixels = image.cpu()
    if len(pixels) != 3:
        pixels = pixels.float().mean(dim=0, keepdim=True).round().to(torch.uint8)
    array = pixels.numpy()
    small = Image.fromarray(array.transpose(1, 2, 0) if len(array) == 3 else array[0])
    scale = side / max(small.size)
    size = (max(1, round(small.width * scale)), max(1, round(small.height * scale)))
    resampling = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    square = Image.new("RGB", (side, side), PAPER)
    corner = ((side - size[0]) // 2, (side - size[1]) // 2)
    square.paste(small.resize(size, resampling).convert("RGB"), corner)
    return square
