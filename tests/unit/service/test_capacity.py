"""What can never run is refused at its field; what is not known refuses nothing."""

import threading
import time
from typing import Any

import pytest

from service.capacity import FRESH_S, MEMORY_S, Capacity
from service.cluster import Node
from service.errors import ClusterUnavailableError, FieldError
from workers.search_specs import SearchSpec
from workers.specs import TrainSpec

SMALL = Node("a", cpus=4, gpus=0, driver_slots=8)
LARGE = Node("b", cpus=16, gpus=0)
GPUS = Node("c", cpus=8, gpus=2, driver_slots=8, accelerators=frozenset({"H100"}))


class Cluster:
    """Nodes that a test changes, by a clock that it turns."""

    def __init__(self, *nodes: Node) -> None:
        self.nodes = list(nodes)
        self.asked = 0
        self.now = 100.0
        self.error: Exception | None = None

    def look(self) -> list[Node]:
        self.asked += 1
        if self.error:
            raise self.error
        return self.nodes

    def capacity(self, *, elastic: bool = False) -> Capacity:
        return Capacity(self.look, elastic=elastic, clock=lambda: self.now)


def train(**resources: Any) -> TrainSpec:
    return TrainSpec.model_validate({"resources": resources})


def search(**resources: Any) -> SearchSpec:
    space = {"loss.m_minus": {"type": "uniform", "low": 0.05, "high": 0.2}}
    document = {"base": {"resources": resources}, "space": space, "concurrency": 4}
    return SearchSpec.model_validate(document, strict=False)


def refused(spec: TrainSpec | SearchSpec, *nodes: Node) -> list[FieldError]:
    return Cluster(*nodes).capacity().never_fits(spec, "/resources")


@pytest.mark.parametrize(
    ("nodes", "resources"),
    [
        ((SMALL,), {"cpus_per_worker": 4}),
        ((SMALL, LARGE), {"cpus_per_worker": 16}),
        ((SMALL,), {"workers": 4, "cpus_per_worker": 1}),
        ((SMALL, LARGE), {"workers": 5, "cpus_per_worker": 4}),
        ((GPUS,), {"gpus_per_worker": 1}),
        ((GPUS,), {"gpus_per_worker": 0.5, "accelerator_type": "H100"}),
        ((GPUS,), {"workers": 2, "gpus_per_worker": 1, "cpus_per_worker": 4}),
    ],
)
def test_what_the_empty_cluster_holds_is_accepted(
    nodes: tuple[Node, ...], resources: dict[str, Any]
) -> None:
    assert refused(train(**resources), *nodes) == []


@pytest.mark.parametrize(
    ("nodes", "resources", "pointer", "value", "tells"),
    [
        ((SMALL, LARGE), {"cpus_per_worker": 17}, "/cpus_per_worker", 17, "at most 16"),
        ((SMALL,), {"gpus_per_worker": 1}, "/gpus_per_worker", 1, "no node has a GPU"),
        ((SMALL,), {"accelerator_type": "T4"}, "/accelerator_type", "T4", "no accelerator"),
        ((SMALL, GPUS), {"accelerator_type": "T4"}, "/accelerator_type", "T4", "one of H100"),
        ((LARGE, GPUS), {"cpus_per_worker": 9, "accelerator_type": "H100"}, "/cpus_per_worker", 9,
         "at most 8"),
        ((LARGE, GPUS), {"cpus_per_worker": 9, "gpus_per_worker": 1}, "", None,
         "8 CPUs and 2 GPUs"),
        ((SMALL, LARGE), {"workers": 6, "cpus_per_worker": 4}, "/workers", 6, "1 to 5"),
        ((GPUS,), {"workers": 3, "cpus_per_worker": 1, "gpus_per_worker": 1}, "/workers", 3,
         "1 to 2"),
        ((LARGE,), {"workers": 2, "cpus_per_worker": 1}, "/workers", 2, "driver_slot"),
    ],
)  # fmt: skip
def test_what_never_fits_is_refused_at_its_field(
    nodes: tuple[Node, ...], resources: dict[str, Any], pointer: str, value: Any, tells: str
) -> None:
    (wrong,) = refused(train(**resources), *nodes)
    assert (wrong.pointer, wrong.value) == (f"/resources{pointer}", value)
    assert tells in f"{wrong.accepted} {wrong.hint}"


def test_every_field_that_is_too_much_is_named() -> None:
    wrong = refused(train(cpus_per_worker=99, gpus_per_worker=1), SMALL)
    assert [each.pointer for each in wrong] == [
        "/resources/cpus_per_worker",
        "/resources/gpus_per_worker",
    ]


def test_a_search_needs_room_for_one_trial_alone() -> None:
    assert refused(search(cpus_per_worker=4), SMALL) == []
    assert refused(search(cpus_per_worker=5), SMALL)[0].pointer == "/resources/cpus_per_worker"
    assert refused(search(workers=2, cpus_per_worker=2), SMALL) == []
    (wrong,) = refused(search(cpus_per_worker=1), LARGE)
    assert (wrong.pointer, "driver slot" in wrong.detail) == ("", True)


def test_what_is_not_known_refuses_nothing() -> None:
    huge = train(cpus_per_worker=500)
    assert refused(huge) == []
    cluster = Cluster(SMALL)
    assert cluster.capacity(elastic=True).never_fits(huge, "") == []
    cluster.error = ClusterUnavailableError("Ray does not answer")
    assert cluster.capacity().never_fits(huge, "") == []


def test_nodes_are_asked_for_once_in_a_while() -> None:
    cluster = Cluster(SMALL)
    capacity = cluster.capacity()
    for _ in range(20):
        assert capacity.never_fits(train(cpus_per_worker=8), "")
    assert cluster.asked == 1
    cluster.nodes, cluster.now = [SMALL, LARGE], cluster.now + FRESH_S
    assert capacity.never_fits(train(cpus_per_worker=8), "") == []
    assert cluster.asked == 2


def test_a_node_that_restarts_is_no_reason_to_refuse() -> None:
    cluster = Cluster(SMALL, LARGE)
    capacity = cluster.capacity()
    spec = train(cpus_per_worker=16)
    assert capacity.never_fits(spec, "") == []
    cluster.nodes, cluster.now = [SMALL], cluster.now + MEMORY_S
    assert capacity.never_fits(spec, "") == []
    cluster.now += FRESH_S
    assert capacity.never_fits(spec, "")


def test_a_head_that_hangs_holds_up_one_submission_for_a_second_and_no_other() -> None:
    answered = threading.Event()

    def hang() -> list[Node]:
        answered.wait(30)
        return [SMALL]

    capacity, spec = Capacity(hang), train(cpus_per_worker=8)
    began = time.monotonic()
    assert capacity.never_fits(spec, "") == []
    first = time.monotonic() - began
    for _ in range(50):
        assert capacity.never_fits(spec, "") == []
    others = time.monotonic() - began - first
    answered.set()
    assert first < 2
    assert others < 0.5
