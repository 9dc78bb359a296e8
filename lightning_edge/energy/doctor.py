"""What this machine can tell, what it cannot, why, the remedy, a reading."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict
from typing import Any

from rich.table import Table

from lightning_edge.energy.host import HostEnv
from lightning_edge.energy.meter import EnergyMeter
from lightning_edge.energy.power_modes import current_mode, listed_modes
from lightning_edge.energy.report import EnergyReport
from lightning_edge.energy.select import Choice, Wanted
from lightning_edge.energy.table import LABELS, choices_table, render
from lightning_edge.energy.telemetry import battery_pct, temperature_c

__all__: list[str] = []

MEASURED = "This machine's energy is measured."


def examine(host: HostEnv, sources: str | list[Wanted], seconds: float) -> dict[str, Any]:
    """Probe, measure for `seconds`, and return all that is to be said, as plain values."""
    with EnergyMeter(sources, host=host) as meter:
        window = meter.window("doctor")
        time.sleep(seconds)
        report = window.close()
        modes = listed_modes(host)
        return {
            "machine": {
                "board": host.board,
                "jetson": host.is_tegra,
                "architecture": host.machine,
                "kernel": platform.release(),
                "python": platform.python_version(),
            },
            "choices": [asdict(choice) for choice in meter.choices],
            "report": report.to_mapping(),
            "temperature_c": temperature_c(host, meter.aux),
            "battery_pct": battery_pct(host),
            "power_mode": current_mode(host),
            "power_modes": list(modes.values()),
            "cost": {
                feed.source.kind: {"cpu_s_per_read": feed.cost_s, "period_s": feed.interval_s}
                for feed in meter.feeds
            },
            "verdict": verdict(report),
        }


def verdict(report: EnergyReport) -> str:
    """One sentence for the user."""
    fraction = report.measured_fraction
    if fraction is None:
        return "Nothing can be read here, not even an estimate."
    if fraction == 1.0:
        return MEASURED
    if fraction > 0.0:
        return "A part of this machine's energy is measured, the rest is an estimate."
    return "This machine's energy is an ESTIMATE: nothing is measured here."


def text(found: dict[str, Any], width: int) -> str:
    """The findings for people."""
    machine = found["machine"]
    report = EnergyReport.from_mapping(found["report"])
    lines = [
        f"{machine['board'] or machine['architecture']}, Linux {machine['kernel']}, "
        f"Python {machine['python']}\n",
        choices_table([Choice(**choice) for choice in found["choices"]], width),
        domains_table(report, width),
        _total(report),
    ]
    for kind, cost in found["cost"].items():
        share = cost["cpu_s_per_read"] / cost["period_s"]
        lines.append(
            f"{kind}: {1e6 * cost['cpu_s_per_read']:.0f} us per reading, one every "
            f"{1e3 * cost['period_s']:.0f} ms: {share:.3%} of a core\n"
        )
    if found["temperature_c"] is not None:
        lines.append(f"hottest sensor {found['temperature_c']:.0f} C\n")
    if found["battery_pct"] is not None:
        lines.append(f"battery {found['battery_pct']:.0f} %\n")
    if found["power_modes"]:
        mode = found["power_mode"] or "unknown"
        lines.append(f"power mode {mode} of {', '.join(found['power_modes'])}\n")
    lines += [f"note: {note}\n" for note in report.notes]
    return "".join(lines) + str(found["verdict"]) + "\n"


def domains_table(report: EnergyReport, width: int) -> str:
    """Every domain with its power, its provenance, and whether it counts in the total."""
    table = Table(title=f"read for {report.duration_s:.1f} s", title_justify="left")
    for name in ("domain", "scope", "mean", "max", "covered", "how", "in total"):
        table.add_column(name, justify="right" if name in ("mean", "max", "covered") else "left")
    for entry in report.domains.values():
        domain = entry.domain
        table.add_row(
            domain.name,
            domain.scope.value,
            _watts(entry.power_w),
            _watts(entry.max_power_w),
            f"{100 * entry.covered_s / report.duration_s:.0f} %",
            LABELS[domain.provenance],
            "yes" if entry.counted_j is not None else "no",
        )
    return render(table, width)


def _total(report: EnergyReport) -> str:
    if report.energy_j is None:
        return "total unknown\n"
    sure_w = (report.uncertainty_j or 0.0) / report.duration_s
    return f"total {_watts(report.power_w)} +- {sure_w:.2g} W\n"


def _watts(power_w: float | None) -> str:
    return "-" if power_w is None else f"{power_w:.3g} W"


def as_json(found: dict[str, Any]) -> str:
    """The findings for programs."""
    return json.dumps(found, indent=1)
