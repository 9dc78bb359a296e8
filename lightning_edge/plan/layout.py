"""Which rows of a batch are whose: in every stage, for every micro-batch and device.

Every stage sees all rows of every micro-batch, divided by its own shares. Where the intervals of
two devices in neighbouring stages overlap, those rows travel between them:

    micro-batch of rows 8..16      8   9  10  11  12  13  14  15
    stage 0                        [------- 0 -------)[--- 1 ---)
    stage 1                        [-- 2 -)[-------- 3 ---------)
    overlaps of rank 0 with stage 1:   (2, 8, 10), (3, 10, 13)

Sender and receiver compute the same overlaps on their own, so nothing has to be agreed on.
"""

from __future__ import annotations

from lightning_edge.plan.plan import Plan
from lightning_edge.plan.rows import Interval, micro_batch_bounds, row_intervals

__all__ = ["Layout", "micro_batch_bounds", "row_intervals"]


class Layout:
    """The rows of one batch under a plan.

    Args:
        plan: A resolved plan.
        rows: Rows of the batch.

    Attributes:
        plan: The plan.
        rows: Rows of the batch.
        bounds: Rows `(start, stop)` of each micro-batch, counted from the first row of the batch.

    All methods accept the rank of a device without work; it has no rows.
    """

    def __init__(self, plan: Plan, rows: int) -> None:
        if plan.micro_batches == "auto":
            raise ValueError("a layout needs a resolved plan: call plan.resolve(names) first")
        self.plan = plan
        self.rows = rows
        self.bounds = micro_batch_bounds(rows, plan.micro_batches)
        self._stages: list[dict[int | str, tuple[Interval, ...]]] = []
        for stage in plan.stages:
            intervals = row_intervals(tuple(stage.devices.values()), self.bounds)
            by_device = zip(*intervals, strict=True) if intervals else ((),) * len(stage.devices)
            self._stages.append(dict(zip(stage.devices, by_device, strict=True)))

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches of this batch: no more than it has rows."""
        return len(self.bounds)

    def rows_of(self, rank: int) -> tuple[Interval, ...]:
        """Return the rows of a rank in each micro-batch, also the empty ones (start == stop)."""
        stage = self.plan.stage_of(rank)
        if stage is None:
            return tuple((start, start) for start, _ in self.bounds)
        return self._stages[stage][rank]

    def mine(self, rank: int, micro_batch: int) -> Interval:
        """Return the rows of a rank in a micro-batch; `start == stop` if it has none."""
        return self.rows_of(rank)[micro_batch]

    def local(self, rank: int, micro_batch: int) -> Interval:
        """Return where the rows of a micro-batch stand among all rows of a rank put together."""
        sizes = [stop - start for start, stop in self.rows_of(rank)[: micro_batch + 1]]
        return sum(sizes[:-1]), sum(sizes)

    def overlaps(self, rank: int, micro_batch: int, stage: int) -> tuple[tuple[int, int, int], ...]:
        """Return the rows that a rank shares with each device of another stage.

        Returns:
            `(peer, start, stop)` in the order of rows, without peers that share none.
        """
        start, stop = self.mine(rank, micro_batch)
        found = []
        for peer in self.plan.ranks(stage):
            low, high = self._stages[stage][peer][micro_batch]
            if max(start, low) < min(stop, high):
                found.append((peer, max(start, low), min(stop, high)))
        return tuple(found)

    def first_peer(self, rank: int, micro_batch: int, stage: int) -> int | None:
        """Return the device of another stage that has this rank's first row; `None` if no rows."""
        overlaps = self.overlaps(rank, micro_batch, stage)
        return overlaps[0][0] if overlaps else None
