"""What can be done with what devices kept of a failed run, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lightning_edge.replicate.parts import Origin, lost

__all__: list[str] = []


@dataclass(frozen=True)
class Kept:
    """What a device has kept.

    Attributes:
        step: Optimizer steps it has done.
        folder: Where its part is, on its own disk; None if it has none.
        why_not: Why it has none.
    """

    step: int
    folder: str | None
    why_not: str | None = None

    def to_plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Kept:
        """The inverse; raises a TypeError, KeyError or ValueError for anything else."""
        folder, why_not = plain["folder"], plain["why_not"]
        return cls(
            int(plain["step"]),
            None if folder is None else str(folder),
            None if why_not is None else str(why_not),
        )


@dataclass(frozen=True)
class LastCheckpoint:
    """A whole checkpoint.

    Attributes:
        path: On rank 0's disk.
        step: Optimizer steps done.
    """

    path: str
    step: int


def verdict(
    heard: Mapping[int, Kept | None] | None,
    own: Kept,
    origin: Origin,
    last: LastCheckpoint | None,
) -> str:
    """Say from which step one can go on, and how.

    Args:
        heard: By rank what it has kept, None for who said nothing; None if nothing could be heard.
        own: What this device has kept.
        origin: Of this device's part.
        last: The last whole checkpoint.
    """
    kept = {r: k for r, k in (heard or {origin.rank: own}).items() if k is not None and k.folder}
    steps = sorted({k.step for k in kept.values()}, reverse=True)
    for step in steps:
        ranks = [rank for rank, k in kept.items() if k.step == step]
        if not lost(origin.holders, ranks):
            folder = kept[ranks[0]].folder
            return (
                f"The state after step {step} is kept, in parts, on the disks of"
                f" {_all(ranks, origin)}. To go on from there, start them again with"
                f" ckpt_path={folder!r} (run.resume= of the command)"
            )
    back = (
        f"go on from the last whole checkpoint, of step {last.step}: ckpt_path={last.path!r}"
        if last is not None
        else "and no checkpoint was written, so the run has to begin anew"
    )
    parts = f" What {_all(list(kept), origin)} held is in {own.folder}" if own.folder else ""
    if own.folder is None:
        parts = f" This device kept nothing of step {own.step}: {own.why_not}"
    if heard is None:
        return (
            f"The run's store is gone, so it is not known what the others kept.{parts}, and"
            f" ckpt_path={own.folder!r} goes on after step {own.step} if their parts make it whole;"
            f" if not, {back}"
        )
    gone = lost(origin.holders, kept)
    if gone:
        whose = "; ".join(_all(group, origin, "or") for group in gone)
        return f"What only {whose} held is lost: {back}.{parts}"
    where = ", ".join(f"{k.step} ({origin.call(rank)})" for rank, k in sorted(kept.items()))
    return f"The devices had done different numbers of steps: {where}; {back}.{parts}"


def _all(ranks: Sequence[int], origin: Origin, word: str = "and") -> str:
    names = [origin.call(rank) for rank in sorted(ranks)]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"
