"""A first start may be cut off at any moment: the next one makes the databases whole."""

import subprocess
import time

import pytest

from support.compose import Deployment
from support.stack import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

LOGIN = ("psql", "--no-psqlrc", "--tuples-only", "--username=postgres", "--command")
ROLES = "SELECT rolname FROM pg_roles WHERE rolcanlogin ORDER BY 1"


@pytest.mark.parametrize("after_s", [0.1, 0.5, 0.9, 1.2, 1.5, 1.8, 2.2])
def test_postgresql_is_killed_in_its_first_start(images: None, after_s: float) -> None:
    deployment = Deployment("capsnet-first")
    deployment.down()
    try:
        deployment.compose("up", "--detach", "--no-build", "secrets", "postgres")
        until(lambda: deployment.containers("postgres"), 30, "it is made")
        container = deployment.container("postgres")
        until(lambda: deployment.main_process(container), 30, "it runs")
        time.sleep(after_s)
        killed = deployment.kill(container)
        until(lambda: deployment.is_back(container, killed), 30, "it is started again")
        until(lambda: _both(deployment, container), 60, "roles and databases are there")
    finally:
        deployment.down()


def _both(deployment: Deployment, container: str) -> bool:
    """Whether each role has its database, in a server that listens to others."""
    try:
        deployment.inside(container, "pg_isready", "--username=postgres", "--host=127.0.0.1")
        roles = deployment.inside(container, *LOGIN, ROLES).split()
        for name in ("caps", "mlflow"):
            deployment.inside(container, *LOGIN, "SELECT 1", f"--dbname={name}")
    except subprocess.CalledProcessError:
        return False
    return roles == ["caps", "mlflow", "postgres"]
