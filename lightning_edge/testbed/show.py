"""Tables for people: what was built, what it did, which boards are known."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from lightning_edge.testbed.boards import Board
from lightning_edge.testbed.resolve import Device, Pool
from lightning_edge.testbed.result import RunResult
from lightning_edge.testbed.units import show_bytes

__all__: list[str] = []


def pool_table(pool: Pool) -> Table:
    """Return one row per device: what it is allowed."""
    table = _table("device", "board", right=("CPU", "memory", "link", "W emul."))
    for device in pool.devices:
        table.add_row(
            device.name,
            device.board or "-",
            "all" if device.cores is None else f"{device.cores:.1%}",
            "all" if device.memory_bytes is None else show_bytes(device.memory_bytes),
            _link(device),
            "-" if device.power is None else f"{device.power.idle_w:g}-{device.power.busy_w:g}",
        )
    return table


def result_table(result: RunResult) -> Table:
    """Return one row per device: what it did."""
    right = ("s", "CPU s", "sent MB", "recv MB", "peak MB", "J emul.", "step s")
    table = _table("device", "outcome", right=right)
    for name, device in result.devices.items():
        table.add_row(
            name,
            device.outcome,
            f"{device.seconds:.1f}",
            f"{device.cpu_s:.1f}",
            f"{device.sent_bytes / 1e6:.1f}",
            f"{device.received_bytes / 1e6:.1f}",
            f"{device.memory_peak_bytes / 1e6:.0f}",
            "-" if device.energy_j is None else f"{device.energy_j:.1f}",
            "-" if device.step_s is None else f"{device.step_s:.3f}",
        )
    return table


def boards_table(boards: Sequence[Board]) -> Table:
    """Return one row per board and power mode."""
    table = _table("board", right=("GFLOP/s", "memory", "idle W", "busy W"))
    table.add_column("watts are")
    for board in boards:
        table.add_row(
            board.title + (" *" if board.default and board.mode else ""),
            f"{board.gflops:.0f}",
            show_bytes(board.memory_bytes),
            f"{board.curve.idle_w:g}",
            f"{board.curve.busy_w:g}",
            board.quality,
        )
    return table


def _table(*left: str, right: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1), pad_edge=False)
    for heading in left:
        table.add_column(heading, no_wrap=True)
    for heading in right:
        table.add_column(heading, justify="right")
    return table


def _link(device: Device) -> str:
    rate = "not limited" if device.link_mbit is None else f"{device.link_mbit:.3g} Mbit/s"
    if device.trace is not None:
        rate = f"{device.trace.name} (mean {device.trace.mean_mbit:.0f} Mbit/s)"
    delay = f", +{device.latency_s * 1e3:g} ms" if device.latency_s else ""
    return rate + delay + (f", {device.loss:.2%} lost" if device.loss else "")
