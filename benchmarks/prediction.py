"""How well steps are predicted: many plans on testbeds of unequal devices, predicted and measured.

    python -m benchmarks.prediction --testbed wired          # root; some minutes, an idle machine
    python -m benchmarks.prediction --testbed wired --part 2/3       # every third plan of them
    python -m benchmarks.prediction --show                   # the table and the picture again

The devices profile themselves once; then every plan is trained in the same processes, and its
report holds the prediction against what was measured. Results are added line by line to
`benchmarks/results/prediction.jsonl` as they come, where the last one of a plan counts; a table and
a picture of all stand beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "prediction.jsonl"
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


def part_of(text: str) -> tuple[int, int]:
    """Read "2/3" as the second of three parts."""
    part, of = (int(number) for number in text.split("/"))
    if not 1 <= part <= of:
        raise ValueError(text)
    return part, of


def work(out: Path, part: tuple[int, int], testbed: str) -> None:
    """On every device: profile once, train the plans, and write what their reports say."""
    import lightning as L
    import torch

    import lightning_edge
    from benchmarks import models
    from lightning_edge.callbacks.edge_profiler import EdgeProfiler

    torch.set_num_threads(1)
    loader = models.loader(models.text(ROWS), BATCHES)
    profile: Any = "measure"
    mine = list(plans().items())[part[0] - 1 :: part[1]]
    for number, (name, plan) in enumerate([("profile", "auto"), *mine]):
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
        if trainer.global_rank == 0:
            print(name, report.step_s, (report.predicted or {}).get("step_s"), flush=True)
            record = {"testbed": testbed, "plan": name, "mapping": plan, **report.to_dict()}
            if number == 0:
                record["profile"] = profile.to_mapping()
            with out.open("a") as file:
                file.write(json.dumps(record, default=str) + "\n")
        strategy.disconnect()


def run(name: str, seconds: float, part: str) -> None:
    """Run plans on a testbed; its processes write the results."""
    from lightning_edge.testbed import DeviceSpec, PoolSpec, Testbed

    setting = TESTBEDS[name]
    devices = tuple(DeviceSpec.parse(text) for text in setting["devices"])
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with Testbed(PoolSpec(devices, medium_mbit=setting["medium_mbit"])) as bed:
        command = [sys.executable, "-m", "benchmarks.prediction", "--worker", str(RESULTS)]
        bed.run(
            [*command, "--testbed", name, "--part", part],
            timeout_s=seconds,
            env={"OMP_NUM_THREADS": "1"},
            free_start=True,
            printer=lambda device, line: print(f"[{device}] {line}", flush=True),
        )


def rows_of(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per plan and testbed: step and memory, predicted and measured."""
    found = {}
    for record in records:
        if record["plan"] == "profile" or record["step_s"] is None:
            continue
        found[record["testbed"], record["plan"]] = {
            "testbed": record["testbed"],
            "plan": record["plan"],
            "predicted_s": record["predicted"]["step_s"],
            "measured_s": record["step_s"],
            "off": record["predicted"]["step_s"] / record["step_s"] - 1,
            "memory": [
                (line["predicted"], line["measured"], line["off"])
                for line in record["compared"]
                if line["what"] == "memory" and line["off"] is not None
            ],
        }
    return list(found.values())


def show() -> None:
    """Print the table, and write it and the picture beside the results."""
    rows = rows_of([json.loads(line) for line in RESULTS.read_text().splitlines()])
    lines = [
        "| testbed | plan | predicted | measured | off | MB of each device, predicted (off) |",
        "|---|---|--:|--:|--:|---|",
    ]
    for row in rows:
        memory = ", ".join(f"{p / 1e6:.0f} ({100 * off:+.0f} %)" for p, _, off in row["memory"])
        lines.append(
            f"| {row['testbed']} | {row['plan']} | {row['predicted_s']:.3f} s"
            f" | {row['measured_s']:.3f} s | {100 * row['off']:+.1f} % | {memory} |"
        )
    steps = [abs(row["off"]) for row in rows]
    bytes_ = [abs(off) for row in rows for *_, off in row["memory"]]
    lines.append(f"\n{len(rows)} plans: steps {spread(steps)}; memory {spread(bytes_)}")
    RESULTS.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    picture(rows, RESULTS.with_suffix(".svg"))


def spread(errors: Sequence[float]) -> str:
    """Say how large errors are."""
    ranked = sorted(errors)
    late = ranked[min(len(ranked) - 1, int(0.95 * len(ranked)))]
    return (
        f"off by {100 * statistics.median(ranked):.1f} % in the median,"
        f" 95th percentile {100 * late:.1f} %, at worst {100 * ranked[-1]:.1f} %"
    )


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
    parser.add_argument("--seconds", type=float, default=600.0, help="at most")
    parser.add_argument("--part", default="1/1", help="2/3: the second third of the plans")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.worker:
        work(parsed.worker, part_of(parsed.part), parsed.testbed)
        return
    if parsed.testbed:
        run(parsed.testbed, parsed.seconds, parsed.part)
    if RESULTS.exists():
        show()


if __name__ == "__main__":
    main()
