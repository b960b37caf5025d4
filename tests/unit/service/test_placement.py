"""Which jobs start now: on what the nodes have left, in the order of the queue."""

import time

import pytest

from service.cluster import Node
from service.demand import DRIVER, Bundle, Need, need_of
from service.placement import Placement
from workers.search_space import Choice, Uniform
from workers.search_specs import GridSearchConfig, SearchSpec
from workers.specs import ResourcesConfig, TrainSpec


def need(cpus: int, gpus: float = 0, workers: int = 1, kind: str | None = None) -> Need:
    resources = ResourcesConfig(
        cpus_per_worker=cpus, gpus_per_worker=gpus, workers=workers, accelerator_type=kind
    )
    return need_of(TrainSpec(resources=resources))


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


# ------------------------------------------------------------------ several workers and searches


def search(concurrency: int, cpus: int = 1, gpus: float = 0, workers: int = 1) -> Need:
    resources = ResourcesConfig(cpus_per_worker=cpus, gpus_per_worker=gpus, workers=workers)
    return need_of(
        SearchSpec(
            base=TrainSpec(resources=resources),
            space={"optimizer.learning_rate": Uniform(low=0.001, high=0.01)},
            concurrency=concurrency,
            trials=100,
        )
    )


def test_one_worker_asks_for_itself_and_several_have_a_driver() -> None:
    alone = need(2, gpus=0.5, kind="H100")
    assert alone.entrypoint == alone.unit[0] == Bundle(2, 0.5, "H100")
    assert (alone.fixed, alone.count) == ((), 1)
    together = need(2, gpus=1, workers=3)
    assert together.entrypoint == DRIVER
    assert (together.fixed, together.unit, together.count) == ((DRIVER,), (Bundle(2, 1),) * 3, 1)


def test_a_search_has_a_driver_and_so_has_each_trial_of_several_workers() -> None:
    simple = search(4)
    assert (simple.fixed, simple.unit, simple.count) == ((DRIVER,), (Bundle(1),), 4)
    wide = search(2, workers=2)
    assert wide.unit == (DRIVER, Bundle(1), Bundle(1))
    assert search(4).entrypoint == DRIVER


def test_a_search_takes_no_more_places_than_it_has_trials() -> None:
    spec = SearchSpec(
        space={"epochs": Choice(values=(1, 2))}, algorithm=GridSearchConfig(), concurrency=50
    )
    assert need_of(spec).count == 2


def test_workers_spread_over_nodes_and_the_driver_takes_its_slot() -> None:
    placement = Placement([Node("a", 4, 0, driver_slots=1), Node("b", 2, 0)])
    assert placement.place(need(2, workers=3)) == ""
    assert placement.place(need(1)).startswith("needs 1 CPU on one node; 0 CPUs free")
    again = placement.place(need(1, workers=2))
    assert again == "needs a driver slot; 0 of 1 free, running or earlier jobs hold the rest"


def test_workers_start_together_or_not_at_all() -> None:
    placement = Placement([Node("a", 2, 0, 8), Node("b", 2, 0)])
    placement.occupy(need(2), "b")
    reason = placement.place(need(2, workers=2))
    assert reason == (
        "needs 2 workers with 2 CPUs each; room for 1 of 2 is free, running or earlier jobs hold "
        "the rest"
    )
    assert placement.place(need(1)) != "", "both nodes are kept for them"


def test_a_cluster_without_driver_slots_says_how_to_offer_some() -> None:
    reason = Placement([Node("a", 8, 0)]).place(search(2))
    assert "--resources='{\"driver_slot\": 8}'" in reason
    assert reason.startswith("needs a driver slot; the cluster offers 0: start the head with")


def test_a_search_takes_what_the_cluster_can_hold() -> None:
    placement = Placement([Node("a", 2, 0, 8)])
    assert placement.place(search(16)) == "", "two trials at once are as many as ever fit"
    assert placement.place(need(1)) != ""


