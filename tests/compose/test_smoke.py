"""deploy/smoke.sh, as a user would run it."""

import subprocess

import pytest

from support.compose import REPOSITORY, engine

pytestmark = [pytest.mark.long, pytest.mark.timeout(2400)]


def test_the_smoke_test_passes() -> None:
    engine()
    done = subprocess.run(
        [REPOSITORY / "deploy" / "smoke.sh"], capture_output=True, text=True, timeout=2300
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("passed")
