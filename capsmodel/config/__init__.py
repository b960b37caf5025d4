"""Every setting of the library, as strict and bounded Pydantic models. Imports no torch.

One file a subject; the table of each open set (`ROUTINGS`, `LOSSES`, ...) stands at the end of its
file. Adding a member is its configuration and one line there, and one file for its implementation.
"""

from capsmodel.config.base import Config, ImageShape
from capsmodel.config.dataset import (
    DATASETS,
    AffineMnistConfig,
    DatasetConfig,
    ExpandedMnistConfig,
    FashionMnistConfig,
    HuggingFaceConfig,
    Mnist5kConfig,
    MnistConfig,
    MultiMnistConfig,
)
from capsmodel.config.loss import LOSSES, CrossEntropyLossConfig, LossConfig, MarginLossConfig
from capsmodel.config.model import (
    MODELS,
    CapsNetConfig,
    CnnConfig,
    DecoderConfig,
    ModelConfig,
)
from capsmodel.config.routing import (
    ROUTINGS,
    DynamicRoutingConfig,
    RoutingConfig,
    SelfAttentionRoutingConfig,
    UniformRoutingConfig,
)
from capsmodel.config.schedule import (
    SCHEDULES,
    ConstantScheduleConfig,
    CosineScheduleConfig,
    ExponentialScheduleConfig,
    ScheduleConfig,
)
from capsmodel.config.training import EarlyStoppingConfig, OptimizerConfig, TrainingConfig

__all__ = [
    "DATASETS",
    "LOSSES",
    "MODELS",
    "ROUTINGS",
    "SCHEDULES",
    "AffineMnistConfig",
    "CapsNetConfig",
    "CnnConfig",
    "Config",
    "ConstantScheduleConfig",
    "CosineScheduleConfig",
    "CrossEntropyLossConfig",
    "DatasetConfig",
    "DecoderConfig",
    "DynamicRoutingConfig",
    "EarlyStoppingConfig",
    "ExpandedMnistConfig",
    "ExponentialScheduleConfig",
    "FashionMnistConfig",
    "HuggingFaceConfig",
    "ImageShape",
    "LossConfig",
    "MarginLossConfig",
    "Mnist5kConfig",
    "MnistConfig",
    "ModelConfig",
    "MultiMnistConfig",
    "OptimizerConfig",
    "RoutingConfig",
    "ScheduleConfig",
    "SelfAttentionRoutingConfig",
    "TrainingConfig",
    "UniformRoutingConfig",
]
