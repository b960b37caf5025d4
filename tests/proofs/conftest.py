"""Databases and folders of the simulations: in memory where the machine has such a place."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from proofs.simulation import LockLosing

MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def storage() -> Iterator[Path]:
    """A folder of jobs' folders: writes there cost no disk."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def simulated_store(request: pytest.FixtureRequest, storage: Path) -> Iterator[LockLosing]:
    """A migrated store, which every simulation empties before it begins."""
    url = f"sqlite:///{storage / 'queue.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql").new_database()
    found = LockLosing(url)
    found.migrate()
    yield found
    found.close()
