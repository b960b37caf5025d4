"""The best configurations' reconstructions side by side: one row each, below the images they saw.

In the look of the sheets of a single training (`workers.artifacts`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from workers.artifacts.bands import HEAD_LINE_HEIGHT, HEAD_SIZE, NAME_SIZE, TITLE_SIZE
from workers.artifacts.drawing import (
    GAP,
    GOOD,
    INK,
    MARGIN,
    PAPER,
    QUIET,
    TITLE_HEIGHT,
    cell_side,
    font,
    picture,
    text_width,
)
from workers.search.report.words import ScoreText, short_names, value_text
from workers.search_specs import SearchSpec
from workers.trials import Standing

ABOUT = 84
"""Side of a picture wished for, in pixels."""
LINE_HEIGHT = 17
LABEL_SIZES = (16, NAME_SIZE)
"""Of a label's first line, and of the others."""
LABEL_GAP = 22
WIDEST_LABEL = 380
"""Pixels; longer lines are cut off."""


@dataclass(frozen=True)
class ComparisonRow:
    """One configuration."""

    label: tuple[str, ...]
    """Lines beside its pictures, the first one large: rank and mean, then its values."""
    drawings: NDArray[np.uint8]
    """`[N, C, H, W]`, of the same images in every row."""


def label_of(spec: SearchSpec, rank: int, standing: Standing) -> tuple[str, ...]:
    """A row's label: `1.  98.51 ± 0.12 %`, then a line for each of its values."""
    score = ScoreText(spec.metric).whole(standing.mean, standing.deviation)
    names = short_names(spec.space)
    values = (f"{names[path]} = {value_text(standing.values[path])}" for path in spec.space)
    return (f"{rank}.  {score}", *values)


def compare(
    rows: Sequence[ComparisonRow],
    inputs: NDArray[np.uint8],
    labels: Sequence[int | str],
    title: str = "best configurations · validation",
) -> Image.Image:
    """Paint the sheet.

    Args:
        rows: The best first, at least one.
        inputs: The images, `[N, C, H, W]`.
        labels: What each of them is, `[N]`.
        title: Stands above.

    Raises:
        ValueError: There are no rows or images, or not as many drawings or labels as images.
    """
    _check(rows, inputs, labels)
    images = torch.from_numpy(np.ascontiguousarray(inputs))
    layout = _Layout(rows, images, title)
    paper = Image.new("RGB", layout.size, PAPER)
    pen = ImageDraw.Draw(paper)
    pen.text((MARGIN, 12), title, INK, font(TITLE_SIZE))
    pen.text((MARGIN, TITLE_HEIGHT + 6), "label", QUIET, font(NAME_SIZE))
    for column, label in enumerate(labels):
        middle = layout.column(column) + layout.side // 2
        pen.text((middle, TITLE_HEIGHT + 4), str(label), INK, font(HEAD_SIZE), anchor="ma")
    _paint_label(pen, layout, 0, ("input",))
    _paint_pictures(paper, layout, 0, images)
    for number, row in enumerate(rows, start=1):
        _paint_label(pen, layout, number, row.label, best=number == 1)
        drawings = torch.from_numpy(np.ascontiguousarray(row.drawings))
        _paint_pictures(paper, layout, number, drawings)
    return paper


class _Layout:
    """Where everything stands, in pixels."""

    def __init__(self, rows: Sequence[ComparisonRow], images: Tensor, title: str) -> None:
        widths = [_line_width(line, index) for row in rows for index, line in enumerate(row.label)]
        lines = max(len(row.label) for row in rows)
        self.side = cell_side(images[0], ABOUT)
        self.row_height = max(self.side, LINE_HEIGHT * lines) + GAP
        self.left = MARGIN + min(max([*widths, text_width("input", NAME_SIZE)]), WIDEST_LABEL)
        self.left += LABEL_GAP
        width = self.column(len(images)) - GAP + MARGIN
        title_width = 2 * MARGIN + text_width(title, TITLE_SIZE)
        self.size = (max(width, title_width), self.row(len(rows) + 1) - GAP + MARGIN)

    def column(self, number: int) -> int:
        """Left edge of the pictures of an image."""
        return self.left + number * (self.side + GAP)

    def row(self, number: int) -> int:
        """Upper edge of a row; the images are row 0, and a little apart from the others."""
        apart = GAP if number > 0 else 0
        return TITLE_HEIGHT + HEAD_LINE_HEIGHT + GAP + number * self.row_height + apart


def _check(
    rows: Sequence[ComparisonRow], inputs: NDArray[np.uint8], labels: Sequence[int | str]
) -> None:
    if not rows or len(inputs) == 0:
        raise ValueError(
            f"{len(rows)} rows of {len(inputs)} images: at least one of each is needed"
        )
    if len(labels) != len(inputs):
        raise ValueError(f"{len(labels)} labels for {len(inputs)} images: one for each is needed")
    for number, row in enumerate(rows):
        if len(row.drawings) != len(inputs):
            raise ValueError(
                f"row {number} has {len(row.drawings)} drawings for {len(inputs)} images: "
                "one for each is needed"
            )


def _line_width(line: str, index: int) -> int:
    return text_width(line, LABEL_SIZES[min(index, 1)])


def _paint_label(
    pen: ImageDraw.ImageDraw,
    layout: _Layout,
    number: int,
    lines: Sequence[str],
    best: bool = False,
) -> None:
    """Lines in the middle of a row's height; the best configuration's first line is green."""
    middle = layout.row(number) + (layout.row_height - GAP) // 2
    top = middle - LINE_HEIGHT * (len(lines) - 1) // 2
    for index, line in enumerate(lines):
        heading = index == 0 and number > 0
        ink = GOOD if heading and best else INK if heading else QUIET
        size = LABEL_SIZES[0 if heading else 1]
        place = (MARGIN, top + LINE_HEIGHT * index)
        pen.text(place, _cut(line, size), ink, font(size), anchor="lm")


def _cut(line: str, size: int) -> str:
    if text_width(line, size) <= WIDEST_LABEL:
        return line
    line = line[:WIDEST_LABEL]  # a letter takes more than a pixel
    while text_width(f"{line}…", size) > WIDEST_LABEL:
        line = line[:-1]
    return f"{line}…"


def _paint_pictures(paper: Image.Image, layout: _Layout, number: int, images: Tensor) -> None:
    for column, image in enumerate(images):
        upper = layout.row(number) + (layout.row_height - GAP - layout.side) // 2
        paper.paste(picture(image, layout.side), (layout.column(column), upper))
