"""Good plans of every shape, by dynamic programming."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lightning_edge.plan.assignment import Assignment
from lightning_edge.plan.rules import Rules
from lightning_edge.plan.shaping import Shaper

__all__: list[str] = []


def construct(shaper: Shaper, rules: Rules, numbers: Sequence[int]) -> Iterator[Assignment]:
    """Yield them."""
    yield from ()
