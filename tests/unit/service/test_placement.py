"""Which jobs start now: on what the nodes have left, in the order of the queue."""

import pytest

from service.cluster import Node
from service.placement import Placement
from workers.specs import ResourcesConfig


def need(cpus: int, gpus: int = 0) -> ResourcesConfig:
    return ResourcesConfig(cpus_per_worker=cpus, gpus_per_worker=gpus)


def test_a_job_that_fits_starts() -> None:
    assert Placement([Node("a", 4, 0)]).place(need(4)) == ""


def test_a_job_that_does_not_fit_says_what_is_missing() -> None:
    placement = Placement([Node("a", 4, 0)])
    placement.occupy(need(3), "a")
    reason = placement.place(need(2))
    assert reason == ("needs 2 CPUs on one node; 1 CPU free, running or earlier jobs hold the rest")


def test_each_job_leaves_less_for_those_behind() -> None:
    placement = Placement([Node("a", 4, 0)])
    started = [placement.place(need(cpus)) == "" for cpus in (2, 2, 1)]
    assert started == [True, True, False]


def test_every_node_is_used() -> None:
    placement = Placement([Node("a", 2, 0), Node("b", 2, 0)])
    assert [placement.place(need(2)) for _ in range(2)] == ["", ""]
    assert placement.place(need(1)) != ""


def test_cores_of_two_nodes_are_not_added_up() -> None:
    reason = Placement([Node("a", 2, 0), Node("b", 2, 0)]).place(need(3))
    assert "the largest has 2 CPUs: it starts when a larger node joins" in reason


def test_a_large_waiting_job_keeps_its_share_back_from_smaller_ones() -> None:
    placement = Placement([Node("a", 4, 0)])
    placement.occupy(need(2), "a")
    assert placement.place(need(4)) != ""
    assert placement.place(need(1)) != "", "it would delay the large one"


def test_a_large_waiting_job_holds_one_node_only() -> None:
    placement = Placement([Node("a", 4, 0), Node("b", 2, 0)])
    placement.occupy(need(2), "a")
    assert placement.place(need(4)) != ""
    assert placement.place(need(2)) == "", "node b is of no use to the large one"


def test_a_job_that_never_fits_blocks_nobody() -> None:
    placement = Placement([Node("a", 4, 0)])
    assert "a larger node" in placement.place(need(64))
    assert "a larger node" in placement.place(need(1, gpus=1))
    assert placement.place(need(4)) == ""


def test_a_gpu_is_had_by_one_job() -> None:
    placement = Placement([Node("cpu", 8, 0), Node("gpu", 8, 1)])
    assert placement.place(need(2, gpus=1)) == ""
    reason = placement.place(need(2, gpus=1))
    assert reason.startswith("needs 2 CPUs and 1 GPU on one node; ")
    assert placement.place(need(8)) == "", "the other node has cores"


@pytest.mark.parametrize("node", ["b", None, "left the cluster"])
def test_a_running_job_holds_its_share(node: str | None) -> None:
    placement = Placement([Node("a", 1, 0), Node("b", 4, 0)])
    placement.occupy(need(4), node)
    assert placement.place(need(1)) == "", "node a is free"
    assert placement.place(need(1)) != ""


def test_more_may_run_than_the_nodes_have() -> None:
    placement = Placement([Node("a", 2, 0)])
    for _ in range(3):
        placement.occupy(need(2), "a")
    assert "0 CPUs free" in placement.place(need(1))


def test_a_cluster_without_nodes_is_named() -> None:
    placement = Placement([])
    placement.occupy(need(1), "a")
    assert placement.place(need(1)) == "needs 1 CPU on one node; the cluster has no node"
