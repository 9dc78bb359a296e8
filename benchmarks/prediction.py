"""How well steps are predicted: many plans on testbeds of unequal devices, predicted and measured.

    python -m benchmarks.prediction --testbed wired          # root; some minutes, an idle machine
    python -m benchmarks.prediction --show                   # the table and the picture again

The devices profile themselves once; then every plan is trained in the same processes, and its
report holds the prediction against what was measured. Results of all testbeds stand in
`benchmarks/results/prediction.json`, with a table and a picture beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "prediction.json"
ROWS, BLOCKS, BATCHES, EPOCHS = 16, 6, 7, 2

TESTBEDS: dict[str, dict[str, Any]] = {
    "wired": {
        "devices": ["name=a,cpu=80%,link=200mbit", "name=b,cpu=40%,link=100mbit",
                    "name=c,cpu=25%,link=50mbit"],
        "medium_mbit": None,
    },
    "radio": {
        "devices": ["name=a,cpu=70%,link=300mbit", "name=b,cpu=45%,link=300mbit",
                    "name=c,cpu=30%,link=300mbit"],
        "medium_mbit": 60.0,
    },
}  # fmt: skip


def plans() -> dict[str, dict[str, Any]]:
    """Plans of every kind for three devices, by name."""
    found: dict[str, dict[str, Any]] = {
        "a alone, 4": _plan([{0: 1}], [], 4),
        "b alone, 2": _plan([{1: 1}], [], 2),
        "data a b 2:1, 2": _plan([{0: 0.67, 1: 0.33}], [], 2),
        "data a b c, 1": _plan([{0: 0.55, 1: 0.28, 2: 0.17}], [], 1),
        "a>b at 4, 4": _plan([{0: 1}, {1: 1}], [4], 4),
        "a>b at 5, 8": _plan([{0: 1}, {1: 1}], [5], 8),
        "b>a at 3, 4": _plan([{1: 1}, {0: 1}], [3], 4),
        "b>a at 2, 8, deep": _plan([{1: 1}, {0: 1}], [2], 8, [5, 1]),
        "c>a at 1, 4": _plan([{2: 1}, {0: 1}], [1], 4),
        "a>b>c at 4 6, 4": _plan([{0: 1}, {1: 1}, {2: 1}], [4, 6], 4),
        "c>b>a at 1 3, 8": _plan([{2: 1}, {1: 1}, {0: 1}], [1, 3], 8),
        "b+c>a at 2, 4": _plan([{1: 0.62, 2: 0.38}, {0: 1}], [2], 4),
        "a>b+c at 4, 4": _plan([{0: 1}, {1: 0.62, 2: 0.38}], [4], 4),
        "a+b>c at 6, 8": _plan([{0: 0.67, 1: 0.33}, {2: 1}], [6], 8),
    }
    return found


def _plan(
    stages: Sequence[dict[int, float]],
    starts: Sequence[int],
    micro_batches: int,
    in_flight: Sequence[int] = (),
) -> dict[str, Any]:
    listed: list[dict[str, Any]] = [{"devices": dict(devices)} for devices in stages]
    for stage, start in zip(listed[1:], starts, strict=True):
        stage["start"] = f"model.{start}"
    for stage, depth in zip(listed, in_flight, strict=False):
        stage["in_flight"] = depth
    return {"pipelines": [{"stages": listed}], "micro_batches": micro_batches}


def work(out: Path, seconds: float) -> None:
    """On every device: profile once, train every plan, and write what the reports say."""
    import lightning as L
    import torch

    import lightning_edge
    from benchmarks import models
    from lightning_edge.callbacks.edge_profiler import EdgeProfiler

    torch.set_num_threads(1)
    begun = time.monotonic()
    loader = models.loader(models.text(ROWS), BATCHES)
    profile: Any = "measure"
    records = []
    for number, (name, plan) in enumerate([("profile", "auto"), *plans().items()]):
        if time.monotonic() - begun > seconds:
            break
        strategy = lightning_edge.EdgeCollabStrategy(plan, profile=profile, replan=False)  # type: ignore[arg-type]
        trainer = L.Trainer(
            accelerator="cpu",
            strategy=strategy,
            max_epochs=EPOCHS,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[EdgeProfiler(seconds=12.0)] if number == 0 else [],
        )
        trainer.fit(models.Task(models.build("gpt", BLOCKS)), loader)
        if number == 0:
            profile = strategy.profile
        report = strategy.report()
        records.append({"plan": name, "mapping": plan, **report.to_dict()})
        if trainer.global_rank == 0:
            print(name, report.step_s, (report.predicted or {}).get("step_s"), flush=True)
            text = {"profile": profile.to_mapping(), "records": records}
            out.write_text(json.dumps(text, default=str))
        strategy.disconnect()


def run(name: str, seconds: float) -> None:
    """Run all plans on a testbed and keep the results."""
    from lightning_edge.testbed import DeviceSpec, PoolSpec, Testbed

    setting = TESTBEDS[name]
    devices = tuple(DeviceSpec.parse(text) for text in setting["devices"])
    with (
        tempfile.TemporaryDirectory() as folder,
        Testbed(PoolSpec(devices, medium_mbit=setting["medium_mbit"])) as bed,
    ):
        out = Path(folder) / "records.json"
        command = [sys.executable, "-m", "benchmarks.prediction", "--worker", str(out)]
        result = bed.run(
            [*command, "--seconds", str(seconds)],
            timeout_s=seconds + 120,
            env={"OMP_NUM_THREADS": "1"},
            free_start=True,
            printer=lambda device, line: print(f"[{device}] {line}", flush=True),
        )
        found = json.loads(out.read_text())
    content = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    content[name] = {"testbed": setting, **found, "ended_well": result.ok}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


def rows_of(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row per plan and testbed: step and fullest device, predicted and measured."""
    found = []
    for name, one in content.items():
        for record in one["records"]:
            if record["plan"] == "profile" or record["step_s"] is None:
                continue
            memory = [
                line["off"]
                for line in record["compared"]
                if line["what"] == "memory" and line["off"] is not None
            ]
            found.append(
                {
                    "testbed": name,
                    "plan": record["plan"],
                    "predicted_s": record["predicted"]["step_s"],
                    "measured_s": record["step_s"],
                    "off": record["predicted"]["step_s"] / record["step_s"] - 1,
                    "memory_off": max(memory, key=abs) if memory else None,
                }
            )
    return found


