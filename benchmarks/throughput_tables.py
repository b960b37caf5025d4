"""The tables of `throughput`'s report, in Markdown."""

from collections.abc import Sequence
from typing import Any

from benchmarks.contenders import PHASES, Phase
from benchmarks.limits import operations, operations_by_frequency
from benchmarks.parts import PARTS, STEP, PartsFound
from benchmarks.race import Comparison, Race
from benchmarks.spread import spread
from benchmarks.sweeps import BATCH_SIZE, ITERATIONS, Sweep, growth

GOALS: dict[tuple[Phase, str, str], float] = {
    ("training", "ours bf16", "plain fp32"): 10,
    ("training", "ours fp32", "plain fp32"): 5,
    ("training", "ours bf16", "tuned bf16"): 3,
    ("training", "ours fp32", "tuned fp32"): 3,
    ("inference", "ours bf16", "plain fp32"): 8,
}
"""At least so many times as many images a second, on 2 cores, with batches of 128."""
MEMORY_GOAL = 1.2
"""At most so many times the plain textbook's peak of memory."""
ROUTING_GOAL = 12
"""At least so many times as fast as the textbook's, forward and backward."""
GROWTH_GOAL_MS, GROWTH_GOAL_SHARE = 45.0, 0.25
"""By one or the other our step may grow, at most, from 1 to 5 passes of the routing."""
EPOCH = 60_000

Lines = list[str]


def heading(machine: dict[str, Any]) -> Lines:
    """The title, and what was measured on."""
    cuda = f", CUDA {machine['cuda']}" if machine["cuda"] else ""
    return [
        f"# Throughput on {machine['device']}",
        "",
        f"{machine['date']}, torch {machine['torch']}{cuda}, Python {machine['python']}, "
        f"{machine['threads']} CPU threads, load average {machine['load']} before the run. "
        "Medians; in brackets the quartiles. Ratios were taken within each round of one "
        "alternating run and hold; images/s change with whatever else the machine does.",
    ]


def race_section(race: Race, machine: dict[str, Any]) -> Lines:
    """Images a second and memory of all, ratios, and the machine's limit."""
    on_gpu = machine["kind"] == "cuda"
    return [
        "",
        f"## Batches of {race.batch_size} images ({race.data}), {race.rounds} rounds",
        "",
        *_contenders(race),
        "",
        _about_memory(race, on_gpu),
        _about_epochs(race),
        "",
        *_ratios(race, with_goals=not on_gpu and race.batch_size == BATCH_SIZE),
        "",
        *_limits(race),
    ]


