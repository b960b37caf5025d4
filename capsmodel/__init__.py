"""CapsNet as a PyTorch library: dynamic routing, margin loss, reconstruction (Sabour et al., 2017).

The names below load on first use (PEP 562), so `capsmodel.config` can be imported without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capsmodel.batch import Batch
    from capsmodel.capsnet import CapsNet
    from capsmodel.cnn import Cnn
    from capsmodel.config import CapsNetConfig, CnnConfig, TrainingConfig
    from capsmodel.datasets import Dataset, load_dataset
    from capsmodel.model import Model, ModelOutput, build_model
    from capsmodel.training import Trainer

_HOME = {
    "Batch": "capsmodel.batch",
    "CapsNet": "capsmodel.capsnet",
    "CapsNetConfig": "capsmodel.config",
    "Cnn": "capsmodel.cnn",
    "CnnConfig": "capsmodel.config",
    "Dataset": "capsmodel.datasets",
    "Model": "capsmodel.model",
    "ModelOutput": "capsmodel.model",
    "Trainer": "capsmodel.training",
    "TrainingConfig": "capsmodel.config",
    "build_model": "capsmodel.model",
    "load_dataset": "capsmodel.datasets",
}

__version__ = "0.1.0"
__all__ = [
    "Batch",
    "CapsNet",
    "CapsNetConfig",
    "Cnn",
    "CnnConfig",
    "Dataset",
    "Model",
    "ModelOutput",
    "Trainer",
    "TrainingConfig",
    "build_model",
    "load_dataset",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'capsmodel' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
