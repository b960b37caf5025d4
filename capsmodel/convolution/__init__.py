"""Convolutions: one layer, and the route by which it is computed.

All routes compute the same. On a CPU two of them are faster than PyTorch's convolution where they
apply: `unfolded` for images of few channels, `frequency` for the primary capsules of the usual
nets; everything else is `torch.nn.functional.conv2d`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from capsmodel.convolution import frequency, unfolded
from capsmodel.convolution.kept_spectra import KeptSpectra
from capsmodel.kernels import own_operators


class Convolution(nn.Conv2d):
    """`torch.nn.Conv2d` that takes the fastest route; the features may come channels last.

    Attributes:
        relu: Whether a ReLU follows, which here costs no memory of its own.
        spectra: Of the weights, where the frequency route keeps them between inferences.
    """

    def __init__(self, *args: Any, relu: bool = False, **kwargs: Any) -> None:
        """A layer with the arguments of `torch.nn.Conv2d`."""
        super().__init__(*args, **kwargs)
        self.relu = relu
        self.spectra = KeptSpectra()

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if own_operators() and _takes(self, input):
            dtype = product_dtype(input)
            if unfolded.applies(self, input):
                return unfolded.convolve(self, input, dtype)
            if frequency.applies(self, input):
                return frequency.convolve(self, input, dtype)
        maps: Tensor = super()._conv_forward(input, weight, bias)
        return maps.relu_() if self.relu else maps

    def extra_repr(self) -> str:
        """The layer's settings, as `print` shows them."""
        settings: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return settings + (", relu=True" if self.relu else "")


def _takes(layer: Convolution, images: Tensor) -> bool:
    """Whether images and weights are what routes of our own read without asking.

    What does not fit goes to PyTorch's convolution, which knows more cases and says what is wrong.
    """
    weight, bias = layer.weight, layer.bias
    given = [images, weight] if bias is None else [images, weight, bias]
    return (
        all(tensor.device.type == "cpu" for tensor in given)
        and all(tensor.dtype == torch.float32 for tensor in given[1:])
        and images.dtype in (torch.float32, torch.bfloat16)
        and (images.dtype == weight.dtype or torch.is_autocast_enabled("cpu"))
        and product_dtype(images) in (torch.float32, torch.bfloat16)
        and images.dim() == 4
        and images.numel() > 0
        and layer.groups == 1
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and weight.shape == (layer.out_channels, images.shape[1], *layer.kernel_size)
        and (bias is None or bias.shape == (layer.out_channels,))
    )


def product_dtype(images: Tensor) -> torch.dtype:
    """The dtype in which a convolution of these images is multiplied: autocast's, or their own."""
    kind = images.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else images.dtype
