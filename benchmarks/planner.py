"""How good plans are, how long planning takes, and what others would have planned.

    python -m benchmarks.planner [--only brute,speed,rivals] [--quick]

`brute` compares with looking at everything, on small random problems. `speed` times the simulator
and the search. `rivals` predicts the plans of others on a sweep of pools. Everything is written to
`benchmarks/results/planner.*`. Seconds are those of the processor, of one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import brute, pools
from benchmarks.rivals import RIVALS
from lightning_edge.errors import PlanError
from lightning_edge.plan import exhaust, search
from lightning_edge.plan.assignment import Assignment, Part
from lightning_edge.plan.profile_table import grid
from lightning_edge.plan.simulate import Simulator, simulate

RESULTS = Path(__file__).parent / "results"
MBIT = (10, 30, 100, 300, 1000)
RATIOS = (1.0, 2.0, 3.0, 5.0)
SIZES = ((4, 12), (8, 24), (16, 48), (32, 64), (64, 96))
EQUAL = 3e-4


def against_brute_force(quick: bool) -> dict[str, Any]:
    """Compare the search, with and without `exhaust`, with looking at everything."""
    number = 30 if quick else 300
    most = exhaust.MOST_PLANS
    limits = {"search": most, "without exhaust": 0}
    worse: dict[str, list[float]] = {name: [] for name in limits}
    taken = dict.fromkeys(limits, 0.0)
    infeasible = 0
    for seed in range(number):
        judge, other = brute.judges(*brute.problem(seed))
        truth = brute.best(other)
        infeasible += truth.excess > 0
        for name, exhaust.MOST_PLANS in limits.items():
            start = time.process_time()
            found = search._Search(
                judge.afresh(), judge.rules, brute.ROWS, search.BUDGET, brute.PIECE, brute.NUMBERS
            ).best()
            taken[name] += time.process_time() - start
            assert (found.excess > 0) == (truth.excess > 0), seed
            if truth.excess <= 0:
                worse[name].append(found.value / truth.value - 1)
    exhaust.MOST_PLANS = most
    return {
        name: {
            "feasible": len(found),
            "infeasible": infeasible,
            "equal": sum(w <= EQUAL for w in found) / len(found),
            "worst": max(found),
            "search_s": taken[name] / number,
        }
        for name, found in worse.items()
    }


def speed(quick: bool) -> dict[str, Any]:
    """Time a million instructions, and searches over size."""
    devices, number = 16, 31_250
    profile = pools.pool(pools.gpt(14), [1.0] * devices, 100)
    parts = tuple(
        Part(i, i + 1, (i,), (number,), (0,), 2 * (devices - i) - 1) for i in range(devices)
    )
    simulator = Simulator(profile)
    start = time.process_time()
    outcome = simulator.run(Assignment(parts, number))
    taken = time.process_time() - start
    instructions = sum(len(line) for line in outcome.work.lists)
    found: dict[str, Any] = {"simulator": {"instructions": instructions, "seconds": taken}}
    found["searches"] = []
    for devices, blocks in SIZES[:3] if quick else SIZES:
        profile = pools.pool(pools.gpt(blocks - 2), pools.speeds(devices, 5), 100)
        for goal in ("time", "energy"):
            start = time.process_time()
            choice = search.search(profile, rows=64, objective=goal)
            taken = time.process_time() - start
            found["searches"].append(
                {
                    "devices": devices,
                    "blocks": blocks,
                    "objective": goal,
                    "seconds": taken,
                    "step_s": choice.prediction.step_s,
                    "energy_j": choice.prediction.energy_j,
                }
            )
    return found


def against_rivals(quick: bool) -> list[dict[str, Any]]:
    """Predict the plans of all on pools of four devices."""
    rows = 32
    found = []
    for model in (pools.gpt(), pools.convnet()):
        for ratio in RATIOS[::3] if quick else RATIOS:
            for mbit in MBIT[::2] if quick else MBIT:
                profile = pools.pool(model, pools.speeds(4, ratio), mbit, saving_mode=False)
                seconds: dict[str, float | None] = {}
                for name, rival in RIVALS.items():
                    seconds[name] = _predicted(profile, rival(profile, rows), rows)
                choice = search.search(profile, rows=rows)
                others = [s for s in seconds.values() if s is not None]
                found.append(
                    {
                        "model": model.name,
                        "ratio": ratio,
                        "mbit": mbit,
                        "ours": choice.prediction.step_s,
                        "plan": choice.plan.to_mapping(),
                        "rivals": seconds,
                        "best": min(others) / choice.prediction.step_s,
                    }
                )
    return found


def _predicted(profile: Any, plan: Any, rows: int) -> float | None:
    """Seconds per step; None for a plan that is none or does not fit."""
    if plan is None:
        return None
    try:
        found = simulate(plan, profile, rows=rows)
    except PlanError:
        return None
    return found.step_s if found.fits else None


def tables(results: dict[str, Any]) -> str:
    """Return all results as tables in Markdown."""
    parts = []
    if "brute" in results:
        rows = [
            [
                name,
                str(r["feasible"]),
                f"{100 * r['equal']:.1f} %",
                f"{100 * r['worst']:.2f} %",
                f"{r['search_s']:.2f} s",
            ]
            for name, r in results["brute"].items()
        ]
        titles = ("against every plan", "feasible problems", "equal", "worst", "seconds each")
        parts.append(grid(titles, rows, 120))
    if "speed" in results:
        each = results["speed"]["simulator"]
        text = f"{each['instructions']:,} instructions simulated in {each['seconds']:.1f} s"
        rows = [
            [f"{s['devices']} x {s['blocks']}", s["objective"], f"{s['seconds']:.2f} s"]
            for s in results["speed"]["searches"]
        ]
        parts += [text, grid(("devices x blocks", "objective", "search"), rows, 120)]
    if "rivals" in results:
        parts.append(_rivals_table(results["rivals"]))
    return "\n\n".join(parts) + "\n"


def _rivals_table(settings: Sequence[dict[str, Any]]) -> str:
    rows = []
    for name in RIVALS:
        ratios = [
            (s["rivals"][name] / s["ours"], f"{s['model']}, {s['ratio']:g}:1, {s['mbit']} Mbit/s")
            for s in settings
            if s["rivals"][name] is not None
        ]
        most, least = max(ratios), min(ratios)
        middle = statistics.median(r for r, _ in ratios)
        rows.append(
            [name, f"{least[0]:.3f} ({least[1]})", f"{middle:.2f}", f"{most[0]:.2f} ({most[1]})"]
        )
    best = [s["best"] for s in settings]
    rows.append(["the best of them", f"{min(best):.3f}", f"{statistics.median(best):.2f}",
                 f"{max(best):.2f}"])  # fmt: skip
    return grid(("their step / ours", "least", "median", "most"), rows, 140)


def picture(results: dict[str, Any], path: Path) -> None:
    """Draw planning time over size, and the rivals' steps over bandwidth."""
    from matplotlib.figure import Figure

    settings = results.get("rivals", [])
    ratios = sorted({s["ratio"] for s in settings})
    models = list(dict.fromkeys(s["model"] for s in settings))
    count = max(1, len(ratios))
    figure = Figure(figsize=(3.4 * count, 3.2 * (len(models) + 1)), layout="constrained")
    axes = figure.subplots(len(models) + 1, count, squeeze=False)
    for row, model in enumerate(models):
        for column, ratio in enumerate(ratios):
            _sweep(
                axes[row][column],
                [s for s in settings if (s["model"], s["ratio"]) == (model, ratio)],
            )
            axes[row][column].set_title(f"{model}, devices {ratio:g}:1", fontsize=9)
    if models:
        axes[0][0].legend(fontsize=6)
        axes[0][0].set_ylabel("their step / ours")
    for each in axes[-1][1:]:
        each.set_axis_off()
    searches = results.get("speed", {}).get("searches", [])
    for goal in ("time", "energy"):
        mine = [s for s in searches if s["objective"] == goal]
        axes[-1][0].loglog(
            [s["devices"] * s["blocks"] for s in mine],
            [s["seconds"] for s in mine],
            "o-",
            label=goal,
        )
    axes[-1][0].set_xlabel("devices x blocks")
    axes[-1][0].set_ylabel("seconds of planning")
    axes[-1][0].legend(fontsize=7)
    figure.savefig(path, dpi=150)


def _sweep(axes: Any, settings: Sequence[dict[str, Any]]) -> None:
    for name in RIVALS:
        points = [(s["mbit"], s["rivals"][name] / s["ours"]) for s in settings if s["rivals"][name]]
        axes.loglog([x for x, _ in points], [y for _, y in points], "o-", ms=3, lw=1, label=name)
    axes.axhline(1, color="black", lw=0.8)
    axes.set_xlabel("Mbit/s", fontsize=8)


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--only", default="brute,speed,rivals", help="parts, with commas between")
    parser.add_argument("--quick", action="store_true", help="fewer problems and settings")
    parser.add_argument("--out", type=Path, default=RESULTS / "planner.json")
    given = parser.parse_args()
    parts = {"brute": against_brute_force, "speed": speed, "rivals": against_rivals}
    results: dict[str, Any] = {}
    for name in given.only.split(","):
        results[name] = parts[name](given.quick)
        print(tables({name: results[name]}), flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(results, indent=1) + "\n")
    given.out.with_suffix(".md").write_text(tables(results))
    picture(results, given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
