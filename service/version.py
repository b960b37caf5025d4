"""The release that is installed."""

from importlib.metadata import version


def package_version() -> str:
    """Version of the distribution; control plane and workers must agree on it."""
    return version("capsnet-training-service")