def show() -> None:
    """Print the table, and write it and the picture beside the results."""
    rows = rows_of(json.loads(RESULTS.read_text()))
    lines = [
        "| testbed | plan | predicted | measured | off | memory off |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        memory = "" if row["memory_off"] is None else f"{100 * row['memory_off']:+.0f} %"
        lines.append(
            f"| {row['testbed']} | {row['plan']} | {row['predicted_s']:.3f} s"
            f" | {row['measured_s']:.3f} s | {100 * row['off']:+.1f} % | {memory} |"
        )
    errors = sorted(abs(row["off"]) for row in rows)
    late = errors[min(len(errors) - 1, int(0.95 * len(errors)))]
    lines.append(
        f"\n{len(rows)} plans: median error {100 * statistics.median(errors):.1f} %,"
        f" 95th percentile {100 * late:.1f} %"
    )
    RESULTS.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    picture(rows, RESULTS.with_suffix(".svg"))


def picture(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw measured over predicted seconds, with lines 5 and 10 % off."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.add_subplot()
    most = 1.1 * max(row["measured_s"] for row in rows)
    for off, style in ((0.0, "-"), (0.05, "--"), (-0.05, "--"), (0.1, ":"), (-0.1, ":")):
        axes.plot([0, most], [0, most * (1 + off)], style, color="grey", linewidth=0.8)
    for name in dict.fromkeys(row["testbed"] for row in rows):
        own = [row for row in rows if row["testbed"] == name]
        predicted = [row["predicted_s"] for row in own]
        axes.plot(predicted, [row["measured_s"] for row in own], "o", label=name)
    axes.set(xlabel="predicted step, s", ylabel="measured step, s", xlim=(0, most), ylim=(0, most))
    axes.legend(title="testbed; lines: 5 % and 10 % off")
    figure.savefig(path)


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--testbed", choices=[*TESTBEDS])
    parser.add_argument("--seconds", type=float, default=200.0, help="of training plans")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.worker:
        work(parsed.worker, parsed.seconds)
        return
    if parsed.testbed:
        run(parsed.testbed, parsed.seconds)
    if RESULTS.exists():
        show()


if __name__ == "__main__":
    main()
