"""A profile as tables that one wants to read, in plain text."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_edge.plan.participants import Device, Known, Link, PowerMode
    from lightning_edge.plan.profile import Profile
    from lightning_edge.plan.workload import Block

__all__: list[str] = []

_MARKS = {"measured": "", "prior": "*", "declared": "'"}
_LEGEND = "no mark: measured; * a prior, as from the table of known boards; ' declared"


def tables(profile: Profile, width: int = 120) -> str:
    """Return a profile as text without colours: devices, blocks, links.

    Equal neighbours share a line. A mark behind a number says where it comes from.
    """
    model = profile.model
    parts = [f"{len(profile.devices)} devices, {model.name} of {len(model.blocks)} blocks"]
    if profile.software:
        parts.append(", ".join(f"{key} {value}" for key, value in profile.software.items()))
    if model.least_rows > 1:
        parts.append(f"at least {model.least_rows} rows of a micro-batch on a device")
    head = "; ".join(parts)
    devices = grid(
        ("device", "kind", "memory", "mode", "speed", "idle W", "compute W", "comm. W"),
        [cells for device in profile.devices for cells in _device(device)],
        width,
    )
    keys = list(dict.fromkeys(key for block in model.blocks for key in block.timings))
    shown = keys[:4]
    more = f"\nand timings of {', '.join(keys[4:])}" if keys[4:] else ""
    blocks = grid(
        ("block", "parameters", "per row: kept", "crosses", *(f"{key} ms" for key in shown)),
        _merged([_block(block, i == 0, shown) for i, block in enumerate(model.blocks)]),
        width,
    )
    tables = [head, devices + _holes(profile.devices), blocks + more]
    if profile.links:
        tables.append(_links(profile.links, width))
    return "\n\n".join([*tables, f"timings: forward/backward at a number of rows; {_LEGEND}"])


def grid(titles: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
    """Return a table in Markdown."""
    # Imported here: rich is needed only where somebody reads.
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.MARKDOWN)
    for title in titles:
        table.add_column(title, overflow="fold")
    for cells in rows:
        table.add_row(*(Text(cell) for cell in cells))
    page = io.StringIO()
    Console(file=page, width=max(width, 60), color_system=None, force_terminal=False).print(table)
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines() if line.strip())


def amount(size: float) -> str:
    """Write bytes as people say them: 1.3 GB, in powers of 1000."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(size) >= scale:
            number = f"{size / scale:.3g}" if abs(size) < 999 * scale else f"{size / scale:.0f}"
            return f"{number} {unit}"
    return f"{size:.0f} B"


def _device(device: Device) -> list[list[str]]:
    rows: list[list[str]] = []
    for mode in device.modes:
        first = not rows
        memory = "unknown"
        if device.memory_bytes is not None:
            memory = amount(device.memory_bytes) + _mark(device, "memory_bytes")
        current = " (now)" if mode.name == device.mode and len(device.modes) > 1 else ""
        speed = f"{mode.speed:.3g}" + _mark(mode, "speed")
        if mode.timing:
            speed = f"see {mode.timing}"
        watts = [_watts(mode, name) for name in ("idle_w", "compute_w", "communication_w")]
        head = [device.name, device.kind, memory] if first else ["", "", ""]
        rows.append([*head, mode.name + current, speed, *watts])
    return rows


def _holes(devices: Sequence[Device]) -> str:
    """Say what devices take besides tensors, those alike together."""
    alike: dict[str, list[str]] = {}
    for device in devices:
        if device.holes_bytes or device.holes_ratio:
            fixed = amount(device.holes_bytes) + _mark(device, "holes_bytes")
            more = f"{device.holes_ratio:.2g}" + _mark(device, "holes_ratio")
            alike.setdefault(f"{fixed} + {more} x what a micro-batch keeps", []).append(device.name)
    return "".join(
        f"\nmemory besides tensors on {', '.join(names)}: {text}" for text, names in alike.items()
    )


def _watts(mode: PowerMode, name: str) -> str:
    value = getattr(mode, name)
    return "unknown" if value is None else f"{value:.3g}" + _mark(mode, name)


def _mark(known: Known, name: str) -> str:
    return _MARKS[known.provenance_of(name)]


def _block(block: Block, first: bool, keys: Sequence[str]) -> list[str]:
    cells = [block.name, amount(block.parameter_bytes) + _mark(block, "parameter_bytes")]
    cells.append(amount(block.activation_bytes) + _mark(block, "activation_bytes"))
    crosses = amount(block.forward_bytes) + _mark(block, "forward_bytes")
    cells.append(crosses if block.cut and not first else "-")
    for key in keys:
        timing = block.timings.get(key)
        if timing is None:
            cells.append("unknown")
            continue
        times = f"{1e3 * timing.forward_s[-1]:.3g}/{1e3 * timing.backward_s[-1]:.3g}"
        cells.append(f"{times} at {timing.rows[-1]}" + _mark(timing, "forward_s"))
    return cells


def _merged(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Put neighbours that differ in their first cell only into one line."""
    groups: list[tuple[list[str], list[str]]] = []
    for first, *rest in rows:
        if groups and groups[-1][1] == rest:
            groups[-1][0].append(first)
        else:
            groups.append(([first], rest))
    return [
        [names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]} ({len(names)})", *rest]
        for names, rest in groups
    ]


def _links(links: Sequence[Link], width: int) -> str:
    """Show equal links in one line."""
    by_cost: dict[tuple[str, ...], list[Link]] = {}
    for link in links:
        cost: tuple[str, ...] = (
            f"{link.mbit_per_s:.4g}" + _mark(link, "seconds_per_byte"),
            f"{1e3 * link.latency_s:.3g}" + _mark(link, "latency_s"),
            ", ".join(link.media),
        )
        by_cost.setdefault(cost, []).append(link)
    rows: list[list[str]] = []
    for cost, alike in by_cost.items():
        pairs = {(link.source, link.target) for link in alike}
        words = []
        for source, target in sorted(pairs):
            if (target, source) not in pairs:
                words.append(f"{source} -> {target}")
            elif source < target:
                words.append(f"{source} - {target}")
        text = ", ".join(words[:6]) + (f", ... ({len(words)} pairs)" if len(words) > 6 else "")
        rows.append(["all" if len(by_cost) == 1 and len(words) > 3 else text, *cost])
    return grid(("link", "Mbit/s", "latency ms", "shared"), rows, width)
