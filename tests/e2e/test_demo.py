"""`capsctl demo`, which is what `make run` calls: the newcomer's first two minutes."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from PIL import Image

from service.stack.processes import tagged


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_demo_learns_real_digits_and_leaves_no_process() -> None:
    home = Path(tempfile.mkdtemp(prefix="caps-demo-", dir="/tmp"))
    answer = subprocess.run(
        [sys.executable, "-m", "service.cli", "demo"],
        env={**os.environ, "CAPS_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    accuracy, sheet, run = answer.stdout.splitlines()[-3:]
    found = re.fullmatch(r"held-out accuracy: (\d+\.\d\d) %", accuracy)
    assert found, accuracy
    assert float(found.group(1)) >= 97.5
    with Image.open(sheet.removeprefix("reconstruction sheet: ")) as picture:
        assert picture.width > 400
    assert run.startswith("MLflow run: http://127.0.0.1:")
    assert not tagged(home)
    shutil.rmtree(home)
