"""What a run has left in its folder, as tables: predicted against measured, energy, results."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_edge.errors import EdgeError
from lightning_edge.plan.plan import Plan
from lightning_edge.plan.prediction import Prediction, seconds, size
from lightning_edge.plan.profile import Profile
from lightning_edge.plan.simulate import simulate

__all__: list[str] = []


@dataclass(frozen=True)
class Sheet:
    """A table to show.

    Attributes:
        title: What it is about.
        columns: Their titles.
        rows: Cells.
        note: A sentence below it.
        texts: Indices of columns with text; the others are numbers.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    texts: Sequence[int] = (0,)


def sheets(folder: Path) -> list[Sheet]:
    """All tables that the files of a run allow, in the order of reading."""
    found = [_results(folder), _plan(folder), compared(folder), devices(folder)]
    found += _energy(folder)
    return [sheet for sheet in found if sheet is not None and sheet.rows]


def read(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a run; empty if there is none."""
    file = folder / name
    return dict(json.loads(file.read_text())) if file.is_file() else {}


def prediction_of(folder: Path) -> Prediction | None:
    """What was to be expected of the run's plan; None if it was not planned with a profile."""
    plan, profile = folder / "plan.yaml", folder / "profile.yaml"
    rows = read(folder, "metrics.json").get("batch_rows")
    if not plan.is_file() or not profile.is_file() or not rows:
        return None
    try:
        return simulate(Plan.from_yaml(plan), Profile.from_yaml(profile), rows=int(rows))
    except EdgeError:
        return None


def _results(folder: Path) -> Sheet | None:
    metrics = read(folder, "metrics.json")
    rows = [[name, number(value)] for name, value in metrics.items() if "/" not in name]
    return Sheet("Results", ("", "value"), rows)


def _plan(folder: Path) -> Sheet | None:
    file = folder / "plan.yaml"
    if not file.is_file():
        return None
    plan = Plan.from_yaml(file)
    names = {
        d["rank"]: f"{d['rank']} {d['name']}"
        for d in read(folder, "report.json").get("devices", ())
    }
    rows = []
    for index, stage in enumerate(plan.stages):
        shares = [(names.get(d, d), 100 * float(share)) for d, share in stage.devices.items()]
        devices = ", ".join(f"{name} {share:.3g}%" for name, share in shares)
        start = stage.start or "(first module)"
        rows.append([str(index), start, devices, stage.parallelism, str(stage.in_flight)])
    columns = ("stage", "begins at", "devices", "parallelism", "in flight")
    note = f"{plan.micro_batches} micro-batches per batch"
    return Sheet("Plan", columns, rows, note, texts=(0, 1, 2, 3))


def devices(folder: Path) -> Sheet | None:
    """Where the time of a mean batch went."""
    rows = []
    for device in read(folder, "report.json").get("devices") or []:
        measured, stage = device["measured"], device["stage"]
        batches = measured["batches"]
        name = f"{device['rank']} {device['name']}"
        if stage is None or not batches:
            rows.append([name, "no work", *[""] * 5])
            continue
        spent = [
            seconds(measured[key] / batches)
            for key in ("compute_s", "communication_s", "wait_s", "total_s")
        ]
        rows.append([name, str(stage), *spent, size(device["peak_memory_bytes"])])
    columns = ("device", "stage", "compute", "comm.", "waiting", "in all", "memory")
    note = "per batch, measured; memory is the whole process', torch included"
    return Sheet("What each device did", columns, rows, note)


def compared(folder: Path) -> Sheet | None:
    """One step, predicted and measured."""
    show = {"s": seconds, "B": size, "J": _energy_of}
    rows = []
    for line in read(folder, "report.json").get("compared") or []:
        pair = [line["predicted"], line["measured"]]
        if pair == [None, None]:
            continue
        off = "" if line["off"] is None else f"{100 * line['off']:+.1f} %"
        if line["what"] in ("comm.", "waiting"):
            off = ""  # small parts of a step: their ratio says little
        cells = ["?" if value is None else show[line["unit"]](value) for value in pair]
        rows.append([line["device"] or "all", line["what"], *cells, off])
    columns = ("device", "what", "predicted", "measured", "off by")
    return Sheet("One step, predicted and measured", columns, rows, texts=(0, 1))


def _energy(folder: Path) -> list[Sheet]:
    stages = read(folder, "energy.json").get("stages") or {}
    file = folder / "energy.csv"
    if not stages or not file.is_file():
        return []
    with file.open(newline="") as lines:
        entries = list(csv.DictReader(lines))
    found = []
    for name, stage in stages.items():
        rows = [
            [
                f"{line['device']} {line['domain']}",
                _joules(line["energy_j"], line["uncertainty_j"]),
                _watts(line["mean_w"]),
                _watts(line["max_w"]),
                "ESTIMATE" if line["provenance"] == "model" else line["provenance"],
                "yes" if line["counted"] in ("True", "1", "yes", "true") else "no",
            ]
            for line in entries
            if line["stage"] == name
        ]
        columns = ("device, domain", "energy", "mean", "max", "how", "in total")
        found.append(Sheet(f"Energy: {name}", columns, rows, _total(stage), texts=(0, 4, 5)))
    return found


def _total(stage: Mapping[str, Any]) -> str:
    if stage["energy_j"] is None:
        return "total: not known; nothing here measures it"
    text = f"total {stage['energy_j']:.4g} J"
    if stage["uncertainty_j"]:
        text += f" +- {stage['uncertainty_j']:.2g} J"
    text += f", {stage['devices_measured']} of {stage['devices']} devices measured"
    if stage["joules_per_sample"]:
        text += f"; {stage['joules_per_sample']:.4g} J per sample"
    if stage["is_lower_bound"]:
        text += "; a lower bound, as some are silent"
    return text


def number(value: Any) -> str:
    """A number as one reads it."""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _energy_of(joules: float) -> str:
    return f"{joules:.3g} J"


def _joules(energy: str, uncertainty: str) -> str:
    if not energy:
        return "not measured"
    return f"{float(energy):.4g} J" + (f" +- {float(uncertainty):.2g}" if uncertainty else "")


def _watts(text: str) -> str:
    return f"{float(text):.3g} W" if text else "-"
