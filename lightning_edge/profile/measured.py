"""What measuring a model has found so far: seconds by block and rows, bytes kept by block."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_edge.profile.marks import Seconds

__all__: list[str] = []


class Measured:
    """Numbers of all blocks.

    Args:
        blocks: How many there are.

    Attributes:
        tables: Per block, rows -> seconds of its forward and its backward.
        kept: Per block, bytes per row that its forward keeps, and of the largest tensor of those.
        instruction_s: Seconds of a forward or a backward whatever its rows, in a later stage.
    """

    def __init__(self, blocks: int) -> None:
        self.tables: list[dict[int, tuple[float, float]]] = [{} for _ in range(blocks)]
        self.kept: list[tuple[float, float]] = [(0.0, 0.0)] * blocks
        self.instruction_s = 0.0

    def add(self, first: int, rows: int, seconds: Seconds) -> None:
        """Keep the mean pass over the blocks from `first` on."""
        pairs = zip(seconds.forward_s, seconds.backward_s, strict=True)
        for offset, pair in enumerate(pairs):
            self.tables[first + offset][rows] = pair

    def keep(self, block: int, per_row: float, largest: float) -> None:
        """Keep what a block keeps."""
        self.kept[block] = (per_row, largest)

    def copy(self, source: int, target: int) -> None:
        """A block is like another one."""
        self.tables[target] = dict(self.tables[source])
        self.kept[target] = self.kept[source]

    def average(self, alike: Sequence[int]) -> None:
        """Give blocks that do the same work the mean of what they took.

        Args:
            alike: Per block the first one that does the same.
        """
        for first in sorted(set(alike)):
            members = [i for i, twin in enumerate(alike) if twin == first]
            for rows in self.tables[first]:
                found = [self.tables[i][rows] for i in members if rows in self.tables[i]]
                mean = (
                    sum(f for f, _ in found) / len(found),
                    sum(b for _, b in found) / len(found),
                )
                for i in members:
                    self.tables[i][rows] = mean

    def kept_bytes(self, first: int, stop: int, rows: int) -> float:
        """Bytes that blocks keep at so many rows."""
        return rows * sum(per_row for per_row, _ in self.kept[first:stop])
