"""From who works on which blocks to a whole assignment: rows, depths, and what memory asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lightning_edge.plan.assignment import Assignment, Part
from lightning_edge.plan.costs import Costs
from lightning_edge.plan.judge import Judge
from lightning_edge.plan.memory import holes_per_row, peak_bytes
from lightning_edge.plan.rules import rows_of
from lightning_edge.plan.sharing import share_out

__all__: list[str] = []


class Draft(NamedTuple):
    """A stage before its rows are shared out and its depth is known."""

    first: int
    stop: int
    ranks: tuple[int, ...]
    modes: tuple[int, ...]
    checkpoint: bool = False


def drafts(assignment: Assignment) -> list[Draft]:
    """Forget rows and depths."""
    return [Draft(p.first, p.stop, p.ranks, p.modes, p.checkpoint) for p in assignment.parts]


def slope(assignment: Assignment) -> int:
    """By how much depths grow from a stage to the one in front of it, about."""
    parts = assignment.parts
    if len(parts) < 2:
        return 2
    return max(1, round((parts[0].depth - 1) / (len(parts) - 1)))


def depths(number: int, micro_batches: int, growth: int) -> list[int]:
    """Depths that grow evenly towards the first stage."""
    return [min(micro_batches, growth * (number - 1 - p) + 1) for p in range(number)]


class Shaper:
    """Completes drafts for a batch of `rows`.

    Args:
        judge: Knows seconds and limits.
        rows: Of the batch.
        piece: Rows are shared out in such pieces at the finest.
    """

    def __init__(self, judge: Judge, rows: int, piece: int = 1) -> None:
        self.judge, self.rows, self.piece = judge, rows, piece
        self.costs: Costs = judge.costs
        self._shares: dict[tuple[Draft, int, int], tuple[int, ...]] = {}

    def complete(
        self, stages: Sequence[Draft], micro_batches: int, growth: int = 2
    ) -> Assignment | None:
        """Return the assignment; None if a stage has more devices than there are rows."""
        if any(len(stage.ranks) * self.piece > self.rows for stage in stages):
            return None
        number = min(micro_batches, self.rows)
        levels = depths(len(stages), number, growth)
        parts = tuple(
            Part(s.first, s.stop, s.ranks, self._rows(s, number, k), s.modes, k, s.checkpoint)
            for s, k in zip(stages, levels, strict=True)
        )
        if any(0 in part.rows for part in parts):
            return None  # the same without that device is a plan of its own
        return self.fit(Assignment(parts, number))

    def _rows(self, stage: Draft, number: int, depth: int) -> tuple[int, ...]:
        if len(stage.ranks) == 1:
            return (self.rows,)
        asked = self.judge.rules.shares.get(frozenset(stage.ranks))
        if asked is not None:
            return rows_of(asked, stage.ranks, self.rows)
        key = (stage, number, depth)
        found = self._shares.get(key)
        if found is None:
            count = len(stage.ranks)

            def seconds(i: int, rows: int) -> float:
                even = [0] * count
                even[i] = rows
                part = Part(*stage[:3], tuple(even), stage.modes, depth, stage.checkpoint)
                return self.judge.seconds(part, i, number)[0]

            caps = [self._cap(stage, rank, number, depth) for rank in stage.ranks]
            least = self.judge.rules.rows_each(self.rows, number)
            floor = least * number if least > 1 else 0
            found = share_out(self.rows, count, seconds, caps, self.piece, floor)
            if self.piece > 1:
                found = _in_pieces(found, self.piece)
            self._shares[key] = found
        return found

    def _cap(self, stage: Draft, rank: int, number: int, depth: int) -> int:
        """The most rows of the batch that fit into a device's memory."""
        device = self.costs.devices[rank]
        limit = device.memory_bytes
        if limit is None:
            return self.rows
        first, stop, keep = stage.first, stage.stop, stage.checkpoint
        kept = self.costs.kept_bytes(first, stop, keep)
        per_row = depth * kept + holes_per_row(device, kept, number)
        per_row += self.costs.passing_bytes(first, stop, keep)
        for cut in (first, stop):
            if 0 < cut < len(self.costs.blocks):
                per_row += (depth + 2) * sum(self.costs.crossing_bytes(cut))
        per_row += 2 * self.costs.profile.model.batch_bytes * number
        room = limit - self.costs.state_bytes(first, stop) - device.holes_bytes
        if room <= 0:
            return 0
        return self.rows if not per_row else min(self.rows, int(room / per_row) * number)

    def fit(self, assignment: Assignment) -> Assignment:
        """Give up depth, then kept activations, where memory does not suffice.

        A stage that is as deep as a plain 1F1B keeps its links busy no more but still computes all
        the time; checkpointing costs a third more computing; a depth below that idles.
        """
        for index in range(len(assignment.parts)):
            if self._fits(assignment, index):
                continue
            last = len(assignment.parts) - 1
            part = assignment.parts[index]
            choices = [
                (min(part.depth, last - index + 1), part.checkpoint),
                (part.depth, True),
                (min(part.depth, last - index + 1), True),
                *((k, True) for k in range(min(part.depth, last - index), 0, -1)),
            ]
            for depth, checkpoint in choices:
                changed = with_depth(assignment, index, depth)
                parts = list(changed.parts)
                parts[index] = parts[index]._replace(checkpoint=checkpoint)
                changed = changed._replace(parts=tuple(parts))
                if self._fits(changed, index):
                    break
            assignment = changed
        return assignment

    def _fits(self, assignment: Assignment, index: int) -> bool:
        limits = [self.costs.devices[r].memory_bytes for r in assignment.parts[index].ranks]
        if all(limit is None for limit in limits):
            return True
        peaks = peak_bytes(assignment, index, self.costs)
        return all(
            limit is None or round(peak) <= limit for peak, limit in zip(peaks, limits, strict=True)
        )


def _in_pieces(rows: Sequence[int], piece: int) -> tuple[int, ...]:
    """Round to whole pieces, at least one each; what is left over goes to the largest."""
    found = [max(piece, round(n / piece) * piece) for n in rows]
    largest = max(range(len(found)), key=lambda i: found[i])
    found[largest] += sum(rows) - sum(found)
    return tuple(found)


def with_depth(assignment: Assignment, index: int, depth: int) -> Assignment:
    """Set one stage's depth; depths in front of it are at least that, those behind at most."""
    depth = max(1, min(depth, assignment.micro_batches))
    parts = [
        part._replace(
            depth=depth if i == index
            else max(part.depth, depth) if i < index else min(part.depth, depth)
        )
        for i, part in enumerate(assignment.parts)
    ]  # fmt: skip
    return assignment._replace(parts=tuple(parts))
