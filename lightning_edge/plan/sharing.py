"""Sharing a stage's rows among its devices: as fast as the slowest allows, within memory.

Asteroid's Algorithm 1 with tables of seconds instead of one capacity per device, and with memory
counted for what a device holds in all: rows in proportion to speed, capped by memory, then pieces
from the slowest device to where they end earliest, as long as the slowest gets faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lightning_edge.plan.rows import whole_rows

__all__: list[str] = []


class Seconds(Protocol):
    """Seconds that device i of a stage needs for so many rows of the batch."""

    def __call__(self, i: int, rows: int) -> float:
        """Return them."""


def share_out(
    rows: int,
    number: int,
    seconds: Seconds,
    caps: Sequence[int],
    piece: int = 1,
    least: int = 0,
) -> tuple[int, ...]:
    """Return the rows of each device; they add up to `rows`.

    Args:
        rows: Rows of the batch, at least one per device.
        number: Number of devices.
        seconds: How long each needs.
        caps: The most rows that fit into each one's memory; what fits nowhere goes to the roomiest.
        piece: Rows are moved in such pieces at the finest.
        least: Fewest rows of a device, as far as there are enough.
    """
    fair = max(1, rows // number)
    speeds = [fair / max(seconds(i, fair), 1e-12) for i in range(number)]
    found = whole_rows([speed / sum(speeds) for speed in speeds], rows)
    _lift(found, min(least, rows // number))
    _cap(found, caps, speeds)
    size = max(piece, max(found) // 4)
    while size >= piece:
        while _improve(found, seconds, caps, size, least):
            pass
        size //= 2
    return tuple(found)


def _lift(found: list[int], least: int) -> None:
    """Give every device so many rows, taken from those with the most."""
    for i, rows in enumerate(found):
        for _ in range(least - rows):
            found[max(range(len(found)), key=lambda j: found[j])] -= 1
            found[i] += 1


def _cap(found: list[int], caps: Sequence[int], speeds: Sequence[float]) -> None:
    spare = 0
    for i, cap in enumerate(caps):
        if found[i] > cap:
            spare += found[i] - cap
            found[i] = cap
    for i in sorted(range(len(found)), key=lambda i: -speeds[i]):
        given = min(spare, max(0, caps[i] - found[i]))
        found[i] += given
        spare -= given
    if spare:  # nowhere is room: the caller sees that it does not fit
        roomiest = max(range(len(found)), key=lambda i: caps[i])
        found[roomiest] += spare


def _improve(
    found: list[int], seconds: Seconds, caps: Sequence[int], size: int, least: int
) -> bool:
    """Move one piece away from the slowest device if that makes the stage faster."""
    now = [seconds(i, rows) for i, rows in enumerate(found)]
    slowest = max(range(len(found)), key=lambda i: now[i])
    if found[slowest] - size < least:
        return False
    after = [
        seconds(i, rows + size) if i != slowest and rows + size <= caps[i] else float("inf")
        for i, rows in enumerate(found)
    ]
    taker = min(range(len(found)), key=lambda i: after[i])
    rest = seconds(slowest, found[slowest] - size)
    if max(after[taker], rest) >= now[slowest] * (1 - 1e-12):
        return False
    found[slowest] -= size
    found[taker] += size
    return True
