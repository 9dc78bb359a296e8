"""What more devices cost and bring: the fixed cost of a step, planning time, predicted speed-up.

    python -m benchmarks.scaling            1 to 8 local devices, simulated pools up to 64
    python -m benchmarks.scaling --quick    up to 3 devices, pools up to 8

    pipeline    n stages that sleep 30 ms forwards and 60 ms backwards, 16 micro-batches; a real
                Trainer's step less the lower bound of filling, computing and draining
    replicas    n devices that sleep 90 ms each and add up a gradient; the step less those 90 ms
    pools       n devices, the fastest 3 times as fast as the slowest, 100 Mbit/s, a GPT of 48
                blocks: seconds of planning, and the predicted step against the fastest one's alone

Sleeping takes no processor, so that 8 devices fit on a small machine; what is left is what the
strategy itself needs: replay, packing, threads that wake each other.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import ours, pools
from benchmarks.bound import lower_bound_s
from benchmarks.contest import Contest, Contestant, Place, median_s
from benchmarks.links import BACKWARD_S, FORWARD_S
from benchmarks.table import machine
from lightning_edge.plan import search
from lightning_edge.plan.profile_table import grid

MICRO_BATCHES = 16
DEVICES = (1, 2, 3, 4, 6, 8)
POOLS = (1, 2, 4, 8, 16, 32, 64)
BLOCKS, POOL_ROWS, RATIO, MBIT = 48, 64, 3.0, 100.0
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Step:
    """One layout on n local devices."""

    layout: str
    devices: int
    step_s: float
    bound_s: float

    @property
    def fixed_s(self) -> float:
        return self.step_s - self.bound_s


@dataclass(frozen=True)
class Planned:
    """What was planned for a pool, and what the fastest device would take alone."""

    devices: int
    planning_s: float
    step_s: float
    alone_s: float
    energy_j: float
    alone_j: float
    working: int


def measure(devices: int, rounds: int, steps: int) -> list[Step]:
    """Let both layouts take turns."""
    rows = 4 * MICRO_BATCHES
    places = [Place()] * devices
    pipeline = {"plan": ours.pipeline(list(range(2, devices + 1))), "size": devices}
    replicas = {"plan": ours.replicas([1 / devices] * devices), "size": 1, "rows": 4 * devices}
    options = {"model": "sleepers", "micro_batches": MICRO_BATCHES, "rows": rows}
    contestants = [
        Contestant("pipeline", "benchmarks.ours:edge", {**options, **pipeline}, places),
        Contestant(
            "replicas", "benchmarks.ours:edge", {**options, **replicas, "micro_batches": 1}, places
        ),
    ]
    with Contest(contestants) as contest:
        blocks = contest.alternate(rounds, steps)
    bounds = {
        "pipeline": lower_bound_s(devices, MICRO_BATCHES, FORWARD_S, BACKWARD_S, 0.0),
        "replicas": FORWARD_S + BACKWARD_S,
    }
    return [Step(name, devices, median_s(own), bounds[name]) for name, own in blocks.items()]


def plan(devices: int) -> Planned:
    """Plan for a pool and for its fastest device."""
    model = pools.gpt(BLOCKS)
    speeds = pools.speeds(devices, RATIO) if devices > 1 else [RATIO]
    start_s = time.process_time()
    choice = search.search(pools.pool(model, speeds, MBIT), rows=POOL_ROWS)
    planning_s = time.process_time() - start_s
    alone = search.search(pools.pool(model, [max(speeds)], MBIT), rows=POOL_ROWS)
    working = {rank for stage in choice.plan.stages for rank in stage.devices}
    return Planned(
        devices,
        planning_s,
        choice.prediction.step_s,
        alone.prediction.step_s,
        choice.prediction.energy_j,
        alone.prediction.energy_j,
        len(working),
    )


def tables(steps: list[Step], planned: list[Planned]) -> str:
    fixed = [
        [s.layout, str(s.devices), f"{s.step_s:.3f} s", f"{1e3 * s.fixed_s:.1f} ms"] for s in steps
    ]
    found = [
        [
            str(p.devices),
            f"{p.planning_s:.2f} s",
            str(p.working),
            f"{p.alone_s / p.step_s:.2f}",
            f"{p.energy_j / p.alone_j:.2f}",
        ]
        for p in planned
    ]
    titles = ("pool of", "planning", "devices used", "speed-up", "joules, of one device")
    return "\n\n".join(
        (grid(("layout", "devices", "step", "fixed cost"), fixed, 100), grid(titles, found, 100))
    )


def picture(steps: list[Step], planned: list[Planned], path: Path) -> None:
    """Draw the fixed cost, and the predicted speed-up with the planning time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for layout in ("pipeline", "replicas"):
        own = [s for s in steps if s.layout == layout]
        left.plot([s.devices for s in own], [1e3 * s.fixed_s for s in own], "o-", label=layout)
    left.set(xlabel="local devices", ylabel="fixed cost of a step, ms", ylim=(0, None))
    left.legend()
    sizes = [p.devices for p in planned]
    middle.semilogx(sizes, [p.alone_s / p.step_s for p in planned], "o-", base=2)
    middle.set(xlabel="devices of the pool", ylabel="predicted speed-up over the fastest")
    right.loglog(sizes, [p.planning_s for p in planned], "o-", base=2)
    right.set(xlabel="devices of the pool", ylabel="seconds of planning")
    figure.savefig(path, dpi=130)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer devices and turns")
    parser.add_argument("--json", type=Path, default=RESULTS / "scaling.json")
    arguments = parser.parse_args()
    planned = [plan(devices) for devices in (POOLS[:4] if arguments.quick else POOLS)]
    steps: list[Step] = []
    for devices in DEVICES[:3] if arguments.quick else DEVICES:
        steps += measure(devices, 2, 2) if arguments.quick else measure(devices, 4, 3)
    text = tables(steps, planned)
    print(text)
    content: dict[str, Any] = {
        "machine": machine(),
        "steps": [{**asdict(s), "fixed_s": s.fixed_s} for s in steps],
        "pools": [asdict(p) for p in planned],
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    arguments.json.with_suffix(".md").write_text(text + "\n")
    picture(steps, planned, arguments.json.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
