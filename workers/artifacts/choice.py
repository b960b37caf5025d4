"""Which images a sheet shows: recognised ones of every class, and failures."""

from typing import NamedTuple

import torch
from torch import Tensor


class Choice(NamedTuple):
    """Numbers of the images that a sheet shows."""

    recognised: list[int]
    failed: list[int]
    """Each is shown twice, so it takes two columns."""


def choose(labels: Tensor, correct: Tensor, columns: int) -> Choice:
    """Examples of as many classes as fit, and failures in at most a third of the columns.

    A sheet of two or three columns shows a failure where there is one.

    Args:
        labels: int64 `[N]`, the class by which an image counts as an example.
        correct: bool `[N]`: the image was recognised.
        columns: At least 2; all that the sheet has.
    """
    failed = class_by_class(labels, ~correct)[: max(1, columns // 6)]
    room = max(0, columns - 2 * len(failed))
    return Choice(class_by_class(labels, correct)[:room], failed)


def class_by_class(labels: Tensor, chosen: Tensor) -> list[int]:
    """Numbers of the chosen images: the first of each class, then the second of each, ...

    Args:
        labels: int64 `[N]`.
        chosen: bool `[N]`.
    """
    seen: dict[int, int] = {}
    ranked = []
    for index in torch.nonzero(chosen).flatten().tolist():
        label = int(labels[index])
        seen[label] = seen.get(label, 0) + 1
        ranked.append((seen[label], label, index))
    return [index for _, _, index in sorted(ranked)]
