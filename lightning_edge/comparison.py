"""A step as it was predicted beside the step as it was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table

__all__: list[str] = []


@dataclass(frozen=True)
class Line:
    """One number of a step, predicted and measured.

    Attributes:
        device: Rank and name; None for the whole step.
        what: Which number.
        unit: "s", "B" or "J".
        predicted: None if it was not.
        measured: None if it was not.
    """

    device: str | None
    what: str
    unit: str
    predicted: float | None
    measured: float | None

    @property
    def off(self) -> float | None:
        """How far the prediction is from what was measured: 0.05 is 5 % too much."""
        if self.predicted is None or not self.measured:
            return None
        return self.predicted / self.measured - 1


def compare(
    predicted: Mapping[str, Any], step_s: float | None, devices: Sequence[Mapping[str, Any]]
) -> list[Line]:
    """Put a prediction beside the measured parts of all devices.

    Args:
        predicted: `Prediction.to_dict()`.
        step_s: Measured seconds of a step.
        devices: Of those with work: rank, name, and per step `compute_s`, `communication_s`,
            `waiting_s`, `sent_bytes`, `peak_bytes`, `energy_j`, None where nobody knows.
    """
    lines = [Line(None, "step", "s", predicted["step_s"], step_s)]
    joules = [device["energy_j"] for device in devices]
    total_j = None if None in joules or not joules else sum(joules)
    lines.append(Line(None, "energy", "J", predicted["energy_j"], total_j))
    for device in devices:
        expected = predicted["devices"].get(str(device["rank"]))
        if expected is None:
            continue
        title = f"{device['rank']} {device['name']}"
        sent = sum(expected["bytes_sent"].values())
        lines += [
            Line(title, "compute", "s", expected["compute_s"], device["compute_s"]),
            Line(title, "comm.", "s", expected["communication_s"], device["communication_s"]),
            Line(title, "waiting", "s", expected["waiting_s"], device["waiting_s"]),
            Line(title, "sent", "B", sent, device["sent_bytes"]),
            Line(title, "memory", "B", expected["peak_bytes"], device["peak_bytes"]),
            Line(title, "energy", "J", expected["energy_j"], device["energy_j"]),
        ]
    return lines


def shown(lines: Sequence[Line], width: int = 120) -> str:
    """Return the lines as a table."""
    table = Table(title="One step, predicted and measured", title_justify="left")
    table.add_column("device", no_wrap=True)
    table.add_column("what")
    for name in ("predicted", "measured", "off by"):
        table.add_column(name, justify="right")
    device: str | None = ""
    for line in lines:
        if line.predicted is None and line.measured is None:
            continue
        title = line.device or "all"
        off = "" if line.off is None else f"{100 * line.off:+.1f} %"
        if line.what in ("comm.", "waiting"):
            off = ""  # small parts of a step: their ratio says little
        table.add_row(
            title if title != device else "",
            line.what,
            _number(line.predicted, line.unit),
            _number(line.measured, line.unit),
            off,
        )
        device = title
    out = StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue()


def plain(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Return the lines as plain types, for JSON."""
    return [
        {
            "device": line.device,
            "what": line.what,
            "unit": line.unit,
            "predicted": line.predicted,
            "measured": line.measured,
            "off": line.off,
        }
        for line in lines
    ]


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "?"
    if unit == "s":
        return f"{value:.3f} s" if value >= 1 else f"{value * 1e3:.1f} ms"
    return f"{value / 1e6:.2f} MB" if unit == "B" else f"{value:.3g} J"
