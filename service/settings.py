"""Settings, read from the environment (`CAPS_*`)."""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from service.errors import InputError
from service.tokens import ADMIN_FILE

RECONNECT_TIMEOUT_S = 15.0
"""Ray's own default is 60 s: so long would a job wait for the proof that its attempt is dead."""


PREFIX = "CAPS_"


class Settings(BaseSettings):
    """Where things lie and who answers where. `capsctl up` fills in what it starts itself."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, use_attribute_docstrings=True)

    home: Path = Path(".caps")
    """All that the embedded stack writes."""
    storage: Path | None = None
    """Jobs' folders, the same path on every node; CAPS_HOME/storage by default."""
    database_url: str | None = None
    """SQLAlchemy URL; SQLite in CAPS_HOME/queue.db by default."""
    ray_address: str = "http://127.0.0.1:8265"
    """The Ray head's dashboard, which serves the Jobs API."""
    ray_token_path: Path | None = None
    """File that holds Ray's token (RAY_AUTH_MODE=token), readable by us alone."""
    mlflow_uri: str = "http://127.0.0.1:5000"
    """MLflow's tracking server, as the control plane and the workers reach it."""
    mlflow_public_url: str | None = None
    """MLflow's address in links for people, where it differs from CAPS_MLFLOW_URI."""
    allowed_hosts: list[str] = ["127.0.0.1", "localhost"]
    """Host headers that the API answers."""
    tokens: Literal["auto", "on"] = "auto"
    """Whether the API asks for tokens: `auto` everywhere but on loopback, `on` there as well."""
    elastic: bool = False
    """Larger nodes may join the cluster: what fits nowhere now waits, and is not refused."""
    ray_reconnect_timeout_s: float = Field(default=RECONNECT_TIMEOUT_S, gt=0, le=600)
    """Seconds that Ray's processes live on without their head: what the variable
    RAY_gcs_rpc_server_reconnect_timeout_s says on the head and on every node."""
    tick_s: float = Field(default=1.0, gt=0, le=60)
    """Seconds between two looks of the reconciler."""
    stack_id: str = ""
    """Set by `capsctl up`; /healthz repeats it, so that the next `up` knows its own."""

    @property
    def storage_root(self) -> Path:
        """Absolute path of the jobs' folders."""
        return (self.storage or self.home / "storage").absolute()

    @property
    def database(self) -> str:
        """SQLAlchemy URL of the queue."""
        return self.database_url or f"sqlite:///{(self.home / 'queue.db').absolute()}"

    @property
    def admin_token_file(self) -> Path:
        """Where an API that asks for tokens keeps the first one."""
        return self.home.absolute() / ADMIN_FILE

    @property
    def ray_token(self) -> str | None:
        """Ray's token; None for a cluster without one."""
        return self.ray_token_path.read_text().strip() if self.ray_token_path else None

    @property
    def mlflow_link(self) -> str:
        """MLflow's address in links for people."""
        return (self.mlflow_public_url or self.mlflow_uri).rstrip("/")


HINT = "README.md has a table of all settings and what each takes"


def read_settings() -> Settings:
    """The environment's. Raises InputError, which names variable, value and what is wrong."""
    try:
        return Settings()
    except ValidationError as error:
        wrong = [
            f"{PREFIX}{str(line['loc'][0]).upper()}={str(line['input'])[:100]!r}: {line['msg']}"
            for line in error.errors()
        ]
        raise InputError("; ".join(wrong), hint=HINT) from None
    except SettingsError as error:  # a list that is no JSON
        name = str(error).partition('"')[2].partition('"')[0]
        detail = f'{PREFIX}{name.upper()} is not a list in JSON, as ["127.0.0.1", "localhost"]'
        raise InputError(detail, hint=HINT) from None
