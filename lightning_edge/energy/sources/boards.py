"""Idle and full power of known boards, for estimates and emulation.

Each row says who measured it, and where.

Idle and full are whole-board watts unless the note says module. Full is under load on all cores or
a busy GPU.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Board:
    """A row of the table.

    Args:
        match: Text that the device tree's model name contains.
        idle_w: Watts at rest.
        full_w: Watts under full load.
        note: Where the numbers come from.
    """

    match: str
    idle_w: float
    full_w: float
    note: str


_GEERLING = "HPL at the wall, geerlingguy/top500-benchmark and sbc-reviews"

BOARDS: tuple[Board, ...] = (
    # More specific names first: the first match counts.
    Board("Raspberry Pi Compute Module 5", 2.4, 9.3, _GEERLING),
    Board("Raspberry Pi Compute Module 4", 2.5, 5.2, _GEERLING),
    Board("Raspberry Pi 5", 2.4, 9.3, _GEERLING + "; the figures of the Compute Module 5"),
    Board("Raspberry Pi 4", 2.7, 7.2, _GEERLING + "; idle by pidramble"),
    Board("Jetson TX2", 1.65, 9.0, "module; VDD_IN of ysyisyourbrother/Galaxy-LM's sample log"),
    Board("Xavier NX", 4.6, 15.1, "module; VDD_IN over the logs of mobicom25paper676/intraDP"),
    Board("Orin Nano", 2.6, 11.4, "idle by Joulescope (NVIDIA forum 348662), LLM decoding at MAXN"),
    Board("Orin NX", 4.6, 25.0, "idle by ARK-Electronics; full is the name of the 25W mode"),
    Board(
        "AGX Orin", 7.0, 30.0, "full by mlcommons/inference_results_v3.0#10 at MaxQ; idle a guess"
    ),
    Board("Jetson Nano", 1.25, 10.0, "full is the name of the 10 W mode; idle a guess"),
)

WATTS_PER_THREAD = 4.0
"""What a PC's CPU draws per hardware thread at most.

Where nothing better is known (CodeCarbon's rule of thumb).
"""
IDLE_SHARE = 0.15
"""Idle power of a PC's CPU as a share of its full power; a rule of thumb."""


def find_board(name: str | None) -> Board | None:
    """The row of a board by its device-tree name."""
    return next((board for board in BOARDS if board.match in (name or "")), None)
