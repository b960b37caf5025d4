"""Pictures and reports of a training; one file a kind, named in the table of `workers.specs`."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from capsmodel.analysis import predict
from capsmodel.batch import Batch
from capsmodel.model import Model
from workers.specs import ARTIFACTS, ArtifactConfig

BATCH_SIZE = 250
"""Images that are made pixels at a time: as bytes they take a quarter of the room."""


@dataclass(frozen=True)
class View:
    """What an artifact may look at."""

    model: Model
    examples: Batch
    """Bytes and labels of up to a thousand images of the part, on the model's device."""
    part: Literal["train", "validation", "test"]
    epoch: int
    """Epochs completed."""

    @cached_property
    def predictions(self) -> Tensor:
        """int64 `[N]`, or `[N, T]`, longest first; made once for all artifacts."""
        batches = torch.split(self.examples.images, BATCH_SIZE)
        return torch.cat([predict(self.model, batch.float() / 255).classes for batch in batches])

    @cached_property
    def recognised(self) -> Tensor:
        """Bool `[N]`: the classes predicted are those of the labels."""
        found, labels = (
            classes.view(len(classes), -1).sort(dim=1).values
            for classes in (self.predictions, self.examples.labels)
        )
        return (found == labels).all(dim=1)


class Artifact(ABC):
    """Base of the artifacts; constructed with its configuration alone."""

    name: str
    """Stands in file names and MLflow keys."""

    @abstractmethod
    def suits(self, model: Model) -> bool:
        """Whether the picture says anything about such a model."""

    @abstractmethod
    def due(self, epoch: int) -> bool:
        """Whether to make it after this epoch; at the end it is made in any case."""

    @abstractmethod
    def make(self, view: View) -> Image.Image:
        """The picture."""


def build_artifacts(configs: Sequence[ArtifactConfig]) -> list[Artifact]:
    """The artifacts that a specification names."""
    return [ARTIFACTS.implementation(config.type)(config) for config in configs]
