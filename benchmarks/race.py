"""The race: every contender in turn, step by step, beside the machine's own measured limit."""

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from benchmarks.child import Child
from benchmarks.contenders import ENTRIES, PHASES, Contender, Entry, Ours, Phase, make_contender
from benchmarks.limits import Peaks, operations, operations_by_frequency, peak_of
from benchmarks.spread import Spread, ratios, spread
from capsmodel.allocator import ALLOCATOR_ENVIRONMENT
from capsmodel.precision import Precision

MIN_ROUNDS = 2
COMPARED: tuple[tuple[Entry, Entry], ...] = (
    (Entry("ours", "bf16"), Entry("plain", "fp32")),
    (Entry("ours", "fp32"), Entry("plain", "fp32")),
    (Entry("ours", "bf16"), Entry("tuned", "bf16")),
    (Entry("ours", "fp32"), Entry("tuned", "fp32")),
)


@dataclass(frozen=True)
class Measurement:
    """One contender in one phase."""

    contender: str
    """As `ours bf16`."""
    phase: Phase
    step_s: list[float]
    """Seconds of a step, one for each round."""
    peak_mib: float
    """Most memory: the whole process on a CPU, torch's tensors on a GPU."""


@dataclass(frozen=True)
class Comparison:
    """Ours beside another contender in one phase."""

    phase: Phase
    ours: str
    other: str
    ratio: Spread
    """How many times as many images a second are ours."""
    memory: float
    """Our peak of memory as a multiple of the other's."""


@dataclass(frozen=True)
class Share:
    """What ours reaches of what the machine could do."""

    phase: Phase
    precision: Precision
    direct_images_per_s: float
    """With direct convolutions, all at the measured peak."""
    direct: Spread
    """Ours as a share of it; in the frequency domain there is less to compute, so it may pass 1."""
    frequency_images_per_s: float
    """The same in the frequency domain, with dense transforms."""
    frequency: Spread


@dataclass(frozen=True)
class Race:
    """All rounds at one batch size."""

    batch_size: int
    rounds: int
    data: str
    start_mib: float
    """Memory of a contender's process before it had a net, the smallest of all."""
    torch_flags: dict[str, Any]
    measurements: list[Measurement]
    peaks: list[dict[str, float]]
    """Operations a second of product and convolution, round by round."""
    epoch_s: float | None = field(default=None)
    """A whole epoch of the training set in bf16; None where it was not run."""

    def find(self, contender: object, phase: Phase) -> Measurement:
        """A contender's measurement."""
        wanted = (str(contender), phase)
        return next(m for m in self.measurements if (m.contender, m.phase) == wanted)

    def images_per_s(self, measurement: Measurement) -> float:
        """Those of the median step."""
        return self.batch_size / spread(measurement.step_s).median

    @property
    def comparisons(self) -> list[Comparison]:
        """Ours against those that took part, training first."""
        present = {m.contender for m in self.measurements}
        return [
            self._compare(phase, ours, other)
            for phase in reversed(PHASES)
            for ours, other in COMPARED
            if {str(ours), str(other)} <= present
        ]

    @property
    def shares(self) -> list[Share]:
        """Ours against the machine, training first."""
        return [
            self._share(phase, entry)
            for phase in reversed(PHASES)
            for entry in ENTRIES
            if entry.kind == "ours" and str(entry) in {m.contender for m in self.measurements}
        ]

    def _compare(self, phase: Phase, ours: Entry, other: Entry) -> Comparison:
        own, others = self.find(ours, phase), self.find(other, phase)
        ratio = ratios(others.step_s, own.step_s)
        return Comparison(phase, str(ours), str(other), ratio, own.peak_mib / others.peak_mib)

    def _share(self, phase: Phase, entry: Entry) -> Share:
        steps = self.find(entry, phase).step_s
        peaks = [peak_of(round_, entry.precision) for round_ in self.peaks]
        rates = [self.batch_size / seconds for seconds in steps]
        found: list[tuple[float, Spread]] = []
        for needed in (operations(phase), operations_by_frequency(phase)):
            limits = [peak / needed for peak in peaks]
            found.append((spread(limits).median, ratios(rates, limits)))
        return Share(phase, entry.precision, *found[0], *found[1])


