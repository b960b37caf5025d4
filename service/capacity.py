"""Whether a job could ever run on this cluster: what never fits is refused when it is submitted.

What is not known refuses nothing. While Ray does not answer, or no node is there yet, and where
larger nodes may join (CAPS_ELASTIC), a job is accepted and waits with its reason.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from service.cluster import Node
from service.demand import DRIVER_SLOT, Bundle, Need, amounts, need_of
from service.errors import FieldError
from service.placement import Placement
from service.queue.job import AnySpec
from workers.specs import ResourcesConfig

logger = logging.getLogger(__name__)

FRESH_S = 5.0
"""So long a look at the nodes is good."""
PATIENCE_S = 1.0
"""So long a submission waits for such a look; a head that hangs must not hold it up."""
MEMORY_S = 600.0
"""So long a node counts that is gone: one that restarts is no reason to refuse anything."""


class Capacity:
    """What the nodes of a cluster could hold, were they empty.

    Args:
        nodes: Asks Ray for the nodes that are alive; may raise.
        elastic: Larger nodes may join, so that nothing is refused.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        nodes: Callable[[], list[Node]],
        *,
        elastic: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._nodes = nodes
        self._elastic = elastic
        self._clock = clock
        self._lock = threading.Lock()
        self._looking = False
        self._next_look = float("-inf")
        self._seen: dict[str, tuple[float, Node]] = {}

    def never_fits(self, spec: AnySpec, pointer: str) -> list[FieldError]:
        """What is asked for in vain, in the resources at `pointer`; nothing if the job may run."""
        if self._elastic:
            return []
        nodes = self._known()
        need = need_of(spec)
        if not nodes or _holds(nodes, need):
            return []
        return _what_is_too_much(nodes, need, spec.resources, pointer)

    def _known(self) -> list[Node]:
        looker = self._begin_to_look()
        if looker is not None:
            looker.join(PATIENCE_S)
        oldest = self._clock() - MEMORY_S
        with self._lock:
            self._seen = {id: seen for id, seen in self._seen.items() if seen[0] >= oldest}
            return [node for _, node in self._seen.values()]

    def _begin_to_look(self) -> threading.Thread | None:
        """One look at a time, in a thread of its own."""
        with self._lock:
            if self._looking or self._clock() < self._next_look:
                return None
            self._looking = True
            self._next_look = self._clock() + FRESH_S
        looker = threading.Thread(target=self._look, name="capacity", daemon=True)
        looker.start()
        return looker

    def _look(self) -> None:
        try:
            nodes = self._nodes()
        except Exception as error:  # whatever it is, it refuses no job
            logger.info("the nodes are not known: %s", error)
            nodes = []
        with self._lock:
            self._seen |= {node.id: (self._clock(), node) for node in nodes}
            self._looking = False


def _holds(nodes: list[Node], need: Need) -> bool:
    """Whether the empty cluster has room for the job, with one trial at once if it is a search."""
    return not Placement(nodes).place(replace(need, count=1))


def _what_is_too_much(
    nodes: list[Node], need: Need, resources: ResourcesConfig, pointer: str
) -> list[FieldError]:
    kind = resources.accelerator_type
    alike = [node for node in nodes if kind is None or kind in node.accelerators]
    if not alike:
        known = sorted({name for node in nodes for name in node.accelerators})
        accepted = f"one of {', '.join(known)}" if known else "none: the cluster has no accelerator"
        wrong = "no node has such an accelerator"
        return [FieldError(f"{pointer}/accelerator_type", wrong, kind, accepted)]
    return _on_one_node(alike, resources, pointer) or [_in_all(nodes, need, resources, pointer)]


def _on_one_node(
    nodes: Sequence[Node], resources: ResourcesConfig, pointer: str
) -> list[FieldError]:
    """Where a single worker is too large already."""
    cpus, gpus = max(node.cpus for node in nodes), max(node.gpus for node in nodes)
    wrong = []
    if resources.cpus_per_worker > cpus:
        wrong.append(
            FieldError(
                f"{pointer}/cpus_per_worker",
                "no node has so many CPU cores",
                resources.cpus_per_worker,
                f"at most {cpus:g}: the largest node has no more",
            )
        )
    if resources.gpus_per_worker > gpus:
        offered = f"at most {gpus:g}" if gpus else "0: no node has a GPU"
        wrong.append(
            FieldError(
                f"{pointer}/gpus_per_worker",
                "no node has that much of a GPU",
                resources.gpus_per_worker,
                offered,
            )
        )
    worker = _worker(resources)
    if not wrong and not _holds(list(nodes), _only(worker)):
        each = sorted({amounts(node.cpus, node.gpus) for node in nodes})
        wanted = amounts(worker.cpus, worker.gpus)
        wrong.append(
            FieldError(
                pointer, f"no node has {wanted} together", accepted=f"nodes have {'; '.join(each)}"
            )
        )
    return wrong


def _in_all(nodes: list[Node], need: Need, resources: ResourcesConfig, pointer: str) -> FieldError:
    """Where one worker fits, but the whole job does not."""
    slots = sum(bundle.driver_slots for bundle in (*need.fixed, *need.unit))
    offered = sum(node.driver_slots for node in nodes)
    if slots > offered:
        noun = "driver slot" if slots == 1 else "driver slots"
        return FieldError(
            "" if resources.workers == 1 else f"{pointer}/workers",
            f"takes {slots:g} {noun} beside its workers; the cluster offers {offered:g}",
            None if resources.workers == 1 else resources.workers,
            hint=f"start the head with --resources='{{\"{DRIVER_SLOT}\": 8}}'",
        )
    drivers = tuple(bundle for bundle in need.unit if bundle.driver_slots)
    workers = tuple(bundle for bundle in need.unit if not bundle.driver_slots)
    fitting = 0
    while _holds(nodes, replace(need, unit=(*drivers, *workers[: fitting + 1]))):
        fitting += 1
    each = amounts(workers[0].cpus, workers[0].gpus)
    return FieldError(
        f"{pointer}/workers",
        "the whole cluster has no room for so many",
        resources.workers,
        f"{'1' if fitting == 1 else f'1 to {fitting}'} with {each} each",
    )


def _worker(resources: ResourcesConfig) -> Bundle:
    return Bundle(
        cpus=resources.cpus_per_worker,
        gpus=resources.gpus_per_worker,
        accelerator_type=resources.accelerator_type,
    )


def _only(bundle: Bundle) -> Need:
    return Need((), (bundle,), 1, bundle, "")
