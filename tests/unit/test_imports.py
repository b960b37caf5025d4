"""Imports run one way, and what must be light is light."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_contracts_of_imports_hold() -> None:
    found = run(str(Path(sys.executable).with_name("lint-imports")))
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("service.app", ("torch", "ray")),
        ("service.client", ("torch", "ray", "mlflow", "fastapi", "sqlalchemy")),
        ("workers.specs", ("torch", "numpy", "ray", "mlflow")),
        ("workers.attempt", ("torch", "numpy", "ray", "mlflow")),
        ("workers.__main__", ("torch", "numpy", "ray", "mlflow")),
        ("workers.search_preview", ("torch", "numpy", "ray", "mlflow")),
        ("workers.trials", ("torch", "numpy", "ray", "mlflow")),
        ("workers.search.driver, workers.search.source, workers.search.trainable", ("torch",)),
        ("capsmodel.config", ("torch", "numpy", "ray", "mlflow")),
    ],
)
def test_a_module_loads_without(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([m for m in {absent!r} if m in sys.modules])"
    found = run(sys.executable, "-c", code)
    assert found.stdout.strip() == "[]", found.stdout + found.stderr
