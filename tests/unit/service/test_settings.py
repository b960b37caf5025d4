"""Settings that can't be used name the variable, what it holds and what it takes."""

import subprocess
import sys

import pytest

from service.errors import InputError
from service.settings import read_settings


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("CAPS_ELASTIC", "maybe", "valid boolean"),
        ("CAPS_TICK_S", "100", "less than or equal to 60"),
        ("CAPS_RAY_RECONNECT_TIMEOUT_S", "0", "greater than 0"),
        ("CAPS_TOKENS", "off", "'auto' or 'on'"),
        ("CAPS_ALLOWED_HOSTS", "example.org", "a list in JSON"),
    ],
)
def test_a_setting_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, complaint: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as refused:
        read_settings()
    assert refused.value.detail.startswith(name)
    assert complaint in refused.value.detail
    assert "README" in (refused.value.hint or "")


def test_the_service_tells_it_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPS_ELASTIC", "maybe")
    ended = subprocess.run(
        [sys.executable, "-m", "service.app"], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    assert "CAPS_ELASTIC='maybe'" in ended.stderr
    assert "Traceback" not in ended.stderr
