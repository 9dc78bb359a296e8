"""End to end on unequal devices: samples per second and joules per sample, side by side.

    python -m benchmarks.throughput                                 10M GPT, 80/40/40 %, three links
    python -m benchmarks.throughput --link wifi-indoors             a recorded link's statistics
    python -m benchmarks.throughput --cpu 75 25 --link 100 --task bert
    python -m benchmarks.throughput --quick                         a minute, for a look

The devices are emulated (CPU quotas, shaped links, meters that follow fixed power curves). All
contestants alternate in one run. The compute bound is what all devices do together if each trained
a whole model for itself, all at the same time, measured in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import tasks
from benchmarks.contest import Block, Contest, turns_s
from benchmarks.devices import Devices, Reading
from benchmarks.entries import BOUND, KINDS, WATTS, Entry, baselines, edge
from benchmarks.outcome import Outcome, draw, show, write
from lightning_edge.errors import TestbedError
from lightning_edge.testbed.power import PowerCurve
from lightning_edge.testbed.spec import DeviceSpec
from lightning_edge.testbed.trace import Trace, load_trace

OBJECTIVES = ("time", "energy", "edp")
RESULTS = Path(__file__).parent / "results"
TURN_LIMIT_S = 400.0
FASTEST_MBIT = 1000.0
TRACE_TURN_S = 60.0  # every contestant's n-th turn sees the trace from the same moment on


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cpu", type=int, nargs="+", default=[80, 40, 40], choices=WATTS)
    links = "Mbit/s, or a trace: wifi-indoors, or a CSV file with t_s,mbit"
    parser.add_argument("--link", type=_link, nargs="+", default=[100.0, 25.0, 1000.0], help=links)
    parser.add_argument("--task", choices=tasks.NAMES, default="gpt-10m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="of each turn")
    parser.add_argument("--objectives", nargs="*", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), help="contestants")
    parser.add_argument("--quick", action="store_true", help="one link, one objective, one round")
    parser.add_argument("--json", type=Path, default=RESULTS / "throughput.json")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.link, arguments.objectives, arguments.rounds = [100.0], ["time"], 1
    start_s = time.monotonic()
    outcomes = run(arguments, start_s)
    show(outcomes)
    draw(outcomes, arguments.json.with_suffix(".png"))
    return 0


def _link(text: str) -> float | Trace:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return load_trace(text)
    except TestbedError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(arguments: argparse.Namespace, start_s: float) -> list[Outcome]:
    """Let all contestants train on one pool, on one link after the other.

    What is known is written after each link.
    """
    cpus, task = arguments.cpu, arguments.task
    specs = [
        DeviceSpec(
            f"device{i}", cpu=cpu / 100, link_mbit=FASTEST_MBIT, power=PowerCurve(*WATTS[cpu])
        )
        for i, cpu in enumerate(cpus)
    ]
    outcomes: list[Outcome] = []
    with Devices(specs) as devices:
        others = baselines(devices, cpus, task, arguments.only)

        def start(contest: Contest) -> None:
            devices.limit(True)
            for name in [entry.name for entry in others]:
                contest.teams[name].begin()
                contest.teams[name].ready()

        with Contest([entry.contestant for entry in others], start) as contest:
            for link in arguments.link:
                outcomes += compare(arguments, devices, contest, link, others)
                write(outcomes, arguments.json, time.monotonic() - start_s)
            devices.limit(False)
            for entry in others:
                results, peaks = contest.leave(entry.name, TURN_LIMIT_S)
                for outcome in outcomes:
                    if outcome.contestant == entry.name:
                        outcome.add(results[0], max(peaks))
        write(outcomes, arguments.json, time.monotonic() - start_s)
    return outcomes


def compare(
    arguments: argparse.Namespace,
    devices: Devices,
    contest: Contest,
    link: float | Trace,
    others: Sequence[Entry],
) -> list[Outcome]:
    """Let all take turns on one link."""
    label = link.name if isinstance(link, Trace) else f"{link:g} Mbit/s"
    objectives = arguments.objectives if "edge" in arguments.only else ()
    own = [edge(devices, arguments.cpu, arguments.task, o, label) for o in objectives]
    devices.set_link(link)

    def start(contest: Contest) -> None:
        devices.limit(True)
        for entry in own:  # one after the other: the first one's profile serves all
            contest.teams[entry.name].begin()
            contest.teams[entry.name].ready()

    devices.limit(False)  # while they import
    contest.join([entry.contestant for entry in own], start)
    blocks = contest.alternate(
        arguments.rounds,
        arguments.steps,
        1,
        TURN_LIMIT_S,
        observe=devices.read,
        prepare=lambda number: devices.set_link(link, number * TRACE_TURN_S),
    )
    results: dict[str, tuple[Any, int]] = {}
    for entry in own:
        returned, peaks = contest.leave(entry.name, TURN_LIMIT_S)
        results[entry.name] = returned[0], max(peaks)
    return judge(arguments.task, label, arguments.cpu, [*others, *own], blocks, results)


def judge(
    task: str,
    link: str,
    cpus: Sequence[int],
    entries: Sequence[Entry],
    blocks: dict[str, list[Block]],
    results: dict[str, tuple[Any, int]],
) -> list[Outcome]:
    """Turn seconds and readings into speeds and joules."""
    setting = "/".join(str(cpu) for cpu in cpus) + " % CPU"
    rows = entries[0].rows
    bounds = [  # samples per second of all devices together, by turn
        sum(rows / statistics.median(steps_s) for steps_s in block.ranks_s)
        for block in blocks[BOUND]
    ]
    outcomes = []
    for entry in entries:
        own = blocks[entry.name]
        speeds = [entry.rows / turn for turn in turns_s(own)]
        counts = [float(len(block.steps_s) * entry.rows) for block in own]
        if entry.name == BOUND:
            speeds, counts = bounds, [count * len(cpus) for count in counts]
        result, peak_bytes = results.get(entry.name, (None, 0))
        ranks = _working(result, len(cpus)) or entry.ranks
        used = [_used(block, ranks) for block in own]
        idle_w = sum(WATTS[cpus[rank]][0] for rank in ranks)
        joules = [reading.energy_j for reading in used]
        extra = [
            energy - idle_w * sum(block.steps_s) for energy, block in zip(joules, own, strict=True)
        ]
        outcome = Outcome(
            task,
            setting,
            link,
            entry.name,
            len(ranks),
            statistics.median(speeds),
            [mine / bound for mine, bound in zip(speeds, bounds, strict=True)],
            _median_ratio(joules, counts),
            _median_ratio(extra, counts),
            _median_ratio([r.sent_bytes for r in used], [len(b.steps_s) for b in own]),
        )
        outcome.add(result, peak_bytes)
        outcomes.append(outcome)
    return outcomes


def _working(result: Any, devices: int) -> tuple[int, ...]:
    """The devices that a plan gives work; one without work may sleep, so it is not counted."""
    plan = (result or {}).get("plan") or {}
    stages = [stage for pipeline in plan.get("pipelines", ()) for stage in pipeline["stages"]]
    named = {int(rank) for stage in stages for rank in stage["devices"]}
    return tuple(rank for rank in range(devices) if rank in named)


def _used(block: Block, ranks: Sequence[int]) -> Reading:
    """What the devices that took part used in a block."""
    assert block.observed is not None
    before, after = block.observed
    return Reading(
        sum(after[rank].cpu_s - before[rank].cpu_s for rank in ranks),
        sum(after[rank].sent_bytes - before[rank].sent_bytes for rank in ranks),
        sum(after[rank].energy_j - before[rank].energy_j for rank in ranks),
    )


def _median_ratio(amounts: Sequence[float], counts: Sequence[float]) -> float:
    return statistics.median(a / n for a, n in zip(amounts, counts, strict=True))


if __name__ == "__main__":
    sys.exit(main())
