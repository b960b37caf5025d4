"""What the best trials look like: their sheets, their models, and drawings to compare.

Made at the search's end, by a task on the cluster that asks for what a trial asks for.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from capsmodel.analysis import reconstruct
from capsmodel.batch import Batch
from capsmodel.checkpoint import load_checkpoint
from capsmodel.training import Trainer
from workers.artifacts import View, build_artifacts
from workers.artifacts.choice import class_by_class
from workers.artifacts.drawing import as_bytes
from workers.attempt import AttemptFolder, SearchAttempt
from workers.course import prepare_device
from workers.reporter import MAX_PICTURED_IMAGES
from workers.search.trial import dataset_on
from workers.sentinel import attend
from workers.serving import save_weights
from workers.trials import Trial, trial_folder

DRAWINGS = "drawings.npz"
COMPARED = 10
"""Images in the comparison."""


class Drawings(NamedTuple):
    """What a trial makes of the images that all are compared by."""

    inputs: np.ndarray
    """uint8 `[N, C, H, W]`."""
    labels: np.ndarray
    """int64 `[N]` or `[N, T]`."""
    drawn: np.ndarray
    """uint8 `[N, C, H, W]`; none where the model draws nothing."""


def show(search: str, attempt_number: int, trial_document: str) -> None:
    """Make all of one trial's, in its folder."""
    storage = Path(os.environ["CAPS_STORAGE"])
    whole = AttemptFolder(storage, search, attempt_number)
    attempt = whole.accept_attempt()
    trial = Trial.model_validate_json(trial_document)
    assert isinstance(attempt, SearchAttempt)
    assert trial.checkpoint is not None
    attend(whole, f"show-{trial.number}")
    spec = attempt.spec.variant(trial.values, trial.seed)
    device = prepare_device(spec.resources.cpus_per_worker, spec.resources.gpus_per_worker)
    folder = trial_folder(storage, search, trial.number, attempt_number)
    trainer = Trainer(spec.training, dataset_on(device, spec.dataset), device=device)
    trainer.load_weights(load_checkpoint(storage / trial.checkpoint, trial.checkpoint_sha256))
    examples = trainer.examples("validation", MAX_PICTURED_IMAGES)
    view = View(trainer.model, examples, "validation", trial.checkpoint_epoch or trial.epoch)
    folder.artifacts.mkdir(parents=True, exist_ok=True)
    for artifact in build_artifacts(spec.artifacts):
        if artifact.suits(trainer.model):
            name = f"{artifact.name}-validation-epoch-{view.epoch:04d}.png"
            artifact.make(view).save(folder.artifacts / name)
    save_weights(trainer.model, spec.model, folder.path / "model")
    found = _drawings(trainer, examples)
    np.savez(folder.path / DRAWINGS, **found._asdict())


def read_drawings(folder: AttemptFolder) -> Drawings:
    """What `show` has drawn. Raises OSError where it did not come to that."""
    with np.load(folder.path / DRAWINGS) as content:
        return Drawings(content["inputs"], content["labels"], content["drawn"])


def _drawings(trainer: Trainer, examples: Batch) -> Drawings:
    """A few images of every class, as the model reconstructs them from their labels' capsules."""
    first = examples.labels.view(len(examples.labels), -1)[:, 0]
    everything = torch.ones(len(first), dtype=torch.bool)
    shown = torch.tensor(class_by_class(first.cpu(), everything)[:COMPARED])
    images, labels = examples.images[shown], examples.labels[shown]
    model = trainer.model
    drawn = images[:0]
    if model.draws:
        drawn = as_bytes(reconstruct(model, images.float() / 255, labels))
        if drawn.dim() == images.dim() + 1:  # a drawing for each of the digits that overlap
            drawn = drawn.amax(dim=1)
    return Drawings(images.cpu().numpy(), labels.cpu().numpy(), drawn.cpu().numpy())
