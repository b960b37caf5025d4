"""MLflow's client for the control plane: short timeouts, and crash points around what it writes."""

import os
from typing import Any

# Read by mlflow at import: a dead server must cost seconds, not the default of minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

from mlflow import MlflowClient

from workers.crash import crashing


class TrackingClient(MlflowClient):  # type: ignore[misc]
    """The same methods; whoever calls repeats what fails, so it fails soon."""

    def create_experiment(self, *arguments: Any, **options: Any) -> Any:
        """Make an experiment."""
        with crashing("mlflow.create-experiment"):
            return super().create_experiment(*arguments, **options)

    def create_run(self, *arguments: Any, **options: Any) -> Any:
        """Make a run."""
        with crashing("mlflow.create-run"):
            return super().create_run(*arguments, **options)

    def log_batch(self, *arguments: Any, **options: Any) -> Any:
        """Send parameters or metrics."""
        with crashing("mlflow.log-params" if options.get("params") else "mlflow.log-metrics"):
            return super().log_batch(*arguments, **options)

    def set_tag(self, *arguments: Any, **options: Any) -> Any:
        """Set a run's tag."""
        with crashing("mlflow.set-tag"):
            return super().set_tag(*arguments, **options)

    def set_terminated(self, *arguments: Any, **options: Any) -> Any:
        """End a run."""
        with crashing("mlflow.set-terminated"):
            return super().set_terminated(*arguments, **options)
