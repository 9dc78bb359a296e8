"""The planner against the plans of others, measured: one pool of emulated devices after the other.

    python -m benchmarks.sweep --cases gpt-100-2 convnet-10-5     # root; 1 to 3 minutes a case
    python -m benchmarks.sweep --show                             # the table and the figure again

A case is a model, the links' Mbit/s, and how many times as fast the fastest of three devices is as
the slowest. The devices profile themselves and plan; then every plan is trained in the same
processes, ours first and last. A plan that is predicted to take three times as long is not run.
Lines are added to `benchmarks/results/sweep.jsonl` as they come; of a plan the last one counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.rivals import RIVALS

RESULTS = Path(__file__).parent / "results" / "sweep.jsonl"
ROWS, STEPS, PROFILE_S, HOPELESS = 16, 8, 9.0, 3.0
SIZES = {"gpt": 6, "convnet": 8}
CPUS = {1: (46, 46, 46), 2: (70, 50, 35), 5: (85, 40, 17)}
MBIT = (10, 30, 100, 300, 1000)
OURS, AGAIN = "ours", "ours again"


def work(out: Path, case: str) -> None:
    """On every device: profile, plan, train everybody's plans, and write how long steps took."""
    import lightning as L
    import torch

    import lightning_edge
    from benchmarks import models
    from lightning_edge.callbacks.edge_profiler import EdgeProfiler
    from lightning_edge.plan.simulate import simulate

    torch.set_num_threads(1)
    model = case.split("-")[0]
    loader = models.loader(models.batch_of(model, ROWS), STEPS)

    def train(plan: Any, profile: Any, callbacks: list[Any]) -> Any:
        strategy = lightning_edge.EdgeCollabStrategy(plan, profile=profile, replan=False)
        trainer = L.Trainer(
            accelerator="cpu",
            strategy=strategy,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=callbacks,
        )
        trainer.fit(models.Task(models.build(model, SIZES[model])), loader)
        report = strategy.report()
        strategy.disconnect()
        return strategy, report.step_s

    first, _ = train("auto", "measure", [EdgeProfiler(seconds=PROFILE_S, cache=False)])
    profile, ours = first.profile, first.plan
    known: dict[str, float] = {}
    fastest_s = simulate(ours, profile, rows=ROWS).step_s
    rivals = {name: rival(profile, ROWS) for name, rival in RIVALS.items()}
    for name, plan in [(OURS, ours), *rivals.items(), (AGAIN, ours)]:
        record: dict[str, Any] = {"case": case, "name": name, "predicted_s": None, "step_s": None}
        if plan is not None:
            plan = plan.resolve(profile.names, profile.model.cuts)
            record["predicted_s"] = simulate(plan, profile, rows=ROWS).step_s
            record["plan"] = plan.to_mapping()
            text = plan.to_json()
            if text in known and name != AGAIN:
                record["step_s"] = known[text]
            elif record["predicted_s"] < HOPELESS * fastest_s:
                _, record["step_s"] = train(plan, profile, [])
                known[text] = record["step_s"]
        if os.environ["RANK"] == "0":
            print(case, name, record["predicted_s"], record["step_s"], flush=True)
            with out.open("a") as file:
                file.write(json.dumps(record) + "\n")


def run(case: str, limit_s: float) -> None:
    """Run one case on a testbed; its processes write the results."""
    from lightning_edge.testbed import DeviceSpec, PoolSpec, Testbed

    _, mbit, ratio = case.split("-")
    devices = tuple(
        DeviceSpec(f"device{i}", cpu=cpu / 100, link_mbit=float(mbit))
        for i, cpu in enumerate(CPUS[int(ratio)])
    )
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with Testbed(PoolSpec(devices)) as bed:
        command = [sys.executable, "-m", "benchmarks.sweep", "--worker", str(RESULTS)]
        bed.run(
            [*command, "--cases", case],
            timeout_s=limit_s,
            env={"OMP_NUM_THREADS": "1"},
            free_start=True,
            printer=lambda device, line: print(f"[{device}] {line}", flush=True),
        )


def by_case(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return, per case, seconds of a step by name; those not run as they were predicted."""
    found: dict[str, dict[str, float]] = {}
    for record in records:
        taken_s = record["step_s"] or record["predicted_s"]
        if taken_s is not None:
            found.setdefault(record["case"], {})[record["name"]] = taken_s
    for steps in found.values():
        steps[OURS] = statistics.mean(s for n, s in steps.items() if n in (OURS, AGAIN))
        steps.pop(AGAIN, None)
    return found


def show() -> None:
    """Print the table, and write it and the figure beside the results."""
    cases = by_case([json.loads(line) for line in RESULTS.read_text().splitlines()])
    names = list(RIVALS)
    lines = ["| case | ours, s | " + " | ".join(names) + " | the best of them |"]
    lines.append("|---|--:|" + "--:|" * (len(names) + 1))
    ratios = []
    for case, steps in sorted(cases.items()):
        others = {name: steps[name] / steps[OURS] for name in names if name in steps}
        ratios.append(min(others.values()))
        cells = [f"{others[name]:.2f}" if name in others else "-" for name in names]
        lines.append(
            f"| {case} | {steps[OURS]:.3f} | {' | '.join(cells)} | {min(others.values()):.3f} |"
        )
    lines.append(
        f"\nTheir steps over ours. {len(cases)} cases; the best of the others over ours: at least"
        f" {min(ratios):.3f}, {statistics.median(ratios):.3f} in the median, at most"
        f" {max(ratios):.3f}. What was predicted to take {HOPELESS:g} times as long was not run."
    )
    RESULTS.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    picture(cases, RESULTS.with_suffix(".svg"))


def picture(cases: dict[str, dict[str, float]], path: Path) -> None:
    """Draw everybody's step over ours, case by case."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.0, 0.7 * len(cases)), 4), layout="constrained")
    axes = figure.add_subplot()
    order = sorted(cases)
    for name in RIVALS:
        points = [
            (i, cases[case][name] / cases[case][OURS])
            for i, case in enumerate(order)
            if name in cases[case]
        ]
        axes.semilogy([x for x, _ in points], [y for _, y in points], "o", label=name)
    axes.axhline(1, color="black", lw=0.8)
    axes.set_xticks(range(len(order)), order, rotation=60, fontsize=7)
    axes.set_ylabel("their step / ours")
    axes.legend(fontsize=7)
    figure.savefig(path)


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    every = [f"{model}-{mbit}-{ratio}" for model in SIZES for mbit in MBIT for ratio in CPUS]
    parser.add_argument("--cases", nargs="+", choices=every, default=[])
    parser.add_argument("--limit-s", type=float, default=400.0, help="for each case")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.worker:
        work(parsed.worker, parsed.cases[0])
        return
    for case in parsed.cases:
        run(case, parsed.limit_s)
    if RESULTS.exists():
        show()


if __name__ == "__main__":
    main()
