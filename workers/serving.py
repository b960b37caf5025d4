"""The trained model as MLflow serves it: safetensors and a configuration, no pickle.

The files of the logged model: `weights.safetensors`, `config.json`, the library's code, and
`workers/pyfunc_model.py` as the code that loads them.
"""

import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file

import capsmodel
from capsmodel.config import CapsNetConfig, ModelConfig
from capsmodel.model import Model

WEIGHTS = "weights.safetensors"
CONFIG = "config.json"


def save_weights(model: Model, config: ModelConfig, folder: Path) -> None:
    """Write what `log_pyfunc` sends."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()
    }
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(config.model_dump_json(indent=2))


def log_pyfunc(folder: Path, config: ModelConfig, run_id: str) -> None:
    """Log the model, with its signature, to a run."""
    import mlflow

    # It asks for an input example or type hints, which the signature makes needless.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"mlflow\.pyfunc")
    warnings.filterwarnings("ignore", category=UserWarning, message=r"(?s).*[Tt]ype hint")
    with mlflow.start_run(run_id=run_id, log_system_metrics=False):
        mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={"weights": str(folder / WEIGHTS), "config": str(folder / CONFIG)},
            code_paths=[str(Path(capsmodel.__file__).parent)],
            signature=_signature(config),
            pip_requirements=[
                f"torch=={torch.__version__.split('+')[0]}",
                "numpy",
                "pydantic>=2.11,<3",
                "safetensors",
            ],
        )


def _signature(config: ModelConfig):  # type: ignore[no-untyped-def]
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    real, whole = np.dtype("float32"), np.dtype("int64")
    images = (-1, *config.image_shape)
    each = (-1,) if config.targets == 1 else (-1, config.targets)
    outputs = [
        TensorSpec(whole, each, "classes"),
        TensorSpec(real, (-1, config.classes), "lengths"),
    ]
    if isinstance(config, CapsNetConfig):
        outputs.append(TensorSpec(real, (-1, config.classes, config.class_dim), "poses"))
        if config.decoder is not None:
            outputs.append(TensorSpec(real, (*each, *config.image_shape), "reconstruction"))
    return ModelSignature(Schema([TensorSpec(real, images)]), Schema(outputs))