def run_race(
    device: str, batch_size: int, precisions: list[Precision], seconds: float, epoch: bool
) -> Race:
    """Start everyone, warm up, and go round after round until the time is over.

    Args:
        device: Of torch.
        batch_size: Images of a step.
        precisions: Those of ours and of the tuned textbook.
        seconds: Of all rounds together; at least `MIN_ROUNDS` are gone.
        epoch: Whether ours runs a whole epoch in the end.
    """
    entries = [e for e in ENTRIES if e.precision in precisions or e.kind == "plain"]
    with ExitStack() as stack:
        peaks_child = stack.enter_context(
            Child("limit", ALLOCATOR_ENVIRONMENT, Peaks, device, batch_size)
        )
        children = {
            (entry, phase): stack.enter_context(
                Child(
                    f"{entry}, {phase}", entry.allocator, make_contender, entry, device, batch_size
                )
            )
            for phase in PHASES
            for entry in entries
        }
        runner = _Runner(children, peaks_child)
        runner.warm_up()
        until = time.perf_counter() + seconds
        while runner.rounds < MIN_ROUNDS or time.perf_counter() < until:
            runner.play_round()
        return runner.finish(batch_size, epoch)


Runner = tuple[Entry, Phase]
"""Who has a process and a net of its own: a net that infers is not trained in between."""


class _Runner:
    """Asks the children in turn, and keeps what they say."""

    def __init__(self, children: dict[Runner, Child[Contender]], peaks: Child[Peaks]) -> None:
        self.children = children
        self.rounds = 0
        self._peaks_child = peaks
        self._facts: dict[Runner, dict[str, Any]] = {}
        self._step_s: dict[Runner, list[float]] = {runner: [] for runner in children}
        self._peaks: list[dict[str, float]] = []

    def warm_up(self) -> None:
        """One after another."""
        for (entry, phase), child in self.children.items():
            facts = self._facts[entry, phase] = child.ask(Contender.facts)
            child.ask(Contender.warm_up, phase)
            print(f"ready: {entry}, {phase}, data: {facts['data']}", flush=True)
        self._peaks_child.ask(Peaks.warm_up)

    def play_round(self) -> None:
        """A turn of each in each phase; every other round runs backwards, to be fair to all."""
        order = list(self.children)
        if self.rounds % 2:
            order.reverse()
        for runner in order:
            seconds = self.children[runner].ask(Contender.turn, runner[1])
            self._step_s[runner].append(seconds)
        self._peaks.append(self._peaks_child.ask(Peaks.turn))
        self.rounds += 1
        latest = {phase: self._latest(phase) for phase in PHASES}
        print(f"round {self.rounds}, ms of a step: {latest}", flush=True)

    def _latest(self, phase: Phase) -> str:
        steps = {str(e): s[-1] for (e, its_phase), s in self._step_s.items() if its_phase == phase}
        return ", ".join(f"{name} {1000 * seconds:.1f}" for name, seconds in steps.items())

    def finish(self, batch_size: int, epoch: bool) -> Race:
        """What was found."""
        ours = self.children.get((Entry("ours", "bf16"), "training"))
        return Race(
            batch_size=batch_size,
            rounds=self.rounds,
            data=next(iter(self._facts.values()))["data"],
            start_mib=min(facts["start_mib"] for facts in self._facts.values()),
            torch_flags={str(entry): f["torch_flags"] for (entry, _), f in self._facts.items()},
            measurements=[
                Measurement(
                    str(entry),
                    phase,
                    self._step_s[entry, phase],
                    child.ask(Contender.peak_mib),
                )
                for (entry, phase), child in self.children.items()
            ],
            peaks=self._peaks,
            epoch_s=ours.ask(Ours.epoch_seconds) if epoch and ours else None,
        )
