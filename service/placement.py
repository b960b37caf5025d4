"""Which queued jobs start now: priority, then age, on what the nodes have left.

The service reserves what it has dispatched itself, since Ray's own accounting lags by seconds. A
job that must wait keeps its share of a node back from those behind it, so that small jobs never
starve a large one.
"""

from dataclasses import dataclass

from service.cluster import Node
from workers.specs import ResourcesConfig


@dataclass
class _Room:
    """What is left of a node; negative once a waiting job has reserved more than is free."""

    node: Node
    cpus: float
    gpus: float

    def take(self, need: ResourcesConfig) -> None:
        self.cpus -= need.cpus_per_worker
        self.gpus -= need.gpus_per_worker

    def fits(self, need: ResourcesConfig) -> bool:
        return need.cpus_per_worker <= self.cpus and need.gpus_per_worker <= self.gpus

    def could_ever_fit(self, need: ResourcesConfig) -> bool:
        return need.cpus_per_worker <= self.node.cpus and need.gpus_per_worker <= self.node.gpus


class Placement:
    """One look at the cluster, used up job by job in the order of the queue."""

    def __init__(self, nodes: list[Node]) -> None:
        self._rooms = [_Room(node, node.cpus, node.gpus) for node in nodes]

    def occupy(self, need: ResourcesConfig, node_id: str | None) -> None:
        """Reserve what a running attempt holds, on its node or on the first where it fits."""
        on_node = [room for room in self._rooms if room.node.id == node_id]
        fitting = [room for room in self._rooms if room.fits(need)]
        for room in (on_node or fitting or self._rooms)[:1]:
            room.take(need)

    def place(self, need: ResourcesConfig) -> str:
        """Reserve a queued job's share; the answer is why it must wait, empty if it may start."""
        fitting = [room for room in self._rooms if room.fits(need)]
        if fitting:
            fitting[0].take(need)
            return ""
        reason = self._why_not(need)
        possible = [room for room in self._rooms if room.could_ever_fit(need)]
        if possible:
            max(possible, key=lambda room: (room.gpus, room.cpus)).take(need)
        return reason

    def _why_not(self, need: ResourcesConfig) -> str:
        wanted = _in_words(need.cpus_per_worker, need.gpus_per_worker)
        if not self._rooms:
            return f"needs {wanted} on one node; the cluster has no node"
        if not any(room.could_ever_fit(need) for room in self._rooms):
            largest = max((room.node for room in self._rooms), key=lambda n: (n.gpus, n.cpus))
            return (
                f"needs {wanted} on one node; the largest has "
                f"{_in_words(largest.cpus, largest.gpus)}: it starts when a larger node joins"
            )
        free = max(self._rooms, key=lambda room: (room.gpus, room.cpus))
        left = _in_words(max(0, free.cpus), max(0, free.gpus))
        return f"needs {wanted} on one node; {left} free, running or earlier jobs hold the rest"


def _in_words(cpus: float, gpus: float) -> str:
    parts = [f"{cpus:g} CPU{'' if cpus == 1 else 's'}"]
    if gpus:
        parts.append(f"{gpus:g} GPU{'' if gpus == 1 else 's'}")
    return " and ".join(parts)
