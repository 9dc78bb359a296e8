"""Boards known by name, in each of their power modes: the one table of the project.

`data/boards.csv` says where every number is from. They are what is assumed until something is
measured: priors of a profile, the curves of emulated devices, and the energy estimate of last
resort.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

__all__: list[str] = []

_UNCERTAINTY = {"measured": 0.2, "scaled": 0.3, "assumed": 0.5}


@dataclass(frozen=True)
class Board:
    """A row of the table: one board in one of its power modes.

    Args:
        name: Such as `orin-nano`.
        model: Text that the device tree's model name contains; empty for PCs.
        mode: Such as `15W`, as its vendor calls it; empty if it has only one. The watts in a mode's
            name are not what it draws: modes cap clocks.
        default: Whether the name alone means this mode.
        gflops: Sustained FP32 GFLOP/s of matrix products. For Jetsons 0.37 of the GPU's peak, which
            a Xavier NX reached on a dense network; for CPUs twice the FP64 HPL figure.
        memory_bytes: All of its memory.
        link_mbit: Its wired network as TCP sees it.
        idle_w: Watts at rest, of the whole board or module.
        busy_w: Watts under load on all cores, or with a busy GPU.
        quality: `measured` (idle and busy watts published for this mode), `scaled` (from another
            mode, by cores x clock) or `assumed` (a part of it is a guess).
        source: Where the numbers come from.
    """

    name: str
    model: str
    mode: str
    default: bool
    gflops: float
    memory_bytes: int
    link_mbit: float
    idle_w: float
    busy_w: float
    quality: str
    source: str

    @property
    def rel_uncertainty(self) -> float:
        """How far the watts may be from a real board, as a fraction."""
        return _UNCERTAINTY[self.quality]


@cache
def known_boards() -> tuple[Board, ...]:
    """Return the table that comes with the package."""
    text = (files("lightning_edge") / "data" / "boards.csv").read_text()
    return tuple(_board(row) for row in csv.DictReader(text.splitlines()))


def _board(row: dict[str, str]) -> Board:
    return Board(
        name=row["board"],
        model=row["model"],
        mode=row["mode"],
        default=row["default"] == "1",
        gflops=float(row["fp32_gflops"]),
        memory_bytes=round(float(row["memory_gib"]) * 2**30),
        link_mbit=float(row["link_mbit"]),
        idle_w=float(row["idle_w"]),
        busy_w=float(row["busy_w"]),
        quality=row["quality"],
        source=row["source"],
    )


def find_model(model: str | None, mode: str | None = None) -> Board | None:
    """Return a board by its device tree's model name, in a mode.

    Args:
        model: Such as "NVIDIA Jetson Orin Nano Developer Kit".
        mode: As nvpmodel calls it, such as "15W" or "MODE_15W_6CORE"; the default one if unknown.
    """
    rows = [board for board in known_boards() if board.model and board.model in (model or "")]
    plain = (mode or "").removeprefix("MODE_").upper()
    for wanted in (plain, plain.partition("_")[0]):
        for board in rows:
            if wanted and board.mode.upper() == wanted:
                return board
    return next((board for board in rows if board.default), None) if not mode else None
