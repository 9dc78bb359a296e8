"""Boards as the testbed emulates them: a row of the project's table with a power curve."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from lightning_edge import boards
from lightning_edge.errors import TestbedError
from lightning_edge.testbed.power import PowerCurve

__all__: list[str] = []


@dataclass(frozen=True)
class Board:
    """One board in one of its power modes; see `lightning_edge.boards.Board`.

    Args:
        name: Such as `orin-nano`.
        mode: Such as `15W`; empty if it has only one.
        default: Whether the name alone means this mode.
        gflops: Sustained FP32 GFLOP/s of matrix products.
        memory_bytes: All of its memory.
        link_mbit: Its wired network as TCP sees it.
        curve: Its watts, with their provenance.
        quality: `measured`, `scaled` or `assumed`.
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
    return tuple(_emulated(board) for board in boards.known_boards())


def _emulated(row: boards.Board) -> Board:
    curve = PowerCurve(
        idle_w=row.idle_w,
        busy_w=row.busy_w,
        rel_uncertainty=row.rel_uncertainty,
        source=f"{row.quality}: {row.source}",
    )
    return Board(
        row.name,
        row.mode,
        row.default,
        row.gflops,
        row.memory_bytes,
        row.link_mbit,
        curve,
        row.quality,
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
