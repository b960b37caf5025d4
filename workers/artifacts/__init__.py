"""Pictures and reports of a training; one file a kind, named in the table of `workers.specs`."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from PIL import Image
from torch import Tensor

from capsmodel.model import Model
from workers.specs import ARTIFACTS, ArtifactConfig


@dataclass(frozen=True)
class View:
    """What an artifact may look at."""

    model: Model
    images: Tensor
    """uint8 `[N, C, H, W]`, on the model's device."""
    labels: Tensor
    """int64 `[N]`."""
    part: Literal["train", "validation", "test"]
    epoch: int
    """Epochs completed."""


class Artifact(ABC):
    """Base of the artifacts; constructed with its configuration alone."""

    name: str
    """Stands in file names and MLflow keys."""

    @abstractmethod
    def due(self, epoch: int) -> bool:
        """Whether to make it after this epoch; at the end it is made in any case."""

    @abstractmethod
    def make(self, view: View) -> Image.Image:
        """The picture."""


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Evaluation mode, and afterwards whatever mode the model was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def build_artifacts(configs: Sequence[ArtifactConfig]) -> list[Artifact]:
    """The artifacts that a specification names."""
    return [ARTIFACTS.implementation(config.type)(config) for config in configs]
