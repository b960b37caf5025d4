"""Initial weights as in the authors' code (capsnet's official release, not stated in the paper)."""

from torch import Tensor, nn

CONV_STD = 0.05
"""Standard deviation of the first convolution's initial weights."""
STD = 0.1
"""Standard deviation of all other initial weights."""
BIAS = 0.1
"""Initial value of every bias."""


def official_weight_(weight: Tensor, std: float = STD) -> None:
    """Fill with a normal distribution that is redrawn beyond two standard deviations."""
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def official_layer_(layer: nn.Conv2d | nn.Linear, std: float = STD) -> None:
    """Fill a layer's weight and bias."""
    official_weight_(layer.weight, std)
    if layer.bias is not None:
        nn.init.constant_(layer.bias, BIAS)
