"""Search algorithms: which configuration is tried next. One class a member of `ALGORITHMS`.

An algorithm is asked for one configuration after another, and told what became of each. Its whole
knowledge is in what it was asked and told, so a resumed search rebuilds it from its records.
"""

from abc import ABC, abstractmethod
from typing import Any

from workers.search_specs import SearchSpec
from workers.trials import Standing


class Algorithm(ABC):
    """Base of the algorithms; constructed with the search's specification alone."""

    def __init__(self, spec: SearchSpec) -> None:
        self.spec = spec

    @abstractmethod
    def ask(self, configuration: int) -> dict[str, Any]:
        """The values of a configuration; asked for once each, in order from 0."""

    def known(self, configuration: int, values: dict[str, Any]) -> None:  # noqa: B027
        """Hear of a configuration that was asked for before the search was resumed."""

    def tell(self, standing: Standing) -> None:  # noqa: B027
        """Hear what became of a configuration: all its trials have ended."""


class RandomSearch(Algorithm):
    """Draws each configuration by itself; the grids in the space are gone through for each."""

    def ask(self, configuration: int) -> dict[str, Any]:
        """The values, which follow from the base's seed and the number alone."""
        return self.spec.configuration(configuration)


class GridSearch(Algorithm):
    """Goes through all combinations."""

    def ask(self, configuration: int) -> dict[str, Any]:
        """The combination of that number."""
        return self.spec.configuration(configuration)
