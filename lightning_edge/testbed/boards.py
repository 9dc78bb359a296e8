"""Boards known by name: how fast, how much memory, what they draw; and where that is from."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from lightning_edge.errors import TestbedError
from lightning_edge.testbed.power import PowerCurve

__all__: list[str] = []

_UNCERTAINTY = {"measured": 0.2, "scaled": 0.3, "assumed": 0.5}


@dataclass(frozen=True)
class Board:
    """One board in one of its power modes.

    Args:
        name: Such as `orin-nano`.
        mode: Such as `15W`, as its vendor calls it; empty if it has only one. The watts in a mode's
            name are not what it draws: modes cap clocks.
        default: Whether the name alone means this mode.
        gflops: Sustained FP32 GFLOP/s of matrix products. For Jetsons 0.37 of the GPU's peak, which
            a Xavier NX reached on a dense network; for CPUs twice the FP64 HPL figure.
        memory_bytes: All of its memory.
        link_mbit: Its wired network as TCP sees it.
        curve: Its watts, with their provenance.
        quality: `measured` (idle and busy watts published for this mode), `scaled` (from another
            mode, by cores x clock) or `assumed` (a part of it is a guess).
    """

    name: str
    mode: str
    default: bool
    gflops: float
    memory_bytes: int
    link_mbit: float
    curve: PowerCurve
    quality: str

    @property
    def title(self) -> str:
        """Return the name by which `--device` knows it, mode included."""
        return f"{self.name}:{self.mode}" if self.mode else self.name


@cache
def known_boards() -> tuple[Board, ...]:
    """Return the table that comes with the package."""
    text = (files("lightning_edge.testbed") / "data" / "boards.csv").read_text()
    return tuple(_board(row) for row in csv.DictReader(text.splitlines()))


def _board(row: dict[str, str]) -> Board:
    curve = PowerCurve(
        idle_w=float(row["idle_w"]),
        busy_w=float(row["busy_w"]),
        rel_uncertainty=_UNCERTAINTY[row["quality"]],
        source=f"{row['quality']}: {row['source']}",
    )
    return Board(
        name=row["board"],
        mode=row["mode"],
        default=row["default"] == "1",
        gflops=float(row["fp32_gflops"]),
        memory_bytes=round(float(row["memory_gib"]) * 2**30),
        link_mbit=float(row["link_mbit"]),
        curve=curve,
        quality=row["quality"],
    )


def find_board(title: str) -> Board:
    """Return the board of that name, in that mode (`orin-nano:7W`) or its default one.

    Raises:
        TestbedError: If there is none; lists the boards, or the board's modes.
    """
    name, _, mode = title.strip().lower().partition(":")
    modes = [board for board in known_boards() if board.name == name]
    for board in modes:
        if board.mode.lower() == mode or (not mode and board.default):
            return board
    if modes:
        known = ", ".join(board.title for board in modes)
        raise TestbedError(f"the board {name!r} has no mode {mode!r}; there is {known}")
    names = ", ".join(dict.fromkeys(board.name for board in known_boards()))
    raise TestbedError(f"there is no board {name!r}; known boards: {names}")
