"""Fixtures of the tests in containers: the images, and a deployment with two workers."""

from collections.abc import Iterator

import pytest

from support.compose import Deployment, build, engine, published


@pytest.fixture(scope="session")
def images() -> None:
    """All images, built from this checkout."""
    engine()
    build()


@pytest.fixture(scope="session")
def published_before() -> set[tuple[str, int]]:
    """What other containers on this machine publish."""
    return published()


@pytest.fixture(scope="session")
def deployment(images: None, published_before: set[tuple[str, int]]) -> Iterator[Deployment]:
    """A deployment that is up, with two workers of one CPU each."""
    found = Deployment("capsnet-tests", CAPS_WORKER_CPUS="1")
    found.up(workers=2)
    yield found
    found.down()
