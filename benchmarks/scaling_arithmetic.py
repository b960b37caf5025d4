"""Arithmetic of a training spread over many GPUs: nothing here is measured on them.

A step on one H100 is an estimate (`STEP_S`), bandwidths are what the hardware's makers state less a
fifth, latencies are round numbers. What is worked out is what these leave of the GPUs' time.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from capsmodel.cost import PASSES_OF_A_STEP

STEP_S = {128: 0.6e-3, 512: 1.9e-3, 1024: 3.7e-3}
"""Seconds of a training step on one H100 by images: an estimate for fused bf16 kernels."""
REACHED = 0.8
"""Of a stated bandwidth. NCCL's developers tell 370 of NVLink's 450 GB/s for a ring of 8 H100
(github.com/NVIDIA/nccl-tests/issues/212)."""
MEASURES_BYTES = 40
"""Five measures in float64, summed at every step once the gradients are there."""
VOTE_HOP_S = 30e-6
"""From one process to the next over TCP, on the host: `Ranks.vote` goes round before each step."""
FIRST_GROUP, GROUP = 1 << 20, 25 << 20
"""Bytes that close a group of gradients: DistributedDataParallel's defaults."""
SMALLER_GROUP = 8 << 20
"""A limit that leaves PrimaryCaps alone in its group."""
EPOCHS, IMAGES = 300, 60_000
TOGETHER_S, TRIAL_S = 20.0, 1.0
"""Until a training with several workers starts, and a search's next trial (docs/decisions/0011)."""


@dataclass(frozen=True)
class Layer:
    """What becomes known at once on the way back."""

    name: str
    gradient_bytes: int
    forward_mflop: float
    """Of one image."""
    passes_back: int = PASSES_OF_A_STEP - 1
    """Conv1 passes no gradient on to the images."""


LAYERS = (
    Layer("decoder's last layer", 3_214_400, 1.606),
    Layer("decoder's others", 2_430_976, 1.212),
    Layer("class capsules", 5_898_240, 4.7),
    Layer("PrimaryCaps", 21_234_688, 382.2),
    Layer("Conv1", 83_968, 16.6, 1),
)
"""The paper's net, in the order in which the gradients are ready: from the back."""


@dataclass(frozen=True)
class Cluster:
    """Nodes of as many GPUs each."""

    name: str
    nodes: int
    gpus_per_node: int
    link: float
    """Bytes a second of one GPU to another in its node, in one direction, as stated."""
    link_hop_s: float
    network: float = math.inf
    """Bytes a second that one GPU has to other nodes, in one direction, as stated."""
    network_hop_s: float = 0.0

    @property
    def gpus(self) -> int:
        """All of them."""
        return self.nodes * self.gpus_per_node


NVLINK, NVLINK_HOP_S = 450e9, 2e-6
CLUSTERS = (
    Cluster("8 GPUs, NVLink", 1, 8, NVLINK, NVLINK_HOP_S),
    Cluster("64 GPUs, 400 Gb/s each", 8, 8, NVLINK, NVLINK_HOP_S, 400e9 / 8, 5e-6),
    Cluster("64 GPUs, 100 Gb/s a node", 8, 8, NVLINK, NVLINK_HOP_S, 100e9 / 8 / 8, 25e-6),
)


@dataclass(frozen=True)
class Exchange:
    """How the gradients travel."""

    first_group: int = FIRST_GROUP
    group: int = GROUP
    """Bytes of float32 gradients that close a group."""
    bytes_per_number: int = 4


TODAY = Exchange()
SMALL_GROUPS = Exchange(SMALLER_GROUP, SMALLER_GROUP)
BF16 = Exchange(SMALLER_GROUP, SMALLER_GROUP, bytes_per_number=2)


@dataclass(frozen=True)
class Step:
    """One step of a training on a cluster, in seconds."""

    compute: float
    exchange: float
    """Of all gradients, one group after the other."""
    exposed: float
    """What of it is left when the way back is over, and the sum of the measures."""
    vote: float
    """Of the hosts, while the GPUs compute."""

    @property
    def total(self) -> float:
        """On the GPUs."""
        return self.compute + self.exposed

    @property
    def with_vote(self) -> float:
        """A host votes once a step, so that no step is shorter than a vote."""
        return max(self.total, self.vote)


def ring_seconds(ranks: int, bytes_: float, bandwidth: float, hop_s: float) -> float:
    """An all-reduce in a ring: the sums go round once, the results once more.

    Args:
        ranks: At least 1; alone it takes nothing.
        bytes_: Of the numbers that are summed; each rank sends `2 (ranks - 1) / ranks` of them.
        bandwidth: Bytes a second that reach the next rank; ranks send and receive at once.
        hop_s: Latency from one rank to the next.
    """
    hops = 2 * (ranks - 1)
    return hops / ranks * bytes_ / bandwidth + hops * hop_s


def exchange_seconds(cluster: Cluster, bytes_: float) -> float:
    """An all-reduce over all GPUs: within each node, and of the nodes' shares between them.

    A ring's first half leaves each GPU with the sums of its own part, which those of the same
    number in all nodes sum in a ring of their own; the second half tells the node.
    """
    own = bytes_ / cluster.gpus_per_node
    return ring_seconds(
        cluster.gpus_per_node, bytes_, REACHED * cluster.link, cluster.link_hop_s
    ) + ring_seconds(cluster.nodes, own, REACHED * cluster.network, cluster.network_hop_s)


def compute_seconds(images: float) -> float:
    """A step on one GPU, straight lines between the estimates and on beyond them."""
    sizes = sorted(STEP_S)
    above = next((number for number, size in enumerate(sizes) if size >= images), len(sizes) - 1)
    low, high = sizes[max(above, 1) - 1], sizes[max(above, 1)]
    slope = (STEP_S[high] - STEP_S[low]) / (high - low)
    return STEP_S[low] + slope * (images - low)


