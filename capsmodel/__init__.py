"""CapsNet as a PyTorch library: dynamic routing, margin loss, reconstruction (Sabour et al., 2017).

The names below load on first use (PEP 562), so `capsmodel.config` can be imported without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capsmodel.config import CapsNetConfig, TrainingConfig
    from capsmodel.datasets import Dataset, load_dataset
    from capsmodel.model import CapsNet, CapsNetOutput
    from capsmodel.training import Trainer

_HOME = {
    "CapsNet": "capsmodel.model",
    "CapsNetConfig": "capsmodel.config",
    "CapsNetOutput": "capsmodel.model",
    "Dataset": "capsmodel.datasets",
    "Trainer": "capsmodel.training",
    "TrainingConfig": "capsmodel.config",
    "load_dataset": "capsmodel.datasets",
}

__version__ = "0.1.0"
__all__ = [
    "CapsNet",
    "CapsNetConfig",
    "CapsNetOutput",
    "Dataset",
    "Trainer",
    "TrainingConfig",
    "load_dataset",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'capsmodel' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
