"""One running stack for the session, in a home of its own."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.client import CapsClient
from support.stack import Stack


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """A running stack; its home has a short path, since Ray's sockets lie below it."""
    home = Path(tempfile.mkdtemp(prefix="caps-e2e-", dir="/tmp"))
    stack = Stack(home)
    stack.up()
    yield stack
    stack.down()
    shutil.rmtree(home)


@pytest.fixture
def client(stack: Stack) -> Iterator[CapsClient]:
    """A client of the running stack; afterwards no job is left unfinished."""
    with stack.client() as client:
        yield client
        for job in client.jobs(states=["QUEUED", "RUNNING", "PAUSED"]):
            client.cancel(job.id)
            client.wait(job.id, timeout=60)
