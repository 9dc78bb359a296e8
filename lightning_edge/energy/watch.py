"""``watch``: the power of every domain, live."""

from __future__ import annotations

import csv
import sys
import time

from rich.live import Live
from rich.table import Table

from lightning_edge.energy.meter import EnergyMeter
from lightning_edge.energy.report import EnergyReport
from lightning_edge.energy.table import LABELS, joules

__all__: list[str] = []


def watch(meter: EnergyMeter, seconds: float, every_s: float, *, as_csv: bool) -> None:
    """Show the running meter until `seconds` are over or Ctrl-C.

    Args:
        meter: A running meter.
        seconds: How long; infinity for ever.
        every_s: Time between two lines.
        as_csv: Print lines of comma-separated values instead of a table that renews itself.
    """
    try:
        if as_csv:
            _lines(meter, seconds, every_s)
        else:
            _table(meter, seconds, every_s)
    except KeyboardInterrupt:
        return


def _lines(meter: EnergyMeter, seconds: float, every_s: float) -> None:
    writer = csv.writer(sys.stdout)
    names = [domain.id for domain in meter.domains]
    writer.writerow(["t_s", *(f"{name}_w" for name in names), "total_w", "total_j"])
    begin_s = before_s = meter.read()
    while before_s - begin_s < seconds:
        time.sleep(every_s)
        now_s = meter.read()
        last, whole = meter.report(before_s, now_s), meter.report(begin_s, now_s)
        powers = [last.domains[name].power_w for name in names]
        row = [*powers, last.power_w, whole.energy_j]
        cells = ["" if value is None else f"{value:.6g}" for value in row]
        writer.writerow([f"{now_s - begin_s:.3f}", *cells])
        sys.stdout.flush()
        before_s = now_s


def _table(meter: EnergyMeter, seconds: float, every_s: float) -> None:
    begin_s = before_s = meter.read()
    with Live(auto_refresh=False) as live:
        while before_s - begin_s < seconds:
            time.sleep(every_s)
            now_s = meter.read()
            last, whole = meter.report(before_s, now_s), meter.report(begin_s, now_s)
            live.update(_draw(last, whole), refresh=True)
            before_s = now_s


def _draw(last: EnergyReport, whole: EnergyReport) -> Table:
    table = Table(title=f"{whole.duration_s:.0f} s", title_justify="left")
    for name in ("domain", "now", "mean", "energy", "how"):
        table.add_column(name, justify="left" if name in ("domain", "how") else "right")
    for key, entry in whole.domains.items():
        now_w = last.domains[key].power_w
        table.add_row(
            entry.domain.name,
            "-" if now_w is None else f"{now_w:.3g} W",
            "-" if entry.power_w is None else f"{entry.power_w:.3g} W",
            joules(entry.energy_j),
            LABELS[entry.domain.provenance],
            style=None if entry.counted_j is not None else "dim",
        )
    table.add_section()
    table.add_row(
        "total",
        "-" if last.power_w is None else f"{last.power_w:.3g} W",
        "-" if whole.power_w is None else f"{whole.power_w:.3g} W",
        joules(whole.energy_j, whole.uncertainty_j),
        "",
    )
    return table
