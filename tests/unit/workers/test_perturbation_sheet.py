"""The perturbation sheet: which image it shows, what its drawings are, and how it is laid out."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from capsmodel.batch import Batch
from capsmodel.config import CapsNetConfig
from capsmodel.model import Model, ModelOutput
from workers.artifacts import View
from workers.artifacts.drawing import INK
from workers.artifacts.perturbation_sheet import (
    COLUMNS,
    Layout,
    PerturbationSheet,
    Perturbed,
    compose,
)
from workers.specs import PerturbationSheetConfig

CLASSES = 10


class Mixer(Model):
    """Reads the classes off the first pixels; draws 0.5 + the pose's weighted sum as a grey.

    The dimensions weigh 1, 1/2, 1/3, ...; the pose of class j is j / 100 in dimension 0.
    """

    def __init__(
        self, dim: int = 16, channels: int = 1, targets: int = 1, draws: bool = True
    ) -> None:
        shape = (channels, 28, 28)
        super().__init__(CapsNetConfig(image_shape=shape, classes=CLASSES, targets=targets))
        self.weights = 1 / torch.arange(1, dim + 1)
        self._draws = draws

    @property
    def draws(self) -> bool:
        return self._draws

    def compute(self, images: Tensor, target: Tensor | None = None) -> ModelOutput:
        said = (images[:, 0, 0, : self.targets] * 255).round().long()
        lengths = torch.zeros(len(images), CLASSES).scatter(1, said, 1.0)
        poses = torch.zeros(len(images), CLASSES, len(self.weights))
        poses[:, :, 0] = torch.arange(CLASSES) / 100
        return ModelOutput(lengths, poses, None)

    def reconstruct(self, poses: Tensor, target: Tensor) -> Tensor:
        own = poses[torch.arange(len(poses)), target]
        grey = 0.5 + (own * self.weights).sum(dim=1)
        return grey.view(-1, 1, 1, 1).expand(-1, *self.image_shape)


def a_view(
    said: list[list[int]], labels: list[list[int]] | None = None, **settings: object
) -> View:
    """Images of which `Mixer` says `said`."""
    model = Mixer(targets=len(said[0]), **settings)
    images = torch.full((len(said), *model.image_shape), 200, dtype=torch.uint8)
    images[:, 0, 0, : model.targets] = torch.tensor(said, dtype=torch.uint8)
    target = torch.tensor(labels or said)
    return View(model, Batch(images, target.squeeze(1)), "test", 3)


def a_sheet(**settings: object) -> PerturbationSheet:
    return PerturbationSheet(PerturbationSheetConfig(**settings))


def shown_by(view: View, **settings: object) -> Perturbed:
    return a_sheet(**settings).perturbed(view)


@pytest.mark.parametrize("largest", [0.25, 0.1])
def test_a_row_changes_one_dimension_from_left_to_right(largest: float) -> None:
    shown = shown_by(a_view([[4]]), largest=largest)
    assert shown.drawings.shape == (16, COLUMNS, 1, 28, 28)
    for dim in range(16):
        for column in range(COLUMNS):
            grey = 0.5 + 0.04 + (column - 5) * largest / 5 / (dim + 1)
            assert abs(shown.drawings[dim, column] - 255 * grey).max() <= 0.51
    assert (shown.drawings[:, 5] == shown.reconstruction).all()
    assert shown.offsets == pytest.approx([largest * k / 5 for k in range(-5, 6)])


def test_it_shows_the_recognised_image_nearest_to_the_middle() -> None:
    labels = [[number] for number in range(10)]
    said = [*labels[:3], [0], [0], [0], [0], [0], *labels[8:]]
    view = a_view(said, labels)
    shown = shown_by(view)
    assert shown.title == "test · epoch 3 · the capsule of the 2"
    assert torch.equal(shown.image, view.examples.images[2])
    assert shown.reconstruction[0, 0, 0] == round(255 * 0.52)


def test_what_was_not_recognised_is_drawn_from_its_label() -> None:
    shown = shown_by(a_view([[1], [2], [3]], [[7], [8], [9]]))
    assert shown.title == "test · epoch 3 · the capsule of the 8 · not recognised"
    assert shown.reconstruction[0, 0, 0] == round(255 * 0.58)


def test_of_two_digits_the_first_is_perturbed() -> None:
    shown = shown_by(a_view([[3, 5]], [[5, 3]]))
    assert shown.title == "test · epoch 3 · the capsule of the 5 in (5, 3)"
    assert shown.reconstruction[0, 0, 0] == round(255 * 0.55)
    assert "not recognised" in shown_by(a_view([[3, 5]], [[5, 4]])).title


def test_more_dimensions_than_fit_are_told() -> None:
    shown = shown_by(a_view([[1]], dim=40))
    assert len(shown.drawings) == 32
    assert shown.title.endswith("the first 32 of 40 dimensions")
    assert "dimensions" not in shown_by(a_view([[1]], dim=32)).title


@pytest.mark.parametrize("dims", [1, 6, 16, 17, 32])
def test_no_two_drawings_overlap(dims: int) -> None:
    layout = Layout(shown_by(a_view([[1]], dim=dims)))
    places = [layout.place(dim, column) for dim in range(dims) for column in range(COLUMNS)]
    assert len(set(places)) == dims * COLUMNS
    lefts, tops = (sorted(set(edges)) for edges in zip(*places, strict=True))
    for edges in (lefts, tops):
        assert all(b - a >= layout.side for a, b in pairwise(edges))
    assert lefts[0] > layout.panel_side
    assert lefts[-1] + layout.side <= layout.size[0]
    assert tops[-1] + layout.side <= layout.size[1]


def test_the_papers_sheet_is_about_as_wide_as_high() -> None:
    width, height = Layout(shown_by(a_view([[1]]))).size
    assert 2 / 3 < width / height < 3 / 2


def test_drawings_stand_in_their_places_and_the_middle_is_framed() -> None:
    shown = shown_by(a_view([[4]]))
    layout, painted = Layout(shown), compose(shown)
    half = layout.side // 2
    for dim in (0, 7, 15):
        for column in range(COLUMNS):
            left, top = layout.place(dim, column)
            grey = int(shown.drawings[dim, column, 0, 0, 0])
            assert painted.getpixel((left + half, top + half)) == (grey,) * 3
            framed = painted.getpixel((left - 3, top + half)) == INK
            assert framed == (column in (5, 6))  # left of the middle column, and right of it


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dim", [1, 16, 33])
def test_any_number_of_channels_and_dimensions_is_shown(channels: int, dim: int) -> None:
    picture = a_sheet().make(a_view([[1], [2]], channels=channels, dim=dim))
    assert picture.mode == "RGB"


def test_it_suits_models_that_draw() -> None:
    assert a_sheet().suits(Mixer())
    assert a_sheet().suits(Mixer(targets=2))
    assert not a_sheet().suits(Mixer(draws=False))


def test_it_is_due_at_the_end_alone_unless_set() -> None:
    assert not any(a_sheet().due(epoch) for epoch in range(1, 13))
    often = a_sheet(every_epochs=5)
    assert [epoch for epoch in range(1, 13) if often.due(epoch)] == [5, 10]