def parts_section(found: Sequence[PartsFound]) -> Lines:
    """Where the time goes, in each precision, and the routing beside the textbook's."""
    head = [f"{parts.precision}, ms | share of the step" for parts in found]
    lines = [
        "",
        f"## Parts of a training step, batches of {found[0].batch_size}",
        "",
        f"| part | {' | '.join(head)} |",
        "| --- |" + " ---: | ---: |" * len(found),
    ]
    for name in (*PARTS, "rest", STEP):
        cells = [
            f"{1000 * parts.median_s[name]:.2f} | {parts.shares.get(name, 1):.1%}"
            for parts in found
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for parts in found:
        lines += [
            "",
            f"Routing forward and backward, {parts.precision}: {parts.routing_ratio:.1f} times as "
            f"fast as the textbook's (goal on 2 cores: {ROUTING_GOAL}); it takes "
            f"{parts.routing_share:.1%} of the step.",
        ]
    return lines


def sweep_section(sweep: Sweep) -> Lines:
    """Images a second at each value, ours in bf16 beside the plain textbook."""
    lines = [
        "",
        f"## Sweep over {sweep.name}",
        "",
        f"| {sweep.name} | batch | ours, training images/s | plain | ratio "
        "| ours, inference images/s | plain | ratio |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    rates = {(line.contender, line.phase, line.value): line.images_per_s for line in sweep.lines}
    for line in sweep.of("ours", "training"):
        cells = []
        for phase in reversed(PHASES):
            ours = rates["ours", phase, line.value]
            plain = rates.get(("plain", phase, line.value))
            cells += [
                f"{ours:,.0f}",
                *([f"{plain:,.0f}", f"{ours / plain:.1f}"] if plain else ["", ""]),
            ]
        lines.append(f"| {line.value} | {line.batch_size} | {' | '.join(cells)} |")
    return [*lines, "", _about_growth(sweep)]


def _contenders(race: Race) -> Lines:
    lines = [
        "| net | training, images/s | ms a step | peak MiB | inference, images/s | ms | peak MiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for contender in dict.fromkeys(m.contender for m in race.measurements):
        cells = []
        for phase in reversed(PHASES):
            found = race.find(contender, phase)
            cells += [
                f"{race.images_per_s(found):,.0f}",
                f"{1000 * spread(found.step_s).median:,.2f}",
                f"{found.peak_mib:,.0f}",
            ]
        lines.append(f"| {contender} | {' | '.join(cells)} |")
    return lines


def _about_memory(race: Race, on_gpu: bool) -> str:
    if on_gpu:
        return "Peak MiB is what torch allocated on the GPU."
    return (
        "Peak MiB is the resident memory of the whole process, of which "
        f"{race.start_mib:.0f} are Python, torch and the data."
    )


def _about_epochs(race: Race) -> str:
    if race.epoch_s is not None:
        return f"A whole epoch of {EPOCH:,} images in bf16, run once: {race.epoch_s:.2f} s."
    rates = {m.contender: race.images_per_s(m) for m in race.measurements if m.phase == "training"}
    ours = {name: rate for name, rate in rates.items() if name.startswith("ours")}
    told = ", ".join(f"{EPOCH / rate:.0f} s ({name})" for name, rate in ours.items())
    return f"An epoch of {EPOCH:,} images at that rate: {told}."


def _ratios(race: Race, with_goals: bool) -> Lines:
    lines = [
        "| ours / other | images/s | goal | peak memory | goal |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for line in race.comparisons:
        goal, memory_goal = _goals(line) if with_goals else ("", "")
        lines.append(
            f"| {line.phase}, {line.ours} / {line.other} | {line.ratio:.2f} | {goal} "
            f"| {line.memory:.2f} | {memory_goal} |"
        )
    return lines


def _goals(line: Comparison) -> tuple[str, str]:
    goal = GOALS.get((line.phase, line.ours, line.other))
    of_memory = f"at most {MEMORY_GOAL}" if line.other.startswith("plain") else ""
    return (f"at least {goal:g}" if goal else "", of_memory)


def _limits(race: Race) -> Lines:
    told = ", ".join(
        f"{name} {spread([round_[name] for round_ in race.peaks]).median / 1e9:,.0f}"
        for name in race.peaks[0]
    )
    mega = {
        phase: (operations(phase) / 1e6, operations_by_frequency(phase) / 1e6) for phase in PHASES
    }
    lines = [
        f"Measured in the same rounds, GFLOP/s: {told}. An image takes "
        f"{mega['training'][0]:,.0f} MFLOP in training and {mega['inference'][0]:,.0f} in "
        f"inference with direct convolutions, {mega['training'][1]:,.0f} and "
        f"{mega['inference'][1]:,.0f} in the frequency domain with dense transforms.",
        "",
        "| ours | limit, direct | reached | limit, frequency domain | reached |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for share in race.shares:
        lines.append(
            f"| {share.phase}, {share.precision} | {share.direct_images_per_s:,.0f} images/s "
            f"| {share.direct:.0%} | {share.frequency_images_per_s:,.0f} images/s "
            f"| {share.frequency:.0%} |"
        )
    return lines


def _about_growth(sweep: Sweep) -> str:
    lines = sweep.of("ours", "training")
    found = growth(sweep)
    goal = ""
    if sweep.name == ITERATIONS:
        goal = f" (goal: at most {GROWTH_GOAL_MS:.0f} ms, or {GROWTH_GOAL_SHARE:.0%})"
    return (
        f"From {lines[0].value} to {lines[-1].value}: {found.ms:+.2f} ms, {found.share:+.0%} for "
        f"{BATCH_SIZE} of our training images{goal}."
    )
