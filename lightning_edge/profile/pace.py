"""What a step costs besides forwards, backwards and the optimizer: the loop around it, in Python.

It cannot be measured before there is a loop, so a piece of ordinary Python is timed, and a step is
taken to cost as much as a number of those pieces. Training then says how much it really is
(`EdgeProfiler`).
"""

from __future__ import annotations

import time

__all__: list[str] = []

PIECES_PER_STEP = 60
"""So many pieces took as long as a step of Lightning's loop did around a model of nothing."""
LEAST_S = 0.3  # some slices of a processor that is shared


def loop_seconds() -> float:
    """Seconds of the loop around a step on this device, an estimate."""
    begun, pieces = time.perf_counter(), 0
    while time.perf_counter() - begun < LEAST_S:
        _piece()
        pieces += 1
    return (time.perf_counter() - begun) / pieces * PIECES_PER_STEP


def _piece() -> int:
    """Look-ups, calls and small objects, as in a training loop: 100 us on a fast core."""
    table: dict[str, int] = {}
    for number in range(300):
        name = f"name{number % 17}"
        table[name] = table.get(name, 0) + number
    return sum(table.values())
