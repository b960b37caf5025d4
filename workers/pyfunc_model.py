"""What MLflow runs to load a logged model ("models from code"): `mlflow.pyfunc.load_model`.

Executed as a script beside a copy of `capsmodel`; it must import nothing else of ours.
"""

import json
from pathlib import Path
from typing import Any, cast

import mlflow
import numpy as np
import torch
from safetensors.torch import load_file

from capsmodel.config import MODELS, ModelConfig
from capsmodel.model import build_model, predicted_classes


class CapsNetModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Classes, lengths, poses and reconstructions from images."""

    def load_context(self, context: Any) -> None:
        """Build the net and read its weights."""
        text = Path(context.artifacts["config"]).read_text()
        kind = MODELS.members[json.loads(text)["type"]].config
        self.net = build_model(cast(ModelConfig, kind.model_validate_json(text)))
        self.net.load_state_dict(load_file(context.artifacts["weights"]))
        self.net.eval()

    @torch.no_grad()
    def predict(self, context: Any, model_input: Any, params: Any = None) -> dict[str, Any]:
        """Images `[N, C, H, W]`, float32 in [0, 1], to a dictionary of arrays.

        Returns:
            `classes` int64 [N], the longest capsule, with T targets [N, T], longest first;
            `lengths` [N, J]; of a CapsNet also `poses` [N, J, D] and `reconstruction` [N, C, H, W],
            with T targets [N, T, C, H, W], drawn from the capsules of `classes`.
        """
        images = torch.from_numpy(np.ascontiguousarray(model_input, dtype=np.float32))
        output = self.net(images)
        answer = {
            "classes": predicted_classes(output.lengths, self.net.targets).numpy(),
            "lengths": output.lengths.numpy(),
        }
        if output.poses is not None:
            answer["poses"] = output.poses.numpy()
        if output.reconstruction is not None:
            answer["reconstruction"] = output.reconstruction.numpy()
        return answer


mlflow.models.set_model(CapsNetModel())
