"""The CapsNet of Sabour et al. 2017 (figures 1 and 2)."""

from torch import Tensor, nn

from capsmodel.config import CapsNetConfig
from capsmodel.convolution import Convolution
from capsmodel.decoder import Decoder
from capsmodel.functional import lengths
from capsmodel.initialization import CONV_STD, official_layer_
from capsmodel.layers import PrimaryCaps, RoutingCaps
from capsmodel.model import Model, ModelOutput, predicted_classes
from capsmodel.routing.trace import RoutingTrace


class CapsNet(Model):
    """Convolution, primary capsules, routed class capsules, decoder (section 4).

    With the default configuration it has 8,215,568 parameters, 1,411,344 of them the decoder's.
    """

    def __init__(self, config: CapsNetConfig | None = None) -> None:
        config = config or CapsNetConfig()
        super().__init__(config)
        channels, _, _ = config.image_shape
        self.conv = Convolution(
            channels,
            config.conv_channels,
            config.conv_kernel,
            config.conv_stride,
            config.conv_padding,
            relu=True,
        )
        if config.initialization == "official":
            official_layer_(self.conv, CONV_STD)
        else:
            nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        self.primary_caps = PrimaryCaps(config)
        self.class_caps = RoutingCaps(config)
        self.decoder = Decoder(config.decoder, config) if config.decoder else None

    def compute(self, images: Tensor, target: Tensor | None = None) -> ModelOutput:
        """`forward` without the check of its arguments."""
        poses = self.encode(images)
        presence = lengths(poses)
        if target is None:
            target = predicted_classes(presence, self.targets)
        return ModelOutput(presence, poses, self.reconstruct(poses, target))

    def encode(self, images: Tensor, trace: RoutingTrace | None = None) -> Tensor:
        """Poses of the class capsules `[B, J, D]` from images `[B, C, H, W]` in [0, 1].

        Args:
            images: Not checked.
            trace: Where given, each pass of the routing is recorded in it.
        """
        poses: Tensor = self.class_caps(self.primary_caps(self.conv(images)), trace)
        return poses

    def reconstruct(self, poses: Tensor, target: Tensor) -> Tensor | None:
        """Images drawn from the `target` capsules of poses `[B, J, D]`.

        Args:
            poses: Class capsules as `forward` returns them, or perturbed ones (section 5.1).
            target: int64 `[B]` in 0 .. J-1, or `[B, T]`.

        Returns:
            Images `[B, C, H, W]`, or `[B, T, C, H, W]`, in [0, 1]; None without a decoder.
        """
        if self.decoder is None:
            return None
        images: Tensor = self.decoder(poses, target)
        return images

    @property
    def draws(self) -> bool:
        """Whether there is a decoder."""
        return self.decoder is not None
