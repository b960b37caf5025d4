"""What is known of a stack across runs of `capsctl up`: its identity, its ports, its processes."""

import json
import os
import secrets
from pathlib import Path

from pydantic import BaseModel, ValidationError

from service.stack.processes import free_port

PREFERRED_PORTS = {
    "api": 8000,
    "mlflow": 5000,
    "ray_dashboard": 8265,
    "ray_gcs": 6379,
    "ray_client": 10001,
    "ray_agent": 52365,
    "ray_metrics": None,
}


class RunningProcess(BaseModel):
    """A process, told from later ones with the same id by its time of creation."""

    pid: int
    created: float


class StackState(BaseModel):
    """Contents of CAPS_HOME/stack.json."""

    stack_id: str
    """Random; only this stack's API repeats it."""
    ports: dict[str, int]
    services: dict[str, RunningProcess] = {}
    supervisor: RunningProcess | None = None
    ready: bool = False
    """Whether the supervisor has seen every service ready."""
    api_url: str = ""
    mlflow_url: str = ""
    ray_address: str = ""


def state_path(home: Path) -> Path:
    """Where a home's state lies."""
    return home / "stack.json"


def load(home: Path) -> StackState | None:
    """The last known state; None where there is none that can be read."""
    try:
        return StackState.model_validate_json(state_path(home).read_bytes())
    except (FileNotFoundError, ValidationError, json.JSONDecodeError):
        return None


def save(home: Path, state: StackState) -> None:
    """Replace the state atomically."""
    temporary = state_path(home).with_suffix(f".{os.getpid()}")
    temporary.write_text(state.model_dump_json(indent=2))
    temporary.replace(state_path(home))


def fresh(previous: StackState | None) -> StackState:
    """A state for services that are about to start, on the previous ports where they are free."""
    known = previous.ports if previous else {}
    ports = {name: free_port(known.get(name, port)) for name, port in PREFERRED_PORTS.items()}
    return with_urls(
        StackState(stack_id=previous.stack_id if previous else secrets.token_hex(8), ports=ports)
    )


def with_urls(state: StackState) -> StackState:
    """Fill in the addresses that follow from the ports."""
    state.api_url = f"http://127.0.0.1:{state.ports['api']}"
    state.mlflow_url = f"http://127.0.0.1:{state.ports['mlflow']}"
    state.ray_address = f"http://127.0.0.1:{state.ports['ray_dashboard']}"
    return state


def token_path(home: Path) -> Path:
    """Ray's token, made on first use, readable by the owner alone."""
    path = home / "ray-token"
    if not path.exists():
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    return path
