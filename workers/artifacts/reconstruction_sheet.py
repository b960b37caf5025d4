"""The reconstruction sheet (figure 3 of the paper): images above what their capsules draw.

A column is headed (l, p, r): the label, the prediction, and the class whose capsule was drawn. On
the left classes that were recognised; on the right failures, each once with r = p and once with
r = l.
"""

import torch
from PIL import Image
from torch import Tensor

from capsmodel.analysis import reconstruct
from capsmodel.model import Model
from workers.artifacts import Artifact, View
from workers.artifacts.bands import Column, Row, Sheet, compose
from workers.artifacts.choice import choose
from workers.artifacts.drawing import as_bytes
from workers.specs import ReconstructionSheetConfig


class ReconstructionSheet(Artifact):
    """Composes the sheet; see `workers.specs.ReconstructionSheetConfig`."""

    name = "reconstruction-sheet"

    def __init__(self, config: ReconstructionSheetConfig) -> None:
        self.config = config

    def suits(self, model: Model) -> bool:
        """Where an image has one class; without a decoder the images stand alone."""
        return model.targets == 1

    def due(self, epoch: int) -> bool:
        """After every `every_epochs`-th epoch."""
        return epoch % self.config.every_epochs == 0

    def make(self, view: View) -> Image.Image:
        """The sheet of a part of the data, as the model sees it now."""
        return compose(self.sheet(view))

    def sheet(self, view: View) -> Sheet:
        """What stands on it."""
        labels, predictions = view.examples.labels, view.predictions
        choice = choose(labels.cpu(), view.recognised.cpu(), self.config.columns)
        columns = _columns(view, choice.recognised, predictions)
        for index in choice.failed:
            for drawn in (predictions, labels):
                columns += _columns(view, [index], drawn)
        rows = [Row("input"), Row("reconstruction")]
        return Sheet(
            title=(
                f"{view.part} · epoch {view.epoch} · "
                f"{int(view.recognised.sum())} of {len(labels)} recognised"
            ),
            columns=columns,
            head=("label  l", "predicted  p", "drawn from  r"),
            rows=tuple(rows if view.model.draws else rows[:1]),
        )


def _columns(view: View, shown: list[int], drawn: Tensor) -> list[Column]:
    """Columns of the images `shown`, each drawn from the capsule of the class `drawn`."""
    if not shown:
        return []
    chosen = torch.tensor(shown, device=drawn.device)
    images = view.examples.images[chosen]
    rows = [images]
    if view.model.draws:
        rows.append(as_bytes(reconstruct(view.model, images.float() / 255, drawn[chosen])))
    classes = (view.examples.labels, view.predictions, drawn)
    heads = torch.stack([each[chosen] for each in classes], dim=1).tolist()
    return [
        Column(tuple(map(str, head)), pictures, failure=head[0] != head[1])
        for head, pictures in zip(heads, zip(*rows, strict=True), strict=True)
    ]
