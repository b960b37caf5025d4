"""Fixtures of the control plane's tests."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest


@pytest.fixture
def http(api: Any) -> Iterator[httpx.Client]:
    """A client of the API, without the conveniences of ours."""
    with httpx.Client(base_url=api.url, timeout=10) as client:
        yield client
