"""The three services of the embedded stack: how each is started, and when it is ready."""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from service.cluster import RayCluster
from service.demand import DRIVER_SLOT
from service.errors import ClusterUnavailableError
from service.settings import RECONNECT_TIMEOUT_S
from service.stack.processes import HOME_TAG, SERVICE_TAG
from service.stack.state import StackState, token_path

MAX_RAY_FOLDER = 36
"""Ray's sockets lie some 66 characters below its folder, and a socket's path has at most 103."""
NICE = 10
"""Of trainings on this machine: the API and MLflow go first."""

DRIVER_SLOTS = 8
"""Searches and trainings of several workers that run at once; a driver takes some 400 MB."""


@dataclass(frozen=True)
class Service:
    """One part of the stack."""

    name: str
    title: str
    command: list[str]
    environment: dict[str, str]
    address: str
    ready: Callable[[], bool]


def services(home: Path, state: StackState, cpus: int | None, gpus: int | None) -> list[Service]:
    """The stack's services in the order in which they are named to the user."""
    return [
        _ray(home, state, cpus, gpus),
        _mlflow(home, state),
        _api(home, state),
    ]


def ray_folder(home: Path, state: StackState) -> Path:
    """Ray's sessions and logs: below CAPS_HOME, unless its path is too long for a socket."""
    inside = home / "ray"
    if len(str(inside)) <= MAX_RAY_FOLDER:
        return inside
    return Path(tempfile.gettempdir()) / f"caps-{state.stack_id}"


def _common(home: Path, service: str) -> dict[str, str]:
    inherited = {
        k: v
        for k, v in os.environ.items()
        # A client's token is none for what runs jobs.
        if not k.startswith(("RAY_", "MLFLOW_")) and k not in ("CAPS_TOKEN", "CAPS_TOKEN_PATH")
    }
    return inherited | {
        HOME_TAG: str(home),
        SERVICE_TAG: service,
        "CAPS_PYTHON": sys.executable,
        "CAPS_STORAGE": os.environ.get("CAPS_STORAGE", str(home / "storage")),
        "CAPS_DATA_DIR": str(Path(os.environ.get("CAPS_DATA_DIR", "data")).absolute()),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **_past_proxies(),
    }


def _past_proxies() -> dict[str, str]:
    """NO_PROXY with loopback in it: a proxy for the world outside can't reach our own services."""
    known = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    hosts = ",".join(part for part in (known, "127.0.0.1", "localhost") if part)
    return {"NO_PROXY": hosts, "no_proxy": hosts}


def _ray(home: Path, state: StackState, cpus: int | None, gpus: int | None) -> Service:
    ports = state.ports
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
        "--node-ip-address=127.0.0.1",
        f"--port={ports['ray_gcs']}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={ports['ray_dashboard']}",
        f"--ray-client-server-port={ports['ray_client']}",
        f"--dashboard-agent-listen-port={ports['ray_agent']}",
        f"--metrics-export-port={ports['ray_metrics']}",
        # Any free ports: a fixed range would collide with another Ray on this machine.
        "--min-worker-port=0",
        "--max-worker-port=0",
        f"--temp-dir={ray_folder(home, state)}",
        f"--resources={json.dumps({DRIVER_SLOT: DRIVER_SLOTS})}",
    ]
    command += [f"--num-cpus={cpus}"] if cpus is not None else []
    command += [f"--num-gpus={gpus}"] if gpus is not None else []
    environment = _common(home, "ray") | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path(home)),
        # Without it Ray rewrites 127.0.0.1 to the host's public address.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_gcs_rpc_server_reconnect_timeout_s": f"{RECONNECT_TIMEOUT_S:.0f}",
        "CAPS_NICE": os.environ.get("CAPS_NICE", str(NICE)),
    }

    def ready() -> bool:
        cluster = RayCluster(state.ray_address, token_path(home).read_text().strip())
        try:
            return len(cluster.nodes()) > 0
        except (ClusterUnavailableError, KeyError):
            return False
        finally:
            cluster.close()

    return Service("ray", "Ray head", command, environment, state.ray_address, ready)


def _mlflow(home: Path, state: StackState) -> Service:
    folder = home / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host=127.0.0.1",
        f"--port={state.ports['mlflow']}",
        "--workers=1",
        f"--backend-store-uri=sqlite:///{folder / 'mlflow.db'}",
        f"--artifacts-destination={folder / 'artifacts'}",
        "--allowed-hosts=localhost:*,127.0.0.1:*",
    ]
    # Job execution costs 20 s of start and 1.5 GB, for features that nobody uses here.
    environment = _common(home, "mlflow") | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return Service(
        "mlflow",
        "MLflow",
        command,
        environment,
        state.mlflow_url,
        lambda: _get(f"{state.mlflow_url}/health") is not None,
    )


def _api(home: Path, state: StackState) -> Service:
    command = [
        sys.executable,
        "-m",
        "service.app",
        "--host=127.0.0.1",
        f"--port={state.ports['api']}",
    ]
    environment = _common(home, "api") | {
        "CAPS_RAY_ADDRESS": state.ray_address,
        "CAPS_RAY_TOKEN_PATH": str(token_path(home)),
        "CAPS_MLFLOW_URI": state.mlflow_url,
        "CAPS_STACK_ID": state.stack_id,
        "CAPS_RAY_RECONNECT_TIMEOUT_S": f"{RECONNECT_TIMEOUT_S:.0f}",
    }

    def ready() -> bool:
        answer = _get(f"{state.api_url}/healthz")
        return answer is not None and f'"{state.stack_id}"' in answer.text

    return Service("api", "API", command, environment, state.api_url, ready)


def _get(url: str) -> httpx.Response | None:
    try:
        answer = httpx.get(url, timeout=5, trust_env=False)
    except httpx.HTTPError:
        return None
    return answer if answer.status_code == 200 else None
