"""A user's package with a routing that, on a sign, hangs for ever and ignores SIGTERM."""

from pathlib import Path

SIGN = "STUBBORN_SIGN"
"""Environment variable: the file whose existence is the sign."""
ROUTING = {"type": "stubborn"}

_CONFIG = '''
from typing import Literal

from capsmodel.config import RoutingConfig
from capsmodel.open_set import Member


class StubbornConfig(RoutingConfig):
    """No settings."""

    type: Literal["stubborn"] = "stubborn"


MEMBER = Member(StubbornConfig, "stubborn_routing:StubbornRouting")
'''

_ROUTING = '''
import ctypes
import os
import signal
import time
from pathlib import Path

import torch.distributed

from capsmodel.routing.uniform import UniformRouting

SIG_IGN = 1


class StubbornRouting(UniformRouting):
    """Uniform, until the sign is there: then the second worker hears nothing any more."""

    def forward(self, votes, bias=None, trace=None):
        second = torch.distributed.is_initialized() and torch.distributed.get_rank() == 1
        if second and Path(os.environ["STUBBORN_SIGN"]).exists():
            # Not by Python, which lets the main thread alone do this.
            ctypes.CDLL(None).signal(signal.SIGTERM, ctypes.c_void_p(SIG_IGN))
            print("stubborn from now on", flush=True)
            while True:
                time.sleep(1)
        return super().forward(votes, bias, trace)
'''


def install(folder: Path) -> dict[str, str]:
    """Lay the package out in `folder`; the environment in which it is found, and its sign."""
    described = folder / "stubborn-1.0.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: stubborn\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text(
        "[capsmodel.routings]\nstubborn = stubborn_config:MEMBER\n"
    )
    (folder / "stubborn_config.py").write_text(_CONFIG)
    (folder / "stubborn_routing.py").write_text(_ROUTING)
    return {"PYTHONPATH": str(folder), SIGN: str(folder / "sign")}
