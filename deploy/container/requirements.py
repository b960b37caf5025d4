"""Prints what pyproject.toml asks for, one requirement a line: `requirements.py EXTRA...`.

`base` is what the package itself needs. Of the package's own extras only the names that are given
are taken, so that an image holds what its part of the service needs and nothing else.
"""

import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).with_name("pyproject.toml")


def requirements(names: list[str], document: str) -> list[str]:
    """The requirements of these extras, in order. Raises KeyError for an unknown one."""
    project = tomllib.loads(document)["project"]
    extras = {"base": project["dependencies"], **project["optional-dependencies"]}
    return [line for name in names for line in extras[name]]


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1:], PROJECT.read_text())))
