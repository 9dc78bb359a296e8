"""Dividing rows: a batch into micro-batches, and micro-batches among devices by their shares.

Rounding shares anew in every micro-batch destroys them: with 2 rows per micro-batch, shares of 0.8
and 0.2 would always become 2 and 0. So the shares hold over the whole batch:

1. Each device gets its total by largest remainder: 16 rows, 0.8 / 0.2 -> 12.8 / 3.2 -> 13 / 3.
2. Row by row, the totals are spread evenly. The j-th of a device's n rows (j from 0, N rows in all)
   belongs between row floor(j N / n) and row ceil((j + 1) N / n). These are the windows of Pfair
   scheduling (Baruah, Cohen, Plaxton, Varvel, "Proportionate Progress", Algorithmica 1996); giving
   each row to the device whose open window closes first always meets all of them. At every point
   of the batch each device then has its due number of rows, rounded up or down:

       row                  0 1 2 3 4 5 6 7 8 9 . . . . . 15
       windows of device 1  [-----------)       [-----------)     3 of its 16 rows
                                      [-----------)
       goes to device       0 0 0 0 1 0 0 0 0 1 0 0 0 0 0 1

3. In a micro-batch a device holds as many consecutive rows as it was given there, in device order.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

__all__: list[str] = []

Interval = tuple[int, int]
"""Rows `[start, stop)`, counted from the first row of the batch."""


def micro_batch_bounds(rows: int, micro_batches: int) -> tuple[Interval, ...]:
    """Divide a batch into consecutive micro-batches whose sizes differ by at most one row.

    Args:
        rows: Rows of the batch, 0 or more.
        micro_batches: Micro-batches wanted; with fewer rows than that there are only `rows`.

    Returns:
        The rows `(start, stop)` of each micro-batch; the longer ones come first.
    """
    if rows < 0 or micro_batches < 1:
        raise ValueError(f"cannot divide {rows} rows into {micro_batches} micro-batches")
    number = min(rows, micro_batches)
    if number == 0:
        return ()
    size, longer = divmod(rows, number)
    starts = [m * size + min(m, longer) for m in range(number + 1)]
    return tuple(zip(starts[:-1], starts[1:], strict=True))


def row_intervals(
    shares: Sequence[float], bounds: Sequence[Interval]
) -> tuple[tuple[Interval, ...], ...]:
    """Divide the rows of every micro-batch among devices so that shares hold over the batch.

    Args:
        shares: Share of each device; they are taken relative to their sum.
        bounds: Rows of each micro-batch, as from `micro_batch_bounds`.

    Returns:
        For each micro-batch and device the rows `(start, stop)`; `start == stop` for none. In a
        micro-batch, each device starts where the one before it stops.
    """
    rows = bounds[-1][1] if bounds else 0
    owners = _spread(whole_rows(shares, rows))
    intervals = []
    for start, stop in bounds:
        counts = [0] * len(shares)
        for owner in owners[start:stop]:
            counts[owner] += 1
        edges = [start]
        for count in counts:
            edges.append(edges[-1] + count)
        intervals.append(tuple(zip(edges[:-1], edges[1:], strict=True)))
    return tuple(intervals)


def whole_rows(shares: Sequence[float], rows: int) -> list[int]:
    """Return how many of `rows` each share is, by largest remainder; earlier devices win ties."""
    total = sum(shares)
    due = [share / total * rows for share in shares]
    # The guard keeps 0.1 + 0.2 worth of rounding from pushing a whole number just below itself.
    whole = [int(number + 1e-9) for number in due]
    by_remainder = sorted(range(len(due)), key=lambda i: round(whole[i] - due[i], 9))
    for i in by_remainder[: rows - sum(whole)]:
        whole[i] += 1
    return whole


def _spread(totals: Sequence[int]) -> list[int]:
    """Return for each row the device it goes to, so that every device is served evenly."""
    rows = sum(totals)
    given = [0] * len(totals)
    waiting = [
        (0, device) for device, total in enumerate(totals) if total
    ]  # (window opens, device)
    open_windows: list[tuple[int, int]] = []  # (window closes, device)
    owners = []
    for row in range(rows):
        while waiting and waiting[0][0] <= row:
            device = heapq.heappop(waiting)[1]
            closes = -(-(given[device] + 1) * rows // totals[device])
            heapq.heappush(open_windows, (closes, device))
        device = heapq.heappop(open_windows)[1]
        owners.append(device)
        given[device] += 1
        if given[device] < totals[device]:
            heapq.heappush(waiting, (given[device] * rows // totals[device], device))
    return owners
