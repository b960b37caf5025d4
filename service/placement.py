"""Which queued jobs start now: priority, then age, on what the nodes have left.

The service reserves what it has dispatched itself, since Ray's own accounting lags by seconds. A
job that must wait keeps its share of the nodes back from those behind it, so that small jobs never
starve a large one.
"""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from math import ceil

from service.cluster import Node
from service.demand import DRIVER_SLOT, Bundle, Need, amounts

ROUNDING = 1e-6
"""Tenths of a GPU do not add up to exactly one."""

HELD = "running or earlier jobs hold the rest"


@dataclass
class _Room:
    """What is left of a node; negative once a waiting job has reserved more than is free."""

    node: Node
    cpus: float = field(init=False)
    gpus: list[float] = field(init=False)
    """Of each GPU: a fraction can't be put together of two."""
    slots: float = field(init=False)

    def __post_init__(self) -> None:
        self.cpus = self.node.cpus
        self.gpus = [min(1.0, self.node.gpus - n) for n in range(ceil(self.node.gpus))]
        self.slots = self.node.driver_slots

    @property
    def free(self) -> tuple[float, float]:
        """GPUs and cores: by these the roomiest node is found."""
        return sum(gpu for gpu in self.gpus if gpu > ROUNDING), self.cpus

    def has_left_of(self, bundle: Bundle) -> bool:
        """Whether a waiting job could keep anything back here."""
        return (
            _Room(self.node).fits(bundle)
            and (not bundle.cpus or self.cpus > ROUNDING)
            and (not bundle.gpus or max(self.gpus) > ROUNDING)
            and (not bundle.driver_slots or self.slots > ROUNDING)
        )

    def allows(self, bundle: Bundle) -> bool:
        """Whether the node is of the kind that is asked for."""
        kind = bundle.accelerator_type
        return kind is None or kind in self.node.accelerators

    def fits(self, bundle: Bundle) -> bool:
        return (
            self.allows(bundle)
            and bundle.cpus <= self.cpus + ROUNDING
            and bundle.driver_slots <= self.slots + ROUNDING
            and (not bundle.gpus or bundle.gpus <= max(self.gpus, default=0.0) + ROUNDING)
        )

    def take(self, bundle: Bundle) -> None:
        self.cpus -= bundle.cpus
        self.slots -= bundle.driver_slots
        if bundle.gpus and self.gpus:
            fitting = [gpu for gpu in self.gpus if bundle.gpus <= gpu + ROUNDING]
            fullest = min(fitting) if fitting else max(self.gpus)
            self.gpus[self.gpus.index(fullest)] -= bundle.gpus


