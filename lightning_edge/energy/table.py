"""The account of a run as a table for people."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_edge.energy.budget import JOULES_PER_KWH, carbon_g
from lightning_edge.energy.domain import Provenance
from lightning_edge.energy.export import per
from lightning_edge.energy.pool import PoolReport, RankAccount
from lightning_edge.energy.select import Choice

LABELS: Mapping[Provenance, str] = {
    Provenance.COUNTER: "measured (counter)",
    Provenance.SAMPLED: "measured (sampled)",
    Provenance.BATTERY: "measured (battery)",
    Provenance.EXTERNAL: "measured (external)",
    Provenance.MODEL: "ESTIMATE",
    Provenance.EMULATED: "EMULATED",
}


def joules(value: float | None, sure: float | None = None) -> str:
    """Joules for people: ``1.23 kJ +- 5 %``; "not measured" for None."""
    if value is None:
        return "not measured"
    for factor, unit in ((1e6, "MJ"), (1e3, "kJ"), (1.0, "J")):
        if value >= factor or unit == "J":
            text = f"{value / factor:.4g} {unit}"
            break
    return text + (f" +- {100 * sure / value:.0f} %" if sure is not None and value > 0 else "")


def summary(
    stages: Mapping[str, PoolReport], *, carbon_g_per_kwh: float | None = None, width: int = 100
) -> str:
    """The closing account of a run."""
    blocks = []
    for stage, pool in stages.items():
        table = Table(title=f"Energy: {stage}", title_justify="left")
        for name, right in (
            ("device", False), ("energy", True), ("mean", True), ("max", True),
            ("covered", True), ("how", False),
        ):  # fmt: skip
            table.add_column(name, justify="right" if right else "left")
        names = pool.device_names()
        for account in pool.accounts:
            table.add_row(*_row(pool, account, names[account.rank]))
        blocks.append(render(table, width) + _total(pool, carbon_g_per_kwh))
    return "\n".join(blocks)


def _row(pool: PoolReport, account: RankAccount, name: str) -> tuple[str, ...]:
    report = account.report
    own_j = pool.device_energy_j(account.rank)
    kinds = " + ".join(LABELS[kind] for kind in report.by_provenance) or "-"
    other = pool.counted_with(account.rank)
    if other is not None:
        kinds = f"counted with {other}, the same machine"
    if account.rank in pool.silent:
        kinds += "; last heard before it left"
    peak = [e.max_power_w for e in report.counted if e.max_power_w is not None]
    mean_w = "-" if report.power_w is None else f"{report.power_w:.3g} W"
    return (
        name,
        joules(own_j, report.uncertainty_j)
        if own_j is not None or report.energy_j is None
        else "-",
        mean_w,
        f"{sum(peak):.3g} W" if peak else "-",
        f"{100 * report.coverage:.0f} %",
        kinds,
    )


def _total(pool: PoolReport, carbon_g_per_kwh: float | None) -> str:
    total_j = pool.energy_j
    bound = "at least " if pool.is_lower_bound else ""
    lines = [
        f"total {bound}{joules(total_j, pool.uncertainty_j)}"
        f" = {joules(pool.measured_j)} measured + {joules(pool.estimated_j)} estimated"
        f"; {pool.devices_measured} of {len(pool.accounts)} devices measured"
        if total_j is not None
        else f"nothing was measured on any of {len(pool.accounts)} devices"
    ]
    rates = []
    for what, count in (("sample", pool.samples), ("token", pool.tokens)):
        each = per(total_j, count)
        if each is not None:
            rates.append(f"{each:.4g} J per {what}")
    if carbon_g_per_kwh is not None and total_j is not None:
        grams = carbon_g(total_j, carbon_g_per_kwh)
        rates.append(f"{grams:.3g} g CO2e at {carbon_g_per_kwh:g} g/kWh")
    if total_j is not None:
        rates.append(f"{total_j / JOULES_PER_KWH:.3g} kWh")
    if rates:
        lines.append(", ".join(rates))
    whole = pool.phase_j()
    names = pool.device_names()
    told = [a for a in pool.accounts if a.phase_note and pool.owned[a.rank]]
    if whole:
        lines.append(f"phases: {_phases(whole)}")
    elif not any(account.phase_j for account in told):
        notes = sorted({account.phase_note for account in told})
        lines += [f"phases: not separable: {note}" for note in notes]
    else:
        lines += [
            f"phases of {names[a.rank]}: "
            + (_phases(a.phase_j) if a.phase_j else f"not separable: {a.phase_note}")
            for a in told
        ]
    for earlier in pool.earlier:
        lines.append(f"of this, {joules(earlier.energy_j)} before the run was resumed")
    for note in dict.fromkeys(note for a in pool.accounts for note in a.report.notes):
        lines.append(f"note: {note}")
    return "\n".join(lines) + "\n"


def _phases(phase_j: Mapping[str, float]) -> str:
    whole_j = sum(phase_j.values())
    return ", ".join(f"{k} {joules(v)} ({v / whole_j:.0%})" for k, v in phase_j.items())


def choices_table(choices: Sequence[Choice], width: int = 100) -> str:
    """Which sources are used and which are not, why, and the remedy."""
    table = Table(show_lines=False)
    for name in ("source", "used", "why", "remedy"):
        table.add_column(name, overflow="fold")
    for choice in choices:
        mark = Text("yes", "green") if choice.used else Text("no", "dim")
        table.add_row(choice.kind, mark, choice.reason, choice.remedy)
    return render(table, width)


def render(table: Table, width: int) -> str:
    """A table as plain text."""
    out = io.StringIO()
    Console(file=out, width=width, no_color=True, highlight=False).print(table)
    return out.getvalue()
