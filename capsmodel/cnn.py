"""The CNN baselines of the paper: section 5 for MNIST, section 6.2 for MultiMNIST."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from capsmodel.config import CnnConfig
from capsmodel.model import Model, ModelOutput


class Cnn(Model):
    """Convolutions that keep the size, each with ReLU and perhaps pooling; fully connected layers.

    With the default configuration it has 35,445,522 parameters.
    """

    def __init__(self, config: CnnConfig | None = None) -> None:
        config = config or CnnConfig()
        super().__init__(config)
        layers: list[nn.Module] = []
        widths = pairwise((config.image_shape[0], *config.channels))
        for (channels_in, channels_out), kernel in zip(widths, config.kernels, strict=True):
            layers += [nn.Conv2d(channels_in, channels_out, kernel, padding="same"), nn.ReLU()]
            if config.pool > 1:
                layers.append(nn.MaxPool2d(config.pool, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        head: list[nn.Module] = []
        for units_in, units_out in pairwise((config.features, *config.hidden)):
            head += [nn.Linear(units_in, units_out), nn.ReLU()]
        last_width = config.hidden[-1] if config.hidden else config.features
        head += [nn.Dropout(config.dropout), nn.Linear(last_width, config.classes)]
        self.head = nn.Sequential(*head)

    def compute(self, images: Tensor, target: Tensor | None = None) -> ModelOutput:
        """Probabilities and logits; there are no capsules, and `target` changes nothing."""
        values: Tensor = self.head(self.features(images).flatten(1))
        logits = values.to(torch.promote_types(values.dtype, torch.float32))
        probabilities = logits.softmax(dim=1) if self.targets == 1 else logits.sigmoid()
        return ModelOutput(probabilities, None, None, logits)

    def reconstruct(self, poses: Tensor, target: Tensor) -> None:
        """None: nothing can be drawn."""
        return None
