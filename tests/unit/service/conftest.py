"""Fixtures of the control plane's tests."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from support.guarded import GuardedApi, guarded


@pytest.fixture
def http(api: Any) -> Iterator[httpx.Client]:
    """A client of the API, without the conveniences of ours."""
    with httpx.Client(base_url=api.url, timeout=10) as client:
        yield client


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def guarded_api(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GuardedApi]:
    """An API that asks for tokens, on either database."""
    url = None
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql").new_database()
    with guarded(tmp_path_factory.mktemp("guarded"), url) as found:
        yield found
