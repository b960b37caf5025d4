"""The yardstick of `start_latency`: the same training in Ray Train's TorchTrainer, nothing else."""

import sys
import time
from pathlib import Path

from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def train(settings: dict[str, str]) -> None:
    """What the one worker runs: train until the first step is done, and note when."""
    from capsmodel.callbacks import Callback
    from capsmodel.metrics import StepMetrics
    from capsmodel.training import Trainer
    from workers.specs import TrainSpec

    class NoteFirstStep(Callback):
        def on_step(self, trainer: Trainer, metrics: StepMetrics) -> None:
            Path(settings["mark"]).write_text(str(time.time()))
            trainer.request_stop()

    spec = TrainSpec.model_validate_json(settings["spec"])
    Trainer(spec.training, device="cpu", callbacks=[NoteFirstStep()]).fit()


if __name__ == "__main__":
    mark, storage, spec = sys.argv[1:]
    TorchTrainer(
        train,
        train_loop_config={"mark": mark, "spec": spec},
        scaling_config=ScalingConfig(num_workers=1, use_gpu=False),
        run_config=RunConfig(storage_path=storage),
    ).fit()
