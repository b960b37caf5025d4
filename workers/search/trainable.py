"""What Tune runs: a light module, so that the search's driver need not load PyTorch.

The actor serves one trial after another: its process, its libraries and its data stay.
"""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from workers.attempt import AttemptFolder
from workers.process import print_to
from workers.sentinel import attend
from workers.trials import trial_folder

EPOCH = "epoch"
"""The name under which trials report how far they are."""

Tell = Callable[[dict[str, Any]], None]
"""Reports to Tune; does not return where the scheduler ends the trial."""


class TrialOrder(BaseModel):
    """What a trial is to do: all that Tune hands to it."""

    search: str
    attempt: int
    number: int
    seed: int
    values: dict[str, Any]


class WorkersLostError(RuntimeError):
    """One of the workers that train a trial together died."""


def run_trial(config: dict[str, Any]) -> None:
    """Run the trial that `config["order"]`, a `TrialOrder` as JSON, asks for."""
    order = TrialOrder.model_validate_json(config["order"])
    storage = Path(os.environ["CAPS_STORAGE"])
    print_to(trial_folder(storage, order.search, order.number, order.attempt).log)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    attend(AttemptFolder(storage, order.search, order.attempt), f"trial-{order.number}")
    from ray import tune

    from workers.search.trial import perform

    try:
        perform(order, storage, tune.report)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
