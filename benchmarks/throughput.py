"""End to end on unequal devices: samples per second and joules per sample, side by side.

    python -m benchmarks.throughput                                 10M GPT, 80/40/40 %, three links
    python -m benchmarks.throughput --cpu 75 25 --mbit 100 --task bert
    python -m benchmarks.throughput --quick                         a minute, for a look

The devices are emulated (CPU quotas, shaped links, meters that follow fixed power curves). All
contestants alternate in one run. The compute bound is what all devices do together if each trained
alone at its own speed, measured in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import tasks
from benchmarks.contest import Block, Contest, Contestant, Team, turns_s
from benchmarks.devices import Devices, Reading
from benchmarks.outcome import Outcome, draw, show, write
from lightning_edge.testbed.power import PowerCurve
from lightning_edge.testbed.spec import DeviceSpec

ROWS, MICRO_BATCHES = 16, 8
# Watts idle and busy by percent of a core, fixed beforehand: a desktop, a laptop, boards.
WATTS = {80: (9.0, 30.0), 75: (9.0, 30.0), 60: (6.0, 18.0), 40: (4.0, 10.0), 25: (2.5, 6.0)}
OBJECTIVES = ("time", "energy", "edp")
RESULTS = Path(__file__).parent / "results"
TURN_LIMIT_S = 400.0


@dataclass(frozen=True)
class Entry:
    """A contestant and what its numbers count.

    Attributes:
        ranks: The devices it uses.
        rows: Rows of one of its steps.
        mbit: The only link rate it is for; None for all.
    """

    contestant: Contestant
    ranks: tuple[int, ...]
    rows: int
    mbit: float | None = None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cpu", type=int, nargs="+", default=[80, 40, 40], choices=WATTS)
    parser.add_argument("--mbit", type=float, nargs="+", default=[25, 100, 1000])
    parser.add_argument("--task", choices=tasks.NAMES, default="gpt-10m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="of each turn")
    parser.add_argument("--objectives", nargs="*", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--quick", action="store_true", help="one link, one objective, one round")
    parser.add_argument("--json", type=Path, default=RESULTS / "throughput.json")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.mbit, arguments.objectives, arguments.rounds = [100], ["time"], 1
    start_s = time.monotonic()
    outcomes = run(
        arguments.cpu,
        arguments.mbit,
        arguments.task,
        arguments.objectives,
        arguments.rounds,
        arguments.steps,
    )
    show(outcomes)
    write(outcomes, arguments.json, time.monotonic() - start_s)
    draw(outcomes, arguments.json.with_suffix(".png"))
    return 0


def run(
    cpus: Sequence[int],
    rates: Sequence[float],
    task: str,
    objectives: Sequence[str],
    rounds: int,
    steps: int,
) -> list[Outcome]:
    """Let all contestants train on one pool, at one link rate after the other."""
    specs = [
        DeviceSpec(f"device{i}", cpu=cpu / 100, link_mbit=max(rates), power=PowerCurve(*WATTS[cpu]))
        for i, cpu in enumerate(cpus)
    ]
    with Devices(specs) as devices:
        entries = baselines(devices, cpus, task) + [
            edge(devices, cpus, task, objective, rate) for rate in rates for objective in objectives
        ]

        def start(contest: Contest) -> None:
            devices.limit(True)
            for entry in entries:
                devices.set_rate(entry.mbit or max(rates))
                _begin(contest.teams[entry.contestant.name])

        setting = "/".join(str(cpu) for cpu in cpus) + " % CPU"
        outcomes = []
        with Contest([entry.contestant for entry in entries], start) as contest:
            for rate in rates:
                devices.set_rate(rate)
                playing = [entry for entry in entries if entry.mbit in (None, rate)]
                names = [entry.contestant.name for entry in playing]
                blocks = contest.alternate(
                    rounds, steps, 1, TURN_LIMIT_S, names=names, observe=devices.read
                )
                outcomes += judge(task, setting, rate, cpus, playing, blocks)
            devices.limit(False)
            finish(contest, outcomes)
    return outcomes


def baselines(devices: Devices, cpus: Sequence[int], task: str) -> list[Entry]:
    """Return what a user could pick instead: each kind of device alone, DDP, torch's pipeline."""
    everyone, world = tuple(range(len(cpus))), len(cpus)
    entries = []
    for rank in sorted({cpus.index(cpu) for cpu in cpus}):
        name = f"Lightning on device {rank} ({cpus[rank]} %)"
        entries.append(_entry(devices, name, "plain", (rank,), {"task": task, "rows": ROWS}))
    shared = ROWS // world * world  # DDP gives every device as many
    options: dict[str, Any] = {"task": task, "rows": shared}
    entries.append(_entry(devices, "Lightning DDP", "ddp", everyone, options))
    local = {**options, "accumulate": 4}
    name = "Lightning DDP, 4 batches per sum"
    entries.append(_entry(devices, name, "ddp", everyone, local))
    if task in tasks.GPTS:
        blocks = tasks.GPTS[task][2]
        for name, weights in (("even", [1] * world), ("by speed", list(cpus))):
            cut = portions(blocks, weights)
            pipeline = {"task": task, "rows": ROWS, "blocks": cut, "micro_batches": MICRO_BATCHES}
            title = f"torch 1F1B, {name} {'-'.join(map(str, cut))}"
            entries.append(_entry(devices, title, "pipeline", everyone, pipeline))
    return entries


