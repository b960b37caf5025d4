"""The overlap sheet (figure 5 of the paper): two digits on one another, taken apart.

A column is headed (L, P, R): the two labels, the two predictions, and the classes from whose
capsules was drawn, each in the colour of its place: the first orange, the second blue, and white
where both lie. On the left pairs of which both digits were recognised; on the right failures, each
once with R = P and once with R = L.
"""

import torch
from PIL import Image
from torch import Tensor

from capsmodel.analysis import COLOURS, in_colours, segment
from capsmodel.model import Model
from workers.artifacts import Artifact, View
from workers.artifacts.bands import Column, Row, Sheet, compose
from workers.artifacts.choice import choose
from workers.artifacts.drawing import as_bytes
from workers.specs import OverlapSheetConfig

FIRST, SECOND = ((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in COLOURS)
ABOUT = 72
BAND_COLUMNS = 8


class OverlapSheet(Artifact):
    """Composes the sheet; see `workers.specs.OverlapSheetConfig`."""

    name = "overlap-sheet"

    def __init__(self, config: OverlapSheetConfig) -> None:
        self.config = config

    def suits(self, model: Model) -> bool:
        """Where an image has two classes and the model draws."""
        return model.draws and model.targets == 2

    def due(self, epoch: int) -> bool:
        """After every `every_epochs`-th epoch."""
        return epoch % self.config.every_epochs == 0

    def make(self, view: View) -> Image.Image:
        """The sheet of a part of the data, as the model sees it now."""
        return compose(self.sheet(view))

    def sheet(self, view: View) -> Sheet:
        """What stands on it."""
        labels = view.examples.labels
        predictions = in_order_of(labels, view.predictions)
        choice = choose(labels[:, 0].cpu(), view.recognised.cpu(), self.config.columns)
        columns = _columns(view, choice.recognised, predictions, predictions)
        for index in choice.failed:
            for drawn in (predictions, labels):
                columns += _columns(view, [index], predictions, drawn)
        truth = [] if view.examples.parts is None else [Row("true digits")]
        return Sheet(
            title=(
                f"{view.part} · epoch {view.epoch} · "
                f"both digits recognised in {int(view.recognised.sum())} of {len(labels)} pairs"
            ),
            columns=columns,
            head=("labels  L", "predicted  P", "drawn from  R"),
            rows=(
                Row("input"),
                *truth,
                Row("reconstruction"),
                Row("first alone", FIRST),
                Row("second alone", SECOND),
            ),
            about=ABOUT,
            band_columns=BAND_COLUMNS,
        )


def in_order_of(labels: Tensor, predictions: Tensor) -> Tensor:
    """Predictions turned round where one of them then stands in its label's place.

    Args:
        labels: int64 `[N, 2]`.
        predictions: int64 `[N, 2]`.
    """
    crossed = (predictions.flip(1) == labels).any(dim=1, keepdim=True)
    return torch.where(crossed, predictions.flip(1), predictions)


def _columns(view: View, shown: list[int], predictions: Tensor, drawn: Tensor) -> list[Column]:
    """Columns of the pairs `shown`, drawn from the capsules of the classes `drawn`."""
    if not shown:
        return []
    chosen = torch.tensor(shown, device=drawn.device)
    images, labels, parts = view.examples
    apart = segment(view.model, images[chosen].float() / 255, drawn[chosen])
    alone = as_bytes(in_colours(apart.reconstructions))
    rows = [images[chosen], as_bytes(apart.picture), *alone.unbind(dim=1)]
    if parts is not None:
        rows.insert(1, as_bytes(in_colours(parts[chosen].float() / 255).sum(dim=1)))
    heads = torch.stack([labels[chosen], predictions[chosen], drawn[chosen]], dim=1).tolist()
    return [
        Column(tuple(map(_pair, head)), pictures, failure=head[0] != head[1])
        for head, pictures in zip(heads, zip(*rows, strict=True), strict=True)
    ]


def _pair(classes: list[int]) -> str:
    return "({}, {})".format(*classes)