def test_a_search_waits_for_its_places_and_keeps_them_back() -> None:
    placement = Placement([Node("a", 4, 0, 8)])
    placement.occupy(need(2), "a")
    reason = placement.place(search(3))
    assert reason == (
        "needs 3 times 1 CPU on one node for each trial; room for 2 of 3 is free, running or "
        "earlier jobs hold the rest"
    )
    assert placement.place(need(2)) != ""


def test_a_trial_that_fits_nowhere_is_told() -> None:
    reason = Placement([Node("a", 2, 0, 8)]).place(search(2, cpus=16))
    assert "the largest has 2 CPUs: it starts when a larger node joins" in reason
    reason = Placement([Node("a", 2, 0, 8)]).place(need(1, workers=5))
    assert "the whole cluster holds 2 of them: it starts when another node joins" in reason


def test_a_running_search_holds_its_places() -> None:
    placement = Placement([Node("head", 0, 0, 8), Node("a", 4, 0)])
    placement.occupy(search(3), "head")
    assert placement.place(need(1)) == ""
    assert placement.place(need(1)) != ""


def test_fractions_of_a_gpu_share_one_and_are_not_put_together() -> None:
    placement = Placement([Node("a", 8, 2)])
    assert [placement.place(need(1, gpus=0.5)) for _ in range(4)] == [""] * 4
    assert placement.place(need(1, gpus=0.1)) != ""
    uneven = Placement([Node("a", 8, 2)])
    assert [uneven.place(need(1, gpus=0.6)) for _ in range(2)] == ["", ""]
    assert uneven.place(need(1, gpus=0.6)) != "", "0.4 and 0.4 are no 0.6"
    assert uneven.place(need(1, gpus=0.4)) == ""


def test_ten_tenths_are_one() -> None:
    placement = Placement([Node("a", 16, 1)])
    assert [placement.place(need(1, gpus=0.1)) for _ in range(10)] == [""] * 10
    assert placement.place(need(1, gpus=0.1)) != ""


def test_small_shares_fill_up_a_gpu_before_the_next() -> None:
    placement = Placement([Node("a", 8, 2)])
    assert [placement.place(need(1, gpus=0.5)) for _ in range(2)] == ["", ""]
    assert placement.place(need(1, gpus=1)) == ""


def test_an_accelerator_is_looked_for_by_its_name() -> None:
    nodes = [Node("a", 8, 1, 0, frozenset({"T4"})), Node("b", 8, 1, 0, frozenset({"H100"}))]
    placement = Placement(nodes)
    assert placement.place(need(1, gpus=1, kind="H100")) == ""
    assert placement.place(need(1, gpus=1, kind="H100")) != ""
    assert placement.place(need(1, gpus=1)) == "", "any will do, and the T4 is free"
    reason = placement.place(need(1, gpus=1, kind="A100"))
    assert "no node has such an accelerator (there are: H100, T4)" in reason


def test_a_large_cluster_is_placed_quickly() -> None:
    placement = Placement([Node(str(n), 64, 8, 8) for n in range(100)])
    begun = time.perf_counter()
    assert placement.place(search(800, cpus=2, gpus=1)) == ""
    assert time.perf_counter() - begun < 2


def test_each_waiting_job_keeps_a_node_back_as_long_as_there_is_one() -> None:
    placement = Placement([Node("a", 4, 0), Node("b", 4, 0)])
    placement.occupy(need(2), "a")
    placement.occupy(need(2), "b")
    assert placement.place(need(4)) != ""
    assert not placement.full, "node b's cores are nobody's yet"
    assert placement.place(need(4)) != ""
    assert placement.full
    assert placement.place(need(1)) != ""


def test_what_found_no_room_is_answered_alike_and_takes_no_more() -> None:
    placement = Placement([Node("cpu", 8, 0), Node("gpu", 8, 1)])
    assert placement.place(need(2, gpus=1)) == ""
    reasons = {placement.place(need(2, gpus=1)) for _ in range(500)}
    assert len(reasons) == 1
    assert not placement.full
    assert placement.place(need(8)) == ""
