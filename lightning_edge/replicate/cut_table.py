"""The cuts of a model as a value that prints itself."""

from __future__ import annotations

from collections.abc import Iterable

from lightning_edge.replicate.split import Cut

__all__ = ["Cuts"]


class Cuts(tuple[Cut, ...]):
    """All legal cuts in the order they run; printing it lists those between blocks.

    Attributes:
        blocks: The cuts that `split_points="auto"` chooses from, between the model's blocks.
    """

    blocks: tuple[Cut, ...]

    def __new__(cls, every: Iterable[Cut], blocks: Iterable[Cut]) -> Cuts:
        """A tuple of `every`."""
        made = super().__new__(cls, every)
        made.blocks = tuple(blocks)
        return made

    def __str__(self) -> str:
        """One line per cut between blocks; parameters and compute are those up to the next."""
        title = ("cut", "parameters", "Mflop/row", "crosses/row", "what crosses")
        lines = [title, *map(_line, self.blocks)]
        widths = [max(len(line[i]) for line in lines) for i in range(4)]
        text = [
            "  ".join(
                [line[0].ljust(widths[0])]
                + [line[i].rjust(widths[i]) for i in (1, 2, 3)]
                + [line[4]]
            ).rstrip()
            for line in lines
        ]
        inside = len(self) - len(self.blocks)
        if inside:
            text.append(f"and {inside} more inside blocks: iterate over this value")
        return "\n".join(text)


def _line(cut: Cut) -> tuple[str, ...]:
    crosses = [f"{'x'.join(map(str, leaf.shape[1:])) or 'scalar'}" for leaf in cut.leaves]
    text = " + ".join(crosses)
    if cut.carried:
        text += f"{' + ' * bool(text)}{len(cut.carried)} carried"
    return (
        cut.name,
        f"{cut.parameters:,}",
        f"{cut.flops / 1e6:,.3g}",
        _bytes(cut.crossing_bytes),
        text,
    )


def _bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.4g} {unit}"
        number /= 1024
    return f"{number:.4g} GiB"
