"""What goes to MLflow beside metrics: each function returns the call that a `Courier` makes.

Where that is a process of its own the call is pickled, so it holds what it needs, and no more.
"""

import os
import subprocess
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from capsmodel.config import ModelConfig
from workers.attempt import AnyAttempt
from workers.courier import Call
from workers.specs import TrainSpec

if TYPE_CHECKING:  # the driver of a search sends files, and loads no PyTorch for it
    from mlflow import MlflowClient

    from capsmodel.checkpoint import CheckpointInfo
    from capsmodel.datasets import Dataset
    from capsmodel.model import Model
    from capsmodel.training import TrainingOutcome

NOTE = "mlflow.note.content"
SHEETS = "sheets"
"""Folder of the run's artifacts that holds the pictures under their own names."""


def start(attempt: AnyAttempt) -> Call:
    """Tags of the attempt, and the specification as a file."""
    return partial(_start, attempt)


def _start(attempt: AnyAttempt, client: "MlflowClient", run_id: str) -> None:
    client.update_run(run_id, status="RUNNING")
    client.set_tag(run_id, "caps.attempt", str(attempt.attempt))
    client.set_tag(run_id, "caps.release", attempt.package_version)
    client.set_tag(run_id, "mlflow.source.git.commit", commit())
    client.log_dict(run_id, attempt.spec.model_dump(mode="json"), "spec.json")


def end(status: str) -> Call:
    """The run's final status: FINISHED, FAILED or KILLED."""
    return partial(_end, status)


def _end(status: str, client: "MlflowClient", run_id: str) -> None:
    client.set_terminated(run_id, status)


def log_dataset(name: str, dataset: "Dataset") -> Call:
    """The data set as the run's input, with the digest that identifies it."""
    images = f"{len(dataset.train_images)} + {len(dataset.test_images)}"
    return partial(_log_dataset, name, dataset.sha256, images, dict(dataset.facts))


def _log_dataset(
    name: str,
    sha256: str,
    images: str,
    facts: dict[str, float],
    client: "MlflowClient",
    run_id: str,
) -> None:
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    source = CodeDatasetSource(tags={"dataset": name, "sha256": sha256})
    meta = MetaDataset(source, name=name, digest=sha256[:32])
    tags = [
        InputTag("mlflow.data.context", "training"),
        InputTag("images", images),
        *(InputTag(name, f"{value:.4f}") for name, value in facts.items()),
    ]
    client.log_inputs(run_id, [DatasetInput(meta._to_mlflow_entity(), tags)])


def log_picture(path: Path, key: str, epoch: int) -> Call:
    """An image card with a slider over epochs, and the same picture under its own name."""
    return partial(_log_picture, path, key, epoch)


def _log_picture(path: Path, key: str, epoch: int, client: "MlflowClient", run_id: str) -> None:
    from PIL import Image

    with Image.open(path) as picture:
        client.log_image(run_id, picture, key=key, step=epoch)
    client.log_artifact(run_id, str(path), SHEETS)


def log_checkpoint(name: str, info: "CheckpointInfo") -> Call:
    """A checkpoint, with the digest that it must have."""
    return partial(_log_checkpoint, name, info.path)


def _log_checkpoint(name: str, weights: Path, client: "MlflowClient", run_id: str) -> None:
    for path in (weights, weights.with_name(f"{weights.name}.json")):
        client.log_artifact(run_id, str(path), f"checkpoints/{name}")


def log_model(model: "Model", spec: TrainSpec, folder: Path) -> Call:
    """The model for `mlflow.pyfunc.load_model`; the weights are written now, sent later."""
    from workers.serving import save_weights

    save_weights(model, spec.model, folder)
    return partial(_log_model, folder, spec.model)


def _log_model(folder: Path, config: ModelConfig, client: "MlflowClient", run_id: str) -> None:
    from workers.serving import log_pyfunc

    log_pyfunc(folder, config, run_id)


def log_summary(metrics: dict[str, float], outcome: "TrainingOutcome", sheets: list[Path]) -> Call:
    """Results and the last sheets, added to the note that the control plane began."""
    ended = f"Ended after epoch {outcome.epoch}, step {outcome.step} ({outcome.stopped})."
    return partial(_log_summary, metrics, ended, sheets)


def _log_summary(
    metrics: dict[str, float], ended: str, sheets: list[Path], client: "MlflowClient", run_id: str
) -> None:
    note = client.get_run(run_id).data.tags.get(NOTE, "")
    begun, _, _ = note.partition("\n\n## Results")
    results = "\n".join(
        f"- {weights} weights: test accuracy **{100 * metrics[f'{prefix}/accuracy']:.2f} %**, "
        f"{_per_digit(metrics, prefix)}loss {metrics[f'{prefix}/total_loss']:.4f}"
        for weights, prefix in (("best", "test"), ("last", "test_last"))
    )
    # A path that MLflow's own page serves, wherever that page is reached.
    pictures = [
        f"![{path.stem}](get-artifact?path={SHEETS}/{path.name}&run_uuid={run_id})"
        for path in sheets
    ]
    parts = [begun, "## Results", results, ended, *pictures]
    client.set_tag(run_id, NOTE, "\n\n".join(parts))


def _per_digit(metrics: dict[str, float], prefix: str) -> str:
    """Where two digits overlap, accuracy is that both are recognised; this is each one's."""
    share = metrics.get(f"{prefix}/per_digit_accuracy")
    return "" if share is None else f"per digit {100 * share:.2f} %, "


def commit() -> str:
    """The commit that the code was installed from: CAPS_COMMIT, or that of its checkout."""
    stated = os.environ.get("CAPS_COMMIT")
    if stated:
        return stated
    checkout = Path(__file__).parent.parent
    if not (checkout / "pyproject.toml").exists():  # installed, perhaps inside a user's repository
        return "unknown"
    describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    command = ["git", "-C", str(checkout), *describe]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return answer.stdout.strip() or "unknown"
