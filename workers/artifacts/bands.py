"""Sheets in columns: a head above pictures; recognised images at the left, failures at the right.

Columns stand in bands below each other, which keeps a sheet about as high as wide: that is the room
that viewers give a picture.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

from PIL import Image, ImageDraw
from torch import Tensor

from workers.artifacts.drawing import (
    BAD,
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

HEAD_LINE_HEIGHT = 19
NAME_WIDTH = 126
"""Room for the names of the rows, margin included."""
FAILURE_GAP = 26
TITLE_SIZE = 18
HEAD_SIZE = 16
NAME_SIZE = 13
SWATCH = 9
"""Side of the square that shows a row's colour."""


@dataclass(frozen=True)
class Column:
    """One image and what the model made of it."""

    head: tuple[str, ...]
    """Lines above the pictures; the first is what is true."""
    pictures: tuple[Tensor, ...]
    """uint8 `[C, H, W]`, all of one height and width, from top to bottom."""
    failure: bool


@dataclass(frozen=True)
class Row:
    """One row of pictures."""

    name: str
    colour: tuple[int, int, int] | None = None
    """Of what the row shows, where it has one."""


@dataclass(frozen=True)
class Sheet:
    """All that stands on a sheet."""

    title: str
    columns: Sequence[Column]
    """At least one; recognised images first, then failures, each in two columns."""
    head: tuple[str, ...]
    """Names of the columns' head lines."""
    rows: tuple[Row, ...]
    about: int = 84
    """Side of a picture wished for, in pixels."""
    band_columns: int = 7
    """Columns of a band, at most; a few more where failures must stand in pairs."""


class Layout:
    """Where each column stands."""

    def __init__(self, sheet: Sheet) -> None:
        """Lay out recognised columns, then failures in pairs."""
        failures = sum(column.failure for column in sheet.columns)
        hits = len(sheet.columns) - failures
        self.rows = len(sheet.rows)
        self.head_height = HEAD_LINE_HEIGHT * len(sheet.head) + GAP + 1
        self.side = cell_side(sheet.columns[0].pictures[0], sheet.about)
        self.bands = ceil(len(sheet.columns) / sheet.band_columns)
        hits_a_band = ceil(hits / self.bands)
        failures_a_band = 2 * ceil(failures / 2 / self.bands)
        left_of_failures = NAME_WIDTH + hits_a_band * (self.side + GAP)
        self.line = left_of_failures + FAILURE_GAP // 2 - GAP if hits and failures else None
        left_of_failures += FAILURE_GAP if self.line is not None else 0
        self.places = [
            *self._grid(hits, hits_a_band, NAME_WIDTH),
            *self._grid(failures, failures_a_band, left_of_failures),
        ]
        width = left_of_failures + failures_a_band * (self.side + GAP) + MARGIN
        title_width = 2 * MARGIN + text_width(sheet.title, TITLE_SIZE)
        self.size = (max(width, title_width), self.top(self.bands) + MARGIN)

    def top(self, band: int) -> int:
        """Upper edge of a band, in pixels."""
        return TITLE_HEIGHT + band * (self.head_height + self.rows * (self.side + GAP) + GAP)

    def row(self, number: int) -> int:
        """Distance of a row of pictures from the upper edge of its band."""
        return self.head_height + number * (self.side + GAP)

    def _grid(self, count: int, a_band: int, left: int) -> Iterator[tuple[int, int]]:
        for index in range(count):
            yield left + index % a_band * (self.side + GAP), self.top(index // a_band)


def compose(sheet: Sheet) -> Image.Image:
    """Paint a sheet."""
    layout = Layout(sheet)
    paper = Image.new("RGB", layout.size, PAPER)
    pen = ImageDraw.Draw(paper)
    pen.text((MARGIN, 12), sheet.title, INK, font(TITLE_SIZE))
    for band in range(layout.bands):
        _paint_names(pen, sheet, layout, layout.top(band))
    if layout.line is not None:
        pen.line([(layout.line, TITLE_HEIGHT), (layout.line, layout.size[1] - MARGIN)], BAD)
    for column, place in zip(sheet.columns, layout.places, strict=True):
        _paint_column(paper, pen, layout, column, place)
    return paper


def _paint_names(pen: ImageDraw.ImageDraw, sheet: Sheet, layout: Layout, top: int) -> None:
    for line, name in enumerate(sheet.head):
        pen.text((MARGIN, top + 6 + HEAD_LINE_HEIGHT * line), name, QUIET, font(NAME_SIZE))
    for number, row in enumerate(sheet.rows):
        left, middle = MARGIN, top + layout.row(number) + layout.side // 2
        if row.colour is not None:
            upper = middle - SWATCH // 2
            pen.rectangle([left, upper, left + SWATCH, upper + SWATCH], row.colour)
            left += SWATCH + GAP
        pen.text((left, middle), row.name, QUIET, font(NAME_SIZE), anchor="lm")


def _paint_column(
    paper: Image.Image,
    pen: ImageDraw.ImageDraw,
    layout: Layout,
    column: Column,
    place: tuple[int, int],
) -> None:
    left, top = place
    colour = BAD if column.failure else GOOD
    for line, text in enumerate(column.head):
        ink = INK if line == 0 else colour
        middle = (left + layout.side // 2, top + 4 + HEAD_LINE_HEIGHT * line)
        pen.text(middle, text, ink, font(HEAD_SIZE), anchor="ma")
    for number, shown in enumerate(column.pictures):
        paper.paste(picture(shown, layout.side), (left, top + layout.row(number)))
