"""What a job needs of the cluster, in bundles: each lies on one node, as in Ray.

A training of one worker is one bundle, which its own process asks Ray for. Where several processes
work for a job, the first of them, the driver, only looks on: it takes no core, but one
`driver_slot`, so that drivers never hold the cores that their own workers wait for.
"""

from dataclasses import dataclass

from service.queue.job import AnySpec
from workers.search_specs import SearchSpec
from workers.specs import ResourcesConfig

DRIVER_SLOT = "driver_slot"
"""The custom resource that nodes offer to drivers."""
ACCELERATOR = "accelerator_type:"
"""Prefix of the resource of which Ray gives 1 to each node with such an accelerator."""
TOUCH = 0.001
"""As much of that resource as Ray's own `accelerator_type=` asks for."""


@dataclass(frozen=True)
class Bundle:
    """What one process takes of one node."""

    cpus: float = 0.0
    gpus: float = 0.0
    """At most 1; a fraction is a share of one GPU."""
    accelerator_type: str | None = None
    driver_slots: float = 0.0

    @property
    def custom(self) -> dict[str, float]:
        """Ray's custom resources."""
        found = {DRIVER_SLOT: self.driver_slots} if self.driver_slots else {}
        if self.accelerator_type:
            found[ACCELERATOR + self.accelerator_type] = TOUCH
        return found


DRIVER = Bundle(driver_slots=1.0)


@dataclass(frozen=True)
class Need:
    """All that a job takes: `fixed`, and `unit` at least once and at most `count` times."""

    fixed: tuple[Bundle, ...]
    unit: tuple[Bundle, ...]
    count: int
    entrypoint: Bundle
    """What Ray is asked for the job's first process."""
    words: str
    """What is needed, for people."""


def need_of(spec: AnySpec) -> Need:
    """The need of a training or a search."""
    resources = spec.resources
    worker = Bundle(
        cpus=resources.cpus_per_worker,
        gpus=resources.gpus_per_worker,
        accelerator_type=resources.accelerator_type,
    )
    unit = (worker,) * resources.workers
    if isinstance(spec, SearchSpec):
        driven = unit if resources.workers == 1 else (DRIVER, *unit)
        at_once = min(spec.concurrency, spec.configurations * spec.seeds)
        words = f"{_in_words(resources)} for each trial"
        return Need((DRIVER,), driven, at_once, DRIVER, words)
    if resources.workers == 1:
        return Need((), unit, 1, worker, _in_words(resources))
    return Need((DRIVER,), unit, 1, DRIVER, _in_words(resources))


def amounts(cpus: float, gpus: float) -> str:
    """CPUs and GPUs in words."""
    parts = [f"{cpus:g} CPU{'' if cpus == 1 else 's'}"]
    if gpus:
        parts.append(f"{gpus:g} GPU{'' if gpus == 1 else 's'}")
    return " and ".join(parts)


def _in_words(resources: ResourcesConfig) -> str:
    each = amounts(resources.cpus_per_worker, resources.gpus_per_worker)
    kind = f" with {resources.accelerator_type}" if resources.accelerator_type else ""
    if resources.workers == 1:
        return f"{each} on one node{kind}"
    nodes = f" on nodes{kind}" if kind else ""
    return f"{resources.workers} workers with {each} each{nodes}"