class Placement:
    """One look at the cluster, used up job by job in the order of the queue."""

    def __init__(self, nodes: list[Node]) -> None:
        self._nodes = nodes
        self._rooms = [_Room(node) for node in nodes]
        self._hopeless: dict[Need, str] = {}
        """Needs for which nothing is left that could be kept back, each with its reason."""

    @property
    def full(self) -> bool:
        """Whether no node has a core left, so that whoever comes next finds no room."""
        return all(room.cpus < 1 - ROUNDING for room in self._rooms)

    def occupy(self, need: Need, node_id: str | None) -> None:
        """Reserve what a running attempt holds.

        Its first process is on `node_id`, the others are taken to be where they fit first.
        """
        first, *others = self._bundles(need)
        on_node = [room for room in self._rooms if room.node.id == node_id]
        if on_node:
            on_node[0].take(first)
        else:
            others.insert(0, first)
        self._reserve(others)

    def place(self, need: Need) -> str:
        """Reserve a queued job's share; the answer is why it must wait, empty if it may start."""
        if need in self._hopeless:  # what is left only becomes less
            return self._hopeless[need]
        wanted = self._bundles(need)
        after = deepcopy(self._rooms)
        if _put(after, wanted):
            self._rooms = after
            return ""
        reason = self._why_not(need, wanted)
        if self._could_ever_hold(wanted):
            self._reserve(wanted)
        if not all(any(room.has_left_of(bundle) for room in self._rooms) for bundle in wanted):
            self._hopeless[need] = reason
        return reason

    def _bundles(self, need: Need) -> list[Bundle]:
        """All that the job would take of this cluster: its units as often as they ever fit."""
        wanted = [*need.fixed, *need.unit]
        rooms = _empty(self._nodes)
        room_for_more = _put(rooms, wanted)
        for _ in range(need.count - 1):
            room_for_more = room_for_more and _put(rooms, need.unit)
            if not room_for_more:
                break
            wanted += need.unit
        return wanted

    def _could_ever_hold(self, wanted: list[Bundle]) -> bool:
        return _put(_empty(self._nodes), wanted)

    def _reserve(self, bundles: Iterable[Bundle]) -> None:
        """Take what is needed where it fits, else of the roomiest node that is large enough."""
        for bundle in bundles:
            fitting = [room for room in self._rooms if room.fits(bundle)]
            possible = [room for room in self._rooms if _Room(room.node).fits(bundle)]
            if found := fitting[:1] or sorted(possible, key=lambda room: room.free)[-1:]:
                found[0].take(bundle)

    # ------------------------------------------------------------------------------- in words

    def _why_not(self, need: Need, wanted: list[Bundle]) -> str:
        if not self._rooms:
            return f"needs {need.words}; the cluster has no node"
        return (
            self._no_accelerator(need)
            or self._no_slot(need, wanted)
            or self._never(need)
            or self._not_now(need, wanted)
        )

    def _no_accelerator(self, need: Need) -> str:
        if all(any(room.allows(bundle) for room in self._rooms) for bundle in need.unit):
            return ""
        known = sorted({kind for node in self._nodes for kind in node.accelerators})
        return (
            f"needs {need.words}; no node has such an accelerator"
            f" (there are: {', '.join(known) or 'none'})"
        )

    def _no_slot(self, need: Need, wanted: list[Bundle]) -> str:
        offered = sum(node.driver_slots for node in self._nodes)
        at_least = sum(bundle.driver_slots for bundle in (*need.fixed, *need.unit))
        needed = sum(bundle.driver_slots for bundle in wanted)
        left = max(0.0, sum(room.slots for room in self._rooms))
        slots = _slots(needed)
        if at_least > offered:
            hint = f"start the head with --resources='{{\"{DRIVER_SLOT}\": 8}}'"
            return f"needs {slots}; the cluster offers {offered:g}: {hint}"
        if needed > left + ROUNDING:
            return f"needs {slots}; {left:g} of {offered:g} free, {HELD}"
        return ""

    def _never(self, need: Need) -> str:
        if self._could_ever_hold([*need.fixed, *need.unit]):
            return ""
        bundle = need.unit[-1]
        alike = [room for room in self._rooms if room.allows(bundle)]
        largest = max((_Room(room.node) for room in alike), key=lambda room: room.free)
        if not largest.fits(bundle):
            has = amounts(largest.node.cpus, largest.node.gpus)
            return f"needs {need.words}; the largest has {has}: it starts when a larger node joins"
        fitting = _how_many(_empty(self._nodes), need.unit)
        return (
            f"needs {need.words}; the whole cluster holds {fitting} of them: it starts when "
            "another node joins"
        )

    def _not_now(self, need: Need, wanted: list[Bundle]) -> str:
        processes = [bundle for bundle in wanted if not bundle.driver_slots]
        if len(processes) == 1:
            alike = [room for room in self._rooms if room.allows(processes[0])]
            gpus, cpus = max(room.free for room in alike)
            return f"needs {need.words}; {amounts(max(0, cpus), max(0, gpus))} free, {HELD}"
        fitting = _how_many(self._rooms, processes)
        times = f"{len(processes)} times " if need.count > 1 else ""
        return f"needs {times}{need.words}; room for {fitting} of {len(processes)} is free, {HELD}"


def _empty(nodes: list[Node]) -> list[_Room]:
    return [_Room(node) for node in nodes]


def _put(rooms: list[_Room], bundles: Iterable[Bundle]) -> bool:
    """Put each bundle into the first room that it fits, up to the first that fits nowhere."""
    for bundle in bundles:
        room = next((room for room in rooms if room.fits(bundle)), None)
        if room is None:
            return False
        room.take(bundle)
    return True


def _how_many(rooms: list[_Room], bundles: Iterable[Bundle]) -> int:
    """Bundles of workers that do fit."""
    after = deepcopy(rooms)
    return sum(_put(after, [bundle]) for bundle in bundles if not bundle.driver_slots)


def _slots(count: float) -> str:
    return "a driver slot" if count == 1 else f"{count:g} driver slots"
