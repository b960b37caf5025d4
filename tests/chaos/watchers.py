"""Onlookers: do two attempts of a job ever live at once, and when does the API answer again?"""

import time
from collections.abc import Callable

import httpx

from chaos.aside import Aside
from chaos.kills import current_attempts
from support.stack import Stack
from workers.liveness import living

LOOK_EVERY_S = 0.3
ASK_EVERY_S = 0.02


class Overlap(Aside):
    """Looks for jobs with living processes of two attempts; there must never be any."""

    def __init__(self, stack: Stack) -> None:
        super().__init__("overlap", LOOK_EVERY_S)
        self._stack = stack
        self.found: set[str] = set()
        self.looks = 0

    def look(self) -> None:
        """Look at every job once."""
        self.looks += 1
        for newest in current_attempts(self._stack):
            if newest.path.name == "1" or not (new := living(newest.processes())):
                continue
            for earlier in newest.earlier():
                # The new one's first, then the old one's: both live at this instant, or lived.
                if old := living(earlier.processes()):
                    self.found.add(
                        f"job {newest.owner}: attempt {earlier.path.name} has {old} while attempt "
                        f"{newest.path.name} has {new}"
                    )


def until_served(url: str, seconds: float) -> float | None:
    """Seconds from now until the queue's list is answered; None if it is not."""
    begun = time.monotonic()
    with httpx.Client(base_url=url, timeout=1.0, trust_env=False) as http:
        while time.monotonic() - begun < seconds:
            if _served(lambda: http.get("/v1/jobs", params={"limit": 1})):
                return time.monotonic() - begun
            time.sleep(ASK_EVERY_S)
    return None


def _served(ask: Callable[[], httpx.Response]) -> bool:
    try:
        return ask().status_code == 200
    except httpx.HTTPError:
        return False
