"""Every routing, loss, model and local data set trains 20 steps as a job submitted over REST."""

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from capsmodel.config import DATASETS, LOSSES, MODELS, ROUTINGS
from service.api.views import JobView
from service.client import CapsClient
from service.queue.job import State
from support.stack import TINY, Stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

STEPS = 20
BATCH = 32
NET = {"conv_channels": 8, "primary_types": 2, "decoder": {"hidden": [16]}}
SMALL_CNN = {"type": "cnn", "channels": [4, 4], "kernels": [5, 3], "pool": 4, "hidden": [16]}
NOT_LOCAL = {"fashion-mnist"}
"""Data sets whose published files must be downloaded; tests/unit/capsmodel has their format."""

VARIANTS: dict[str, dict[str, Any]] = {
    "dynamic": {"model": NET | {"routing": {"type": "dynamic", "iterations": 5}}},
    "leaky": {"model": NET | {"routing": {"type": "dynamic", "leaky": True}}},
    "uniform": {"model": NET | {"routing": {"type": "uniform"}}},
    "self-attention": {"model": NET | {"routing": {"type": "self-attention"}}},
    "official": {
        "model": NET
        | {"primary_coupling": "uniform", "class_bias": True, "initialization": "official"},
        "loss": {"type": "margin", "scale": "half-mean"},
    },
    "cross-entropy": {"model": NET, "loss": {"type": "cross-entropy"}},
    "cnn": {"model": SMALL_CNN},
    "mnist": {"model": NET, "dataset": {"type": "mnist"}},
    "multimnist": {"model": NET, "dataset": {"type": "multimnist"}},
    "multimnist-cnn": {"model": SMALL_CNN, "dataset": {"type": "multimnist", "source": "mnist-5k"}},
    "expanded-mnist": {"model": NET, "dataset": {"type": "expanded-mnist"}},
    "affine-mnist": {"model": NET, "dataset": {"type": "affine-mnist"}},
    "huggingface": {
        "model": NET | {"conv_kernel": 5, "primary_kernel": 5},
        "dataset": {
            "type": "huggingface",
            "path": "shapes",
            "image_shape": [3, 16, 20],
            "classes": 2,
            "per_class": STEPS * BATCH // 2,
        },
    },
}


QUICK = ("self-attention", "cross-entropy", "multimnist-cnn", "huggingface")
"""Between them something of each part; the rest is marked long."""


def specification(name: str) -> dict[str, Any]:
    """A job of one epoch with exactly 20 steps."""
    variant = VARIANTS[name]
    dataset = {"type": "mnist-5k", "per_class": STEPS * BATCH // 10} | variant.get("dataset", {})
    around = {"name": name, "epochs": 1, "batch_size": BATCH, "resources": {"cpus_per_worker": 1}}
    return TINY | variant | around | {"dataset": dataset | {"validation_fraction": 0}}


def kinds(part: str) -> set[str]:
    """What the variants use of a part of the specification, by type."""
    used = set()
    for name in VARIANTS:
        settings = specification(name)
        settings["routing"] = settings["model"].get("routing", {})
        used.add(settings.get(part, {}).get("type"))
    return used


@pytest.mark.parametrize(
    ("part", "table"),
    [("routing", ROUTINGS), ("loss", LOSSES), ("model", MODELS), ("dataset", DATASETS)],
)
def test_no_member_is_left_out(part: str, table: Any) -> None:
    assert set(table.members) - NOT_LOCAL - {table.default} <= kinds(part)


def write_shapes(folder: Path) -> None:
    """Parquet as the hub has it: bright pictures and dark ones, in colour."""
    chance = np.random.default_rng(1)
    for split, each in (("train", STEPS * BATCH // 2), ("test", 20)):
        images, labels = [], []
        for number in range(2 * each):
            pixels = chance.integers(0, 120, (16, 20, 3)) + 130 * (number % 2)
            encoded = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(encoded, "PNG")
            images.append({"bytes": encoded.getvalue(), "path": f"{number}.png"})
            labels.append(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        table = pyarrow.table({"image": images, "label": labels})
        pyarrow.parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")


@pytest.fixture(scope="module")
def end_of(stack: Stack, mnist_folder: Path) -> Callable[[str], JobView]:
    """A variant's job at its end; the quick ones are submitted at once, and so are the others."""
    stack.provide("mnist", mnist_folder / "mnist")
    write_shapes(stack.data / "shapes")
    ended: dict[str, JobView] = {}

    def wait_for(name: str) -> JobView:
        if name not in ended:
            group = [other for other in VARIANTS if (other in QUICK) == (name in QUICK)]
            with stack.client() as client:
                jobs = {each: client.submit(specification(each)).id for each in group}
                ended.update({each: client.wait(job, timeout=270) for each, job in jobs.items()})
        return ended[name]

    return wait_for


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.long) for n in VARIANTS]
)
def test_trains_20_steps(client: CapsClient, end_of: Callable[[str], JobView], name: str) -> None:
    job = end_of(name)
    assert job.state is State.SUCCEEDED, f"{job.evidence}\n{client.logs(job.id).text}"
    assert job.progress is not None
    assert job.progress.step == STEPS
    assert job.result is not None
    metrics = job.result.metrics
    for measure in ("total_loss", "classification_loss", "reconstruction_loss", "accuracy"):
        assert math.isfinite(metrics[f"test/{measure}"] or 0)
    assert 0 <= (metrics["test/accuracy"] or 0) <= 1
    assert (metrics["test/reconstruction_loss"] > 0) == ("cnn" not in name)
    assert ("test/per_digit_accuracy" in metrics) == ("multimnist" in name)


@pytest.mark.long
def test_the_overlap_of_the_test_pairs_is_told(end_of: Callable[[str], JobView]) -> None:
    """72.6 % are expected of shifts of up to 4 pixels each way (section 6 of the paper)."""
    result = end_of("multimnist").result
    assert result is not None
    assert result.metrics["data/test_overlap"] == pytest.approx(0.726, abs=0.004)


def test_twenty_steps_teach_bright_from_dark(end_of: Callable[[str], JobView]) -> None:
    result = end_of("huggingface").result
    assert result is not None
    assert (result.metrics["test/accuracy"] or 0) == 1.0