def edge(devices: Devices, cpus: Sequence[int], task: str, objective: str, rate: float) -> Entry:
    """Return ours with a plan made for this rate."""
    name = f"edge_collab, {objective} @ {rate:g} Mbit/s"
    cache = str(devices.folder / f"profiles-{rate:g}")  # links are as fast as they were then
    options = {"task": task, "rows": ROWS, "objective": objective, "cache": cache}
    return _entry(devices, name, "edge", tuple(range(len(cpus))), options, rate)


def _entry(
    devices: Devices,
    name: str,
    function: str,
    ranks: tuple[int, ...],
    options: dict[str, Any],
    mbit: float | None = None,
) -> Entry:
    places = devices.places(ranks)
    target = f"benchmarks.fits:{function}"
    contestant = Contestant(name, target, options, places, devices.address)
    return Entry(contestant, ranks, options["rows"] * options.get("accumulate", 1), mbit)


def portions(total: int, weights: Sequence[int]) -> list[int]:
    """Divide ``total`` by weights, at least one each, largest remainders first."""
    exact = [total * weight / sum(weights) for weight in weights]
    parts = [max(1, int(share)) for share in exact]
    while sum(parts) < total:
        short = [share - part for share, part in zip(exact, parts, strict=True)]
        parts[short.index(max(short))] += 1
    while sum(parts) > total:
        parts[parts.index(max(parts))] -= 1
    return parts


def judge(
    task: str,
    setting: str,
    rate: float,
    cpus: Sequence[int],
    entries: Sequence[Entry],
    blocks: dict[str, list[Block]],
) -> list[Outcome]:
    """Turn seconds and readings into speeds and joules."""
    speeds = {
        entry.contestant.name: [
            entry.rows / turn for turn in turns_s(blocks[entry.contestant.name])
        ]
        for entry in entries
    }
    alone = {cpus[e.ranks[0]]: speeds[e.contestant.name] for e in entries if len(e.ranks) == 1}
    bounds = [sum(turn) for turn in zip(*(alone[cpu] for cpu in cpus), strict=True)]
    outcomes = []
    for entry in entries:
        own = blocks[entry.contestant.name]
        used = [_used(block, entry.ranks) for block in own]
        counts = [len(block.steps_s) * entry.rows for block in own]
        idle_w = sum(WATTS[cpus[rank]][0] for rank in entry.ranks)
        joules = [reading.energy_j for reading in used]
        extra = [
            energy - idle_w * sum(block.steps_s) for energy, block in zip(joules, own, strict=True)
        ]
        speed = speeds[entry.contestant.name]
        outcomes.append(
            Outcome(
                task,
                setting,
                rate,
                entry.contestant.name.partition(" @ ")[0],
                statistics.median(speed),
                [mine / bound for mine, bound in zip(speed, bounds, strict=True)],
                _median_ratio(joules, counts),
                _median_ratio(extra, counts),
                _median_ratio([r.sent_bytes for r in used], [len(b.steps_s) for b in own]),
                key=entry.contestant.name,
            )
        )
    return outcomes


def finish(contest: Contest, outcomes: Sequence[Outcome]) -> None:
    """End all contestants and add what they say at the end."""
    for name, team in contest.teams.items():
        results = team.finish(TURN_LIMIT_S)
        for outcome in outcomes:
            if outcome.key == name:
                outcome.peak_bytes = max(team.peaks_bytes)
                outcome.add(results[0])


def _used(block: Block, ranks: Sequence[int]) -> Reading:
    """What the devices that took part used in a block."""
    assert block.observed is not None
    before, after = block.observed
    return Reading(
        sum(after[rank].cpu_s - before[rank].cpu_s for rank in ranks),
        sum(after[rank].sent_bytes - before[rank].sent_bytes for rank in ranks),
        sum(after[rank].energy_j - before[rank].energy_j for rank in ranks),
    )


def _median_ratio(amounts: Sequence[float], counts: Sequence[int]) -> float:
    return statistics.median(a / n for a, n in zip(amounts, counts, strict=True))


def _begin(team: Team) -> None:
    team.begin()
    team.ready()


if __name__ == "__main__":
    sys.exit(main())