def backward_share() -> float:
    """Of a step's operations, those of the way back."""
    back = sum(layer.forward_mflop * layer.passes_back for layer in LAYERS)
    return back / (back + sum(layer.forward_mflop for layer in LAYERS))


def groups(exchange: Exchange) -> Iterator[tuple[int, float]]:
    """Bytes of each group of gradients, and the part of the way back after which it is whole.

    A group takes one layer after the other until it has its limit of bytes.
    """
    total = sum(layer.forward_mflop * layer.passes_back for layer in LAYERS)
    limit, bytes_, done = exchange.first_group, 0, 0.0
    for layer in LAYERS:
        bytes_ += layer.gradient_bytes
        done += layer.forward_mflop * layer.passes_back
        if bytes_ >= limit or layer is LAYERS[-1]:
            yield bytes_ * exchange.bytes_per_number // 4, done / total
            limit, bytes_ = exchange.group, 0


def step_on(cluster: Cluster, images_per_gpu: float, exchange: Exchange = TODAY) -> Step:
    """A step in which groups travel one after the other, each as soon as it is whole."""
    compute = compute_seconds(images_per_gpu)
    backward = compute * backward_share()
    over = busy = 0.0
    for bytes_, ready in groups(exchange):
        seconds = exchange_seconds(cluster, bytes_)
        over = max(over, ready * backward) + seconds
        busy += seconds
    measures = exchange_seconds(cluster, MEASURES_BYTES)
    vote = ring_seconds(cluster.gpus, 0, 1, VOTE_HOP_S)
    return Step(compute, busy, max(over - backward, 0) + measures, vote)


def efficiency(cluster: Cluster, images: float, seconds: float) -> float:
    """Images/s of the cluster as a share of those of its GPUs, each alone with batches of 128.

    For a batch of more than 128 a GPU: each alone with that batch.

    Args:
        cluster: Where.
        images: Of a step, on all GPUs together.
        seconds: Of a step.
    """
    alone = max(128.0, images / cluster.gpus)
    return images / seconds / (cluster.gpus * alone / compute_seconds(alone))


def run_seconds(step_s: float, images: int) -> float:
    """300 epochs of 60,000 images at so many a step; no evaluations, no start."""
    return EPOCHS * math.ceil(IMAGES / images) * step_s


def markdown() -> str:
    """All figures of docs/scaling.md that are worked out and not measured."""
    return "\n".join([*_groups(), "", *_networks(), "", *_efficiencies(), "", *_runs()]) + "\n"


def _groups() -> Iterator[str]:
    yield "| groups of gradients, closed at | MB, and when they are whole on the way back |"
    yield "| --- | --- |"
    for name, exchange in (("1, then 25 MiB (today)", TODAY), ("8 MiB", SMALL_GROUPS)):
        told = ", ".join(f"{bytes_ / 1e6:.2f} at {ready:.0%}" for bytes_, ready in groups(exchange))
        yield f"| {name} | {told} |"


def _networks() -> Iterator[str]:
    whole = sum(layer.gradient_bytes for layer in LAYERS)
    yield "| all gradients in one group | fp32, ms | of it latency | bf16, ms | the vote, ms |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for cluster in CLUSTERS:
        seconds = [exchange_seconds(cluster, bytes_) for bytes_ in (whole, 0, whole / 2)]
        vote = step_on(cluster, 128).vote
        cells = " | ".join(f"{1000 * each:.2f}" for each in (*seconds, vote))
        yield f"| {cluster.name} | {cells} |"


BATCHES = (("128 in all", None), ("128 a GPU", 128), ("1,024 a GPU", 1024))


def _efficiencies() -> Iterator[str]:
    yield (
        "| cluster | batch | compute, ms | exchange | not hidden | step | efficiency today "
        "| groups of 8 MiB | these in bf16 | today, the vote counted |"
    )
    yield "| --- | --- |" + " ---: |" * 8
    for cluster in CLUSTERS:
        for name, of_each in BATCHES:
            own = of_each or 128 / cluster.gpus
            images = own * cluster.gpus
            today, small, bf16 = (step_on(cluster, own, e) for e in (TODAY, SMALL_GROUPS, BF16))
            times = (today.compute, today.exchange, today.exposed, today.total)
            steps = (today.total, small.total, bf16.total, today.with_vote)
            cells = [f"{1000 * seconds:.2f}" for seconds in times]
            cells += [_percent(efficiency(cluster, images, seconds)) for seconds in steps]
            yield f"| {cluster.name} | {name} | {' | '.join(cells)} |"


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.095 else f"{share:.1%}"


def _runs() -> Iterator[str]:
    yield "| 300 epochs of 60,000 images | a run, s | runs an hour |"
    yield "| --- | ---: | ---: |"
    alone = run_seconds(compute_seconds(128), 128) + TRIAL_S
    for gpus in (1, 8, 64):
        how = "one GPU" if gpus == 1 else f"{gpus} GPUs side by side, a run each"
        yield _run(how, alone, gpus)
    for cluster in CLUSTERS:
        for name, of_each in BATCHES:
            own = of_each or 128 / cluster.gpus
            seconds = step_on(cluster, own).with_vote
            whole = run_seconds(seconds, round(own * cluster.gpus)) + TOGETHER_S
            yield _run(f"{cluster.name}, one run, {name}", whole, 1)


def _run(how: str, seconds: float, at_once: int) -> str:
    return f"| {how} | {seconds:.0f} | {at_once * 3600 / seconds:,.0f} |"
