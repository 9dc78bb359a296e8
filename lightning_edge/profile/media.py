"""Which links share a medium, from how much slower they are together than alone.

both ways at once   half as fast each         a half-duplex link: one medium for both directions
ring, all at once   a third each, of three    one medium for all of them: a radio channel
                    a half each               every device has a half-duplex link of its own
                    as fast as alone          nothing is shared (a switch)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

__all__: list[str] = []

SLOWED = 0.65
"""A link that keeps less than this part of its rate shares something."""


class Found(NamedTuple):
    """One direction between two devices."""

    seconds_per_byte: float
    latency_s: float
    half: bool
    """Whether both directions together are about half as fast each."""


Pair = tuple[int, int]


def assign_media(
    table: Mapping[Pair, Found],
    ring: Sequence[float],
    radio: Sequence[int],
    inner: Sequence[float],
    names: Sequence[str],
) -> dict[Pair, tuple[str, ...]]:
    """Return the media of each link that has some.

    Args:
        table: What was measured of each pair alone, both directions.
        ring: Part of its rate that each link of a ring of all devices kept; empty for two devices.
        radio: Ranks all of whose links are half duplex.
        inner: As `ring`, of the radio ranks only.
        names: Of the devices, by rank.
    """
    if len(radio) >= 3 and inner and _crowded(inner):
        members = set(radio)
        medium = (f"shared by {', '.join(names[rank] for rank in radio)}",)
        return {pair: medium for pair in table if members & set(pair)}
    if ring and min(ring) >= SLOWED:
        return {}  # a ring uses both directions of every device
    media: dict[Pair, tuple[str, ...]] = {}
    for (a, b), found in table.items():
        if found.half:
            own = [rank for rank in (a, b) if rank in radio]
            pair = f"{names[min(a, b)]} - {names[max(a, b)]}"
            media[a, b] = tuple(names[rank] for rank in sorted(own)) if ring and own else (pair,)
    return media


def _crowded(kept: Sequence[float]) -> bool:
    """Whether links together are about as fast as one of them alone.

    Links of their own, half duplex, keep a half each; n links on one medium keep 1/n each.
    """
    return sum(kept) / len(kept) < (1 / 2 + 1 / len(kept)) / 2 + 0.02
