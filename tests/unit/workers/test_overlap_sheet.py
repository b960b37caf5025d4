"""The overlap sheet: which pairs it shows, in which colours, and what was drawn from what."""

import pytest
import torch
from torch import Tensor

from capsmodel.analysis import COLOURS
from capsmodel.batch import Batch
from capsmodel.config import CapsNetConfig
from capsmodel.model import Model, ModelOutput
from workers.artifacts import View
from workers.artifacts.overlap_sheet import OverlapSheet, in_order_of
from workers.specs import OverlapSheetConfig

CLASSES = 10
SIDE = 36
SHARED_ROW = 20


class Stripes(Model):
    """Reads two classes off the first pixels; class j paints row j and one that all share."""

    def __init__(self, channels: int = 1, targets: int = 2, draws: bool = True) -> None:
        shape = (channels, SIDE, SIDE)
        super().__init__(CapsNetConfig(image_shape=shape, classes=CLASSES, targets=targets))
        self._draws = draws

    @property
    def draws(self) -> bool:
        return self._draws

    def compute(self, images: Tensor, target: Tensor | None = None) -> ModelOutput:
        said = (images[:, 0, 0, :2] * 255).round().long()
        longer_first = torch.tensor([[0.9, 0.8]]).expand(len(images), 2)
        lengths = torch.zeros(len(images), CLASSES).scatter(1, said, longer_first)
        return ModelOutput(lengths, torch.zeros(len(images), CLASSES, 4), None)

    def reconstruct(self, poses: Tensor, target: Tensor) -> Tensor:
        drawn = torch.zeros(*target.shape, *self.image_shape)
        for sample, pair in enumerate(target.tolist()):
            for place, digit in enumerate(pair):
                drawn[sample, place, :, [digit, SHARED_ROW]] = 1.0
        return drawn


def a_view(
    said: list[list[int]],
    labels: list[list[int]] | None = None,
    channels: int = 1,
    with_parts: bool = True,
) -> View:
    """Pairs of which `Stripes` says `said`; the true digits are drawn half as bright."""
    model = Stripes(channels)
    images = torch.full((len(said), *model.image_shape), 200, dtype=torch.uint8)
    images[:, 0, 0, :2] = torch.tensor(said, dtype=torch.uint8)
    target = torch.tensor(labels or said)
    drawn = model.reconstruct(torch.zeros(len(said), CLASSES, 4), target)
    parts = (drawn * 128).to(torch.uint8) if with_parts else None
    return View(model, Batch(images, target, parts), "validation", 3)


def a_sheet(columns: int = 12) -> OverlapSheet:
    return OverlapSheet(OverlapSheetConfig(columns=columns))


def as_drawn(*strengths: float) -> tuple[int, ...]:
    """The colour of a pixel that is so much of the first and so much of the second digit."""
    shares = zip(*COLOURS, strict=True)
    return tuple(
        round(255 * sum(strength * share for strength, share in zip(strengths, both, strict=True)))
        for both in shares
    )


def rows_of(picture: Tensor) -> dict[int, tuple[int, ...]]:
    """Colours of the rows that are not black."""
    assert (picture == picture[:, :, :1]).all()
    colours = picture[:, :, 0].T.tolist()
    return {row: tuple(colour) for row, colour in enumerate(colours) if any(colour)}


def test_predictions_are_turned_round_to_meet_their_labels() -> None:
    labels = torch.tensor([[3, 8]] * 5)
    said = torch.tensor([[3, 8], [8, 3], [8, 5], [5, 3], [1, 2]])
    turned = [[3, 8], [3, 8], [5, 8], [3, 5], [1, 2]]
    assert in_order_of(labels, said).tolist() == turned


def test_recognised_pairs_are_told_apart_in_colours() -> None:
    view = a_view([[8, 3]], [[3, 8]])
    (column,) = a_sheet().sheet(view).columns
    assert column.head == ("(3, 8)",) * 3
    assert not column.failure
    image, truth, both, first, second = column.pictures
    assert torch.equal(image, view.examples.images[0])
    assert rows_of(both) == {
        3: as_drawn(1, 0),
        8: as_drawn(0, 1),
        SHARED_ROW: (255, 255, 255),
    }
    assert rows_of(first) == {row: as_drawn(1, 0) for row in (3, SHARED_ROW)}
    assert rows_of(second) == {row: as_drawn(0, 1) for row in (8, SHARED_ROW)}
    half = 128 / 255
    assert rows_of(truth) == {
        3: as_drawn(half, 0),
        8: as_drawn(0, half),
        SHARED_ROW: (128, 128, 128),
    }


def test_failures_stand_at_the_right_drawn_as_predicted_and_as_labelled() -> None:
    labels = [[digit, (digit + 1) % 10] for digit in range(10)]
    said = [*labels]
    said[3], said[6] = [4, 7], [1, 2]
    shown = a_sheet(12).sheet(a_view(said, labels)).columns
    assert [column.failure for column in shown] == [False] * 8 + [True] * 4
    assert [column.head for column in shown[8:]] == [
        ("(3, 4)", "(7, 4)", "(7, 4)"),
        ("(3, 4)", "(7, 4)", "(3, 4)"),
        ("(6, 7)", "(1, 2)", "(1, 2)"),
        ("(6, 7)", "(1, 2)", "(6, 7)"),
    ]
    drawn = [sorted(rows_of(column.pictures[2]))[:2] for column in shown[8:]]
    assert drawn == [[4, 7], [3, 4], [1, 2], [6, 7]]
    true = [sorted(rows_of(column.pictures[1]))[:2] for column in shown[8:]]
    assert true == [[3, 4], [3, 4], [6, 7], [6, 7]]


def test_one_digit_of_two_is_a_failure_in_the_title_too() -> None:
    view = a_view([[1, 2], [3, 5], [4, 3]], [[2, 1], [3, 4], [3, 4]])
    sheet = a_sheet().sheet(view)
    assert sheet.title == "validation · epoch 3 · both digits recognised in 2 of 3 pairs"


@pytest.mark.parametrize("columns", [2, 3, 12, 40])
def test_the_sheet_is_never_wider_than_asked(columns: int) -> None:
    labels = [[digit, (digit + 1) % 10] for digit in range(10)] * 5
    for said in (labels, [[2, 9], *labels[1:]], [[2, 9]] * 50):
        assert 1 <= len(a_sheet(columns).sheet(a_view(said, labels)).columns) <= columns


def test_without_parts_the_true_digits_are_left_out() -> None:
    sheet = a_sheet().sheet(a_view([[1, 2]], with_parts=False))
    assert [row.name for row in sheet.rows][:2] == ["input", "reconstruction"]
    assert [len(column.pictures) for column in sheet.columns] == [4]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("said", [[[1, 2]], [[3, 4]], [[1, 2], [3, 4]]])
def test_any_number_of_channels_hits_and_failures_is_shown(channels: int, said: list) -> None:
    picture = a_sheet().make(a_view(said, [[1, 2]] * len(said), channels))
    colours = {colour for _, colour in picture.getcolors(1_000_000)}
    assert {as_drawn(1, 0), as_drawn(0, 1), (255, 255, 255)} <= colours


def test_it_suits_models_that_draw_two_classes() -> None:
    assert a_sheet().suits(Stripes())
    assert not a_sheet().suits(Stripes(draws=False))
    assert not a_sheet().suits(Stripes(targets=1))


def test_it_is_due_every_so_many_epochs() -> None:
    sheet = OverlapSheet(OverlapSheetConfig(every_epochs=5))
    assert [epoch for epoch in range(1, 13) if sheet.due(epoch)] == [5, 10]
