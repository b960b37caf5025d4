"""A tiny net, of which a training step takes milliseconds."""

from capsmodel.config import CapsNetConfig, DecoderConfig

TINY_NET = CapsNetConfig(
    conv_channels=4,
    conv_stride=2,
    primary_types=2,
    primary_dim=4,
    primary_kernel=5,
    primary_stride=3,
    class_dim=6,
    decoder=DecoderConfig(hidden=(8,)),
)
