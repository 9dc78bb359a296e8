"""The blocks of a model: where each begins, and which parameters belong to it.

    probe      wte    h.0 (norm, mlp.0, mlp.1 ...)    h.1 ...        ln_f   head (tied to wte)
    legal            h.0                              h.1            ln_f   head
    blocks     (start)| h.0                          | h.1          | ln_f | head
    own        -        h.0.*                          h.1.*          ln_f.*  -
    shared     wte.weight: (start), head

Pieces in which no parameter is used (an activation function between two layers) belong to the block
in front of them: a cut there would gain nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from lightning_edge.replicate.probe import Probe
from lightning_edge.replicate.split import Cut, cuts

__all__: list[str] = []

START = "(start)"
"""Name of the first block, which begins with the step itself."""
MOST_BLOCKS = 64


@dataclass(frozen=True)
class Site:
    """Where a block begins.

    Attributes:
        name: The module, or "(start)".
        position: Of its call in the probe; -1 for the first block.
        paths: Which of the module's arguments cross the cut.
    """

    name: str
    position: int = -1
    paths: tuple[str, ...] = ()

    @property
    def start(self) -> str | None:
        """As a plan's stages state it."""
        return None if self.position < 0 else self.name


@dataclass(frozen=True)
class Sites:
    """All blocks of a model, in the order they run.

    Attributes:
        blocks: At least the first.
        own: Per block, the names of the parameters that it alone uses.
        shared: Names of parameters -> indices of the several blocks that use them, ascending.
    """

    blocks: tuple[Site, ...]
    own: tuple[tuple[str, ...], ...]
    shared: Mapping[str, tuple[int, ...]]

    def used_by(self, first: int, stop: int) -> set[str]:
        """Names of the parameters that blocks ``first`` to ``stop - 1`` use."""
        names = {name for own in self.own[first:stop] for name in own}
        return names | {
            name for name, users in self.shared.items() if any(first <= u < stop for u in users)
        }


def find_sites(probe: Probe, module: nn.Module, keep: Collection[str] = ()) -> Sites:
    """Divide a model into blocks.

    Args:
        probe: Of its training step.
        module: The probed module.
        keep: Legal cuts that have to begin a block.
    """
    legal = cuts(probe, module)
    blocks = {cut.name for cut in cuts(probe, module, blocks_only=True)} or {c.name for c in legal}
    chosen = [cut for cut in legal if cut.name in blocks or cut.name in keep]
    uses = sorted((position, name) for name, used in probe.touches.items() for position in used)
    trained = {name for name, _ in module.named_parameters()}
    positions = [position for position, name in uses if name in trained]
    chosen = _worth_cutting(chosen, positions, keep)
    sites = (
        Site(START),
        *(Site(c.name, c.position, tuple(f.path for f in c.leaves)) for c in chosen),
    )
    return Sites(sites, *_owners(sites, probe, module))


def _worth_cutting(
    chosen: Sequence[Cut], positions: Sequence[int], keep: Collection[str]
) -> list[Cut]:
    """Drop cuts with no parameter used up to the next one, and the lightest if there are many."""

    def used(cut: Cut, following: Cut | None) -> int:
        stop = following.position if following else 1 << 62
        return _count(positions, cut.position, stop)

    rest = list(chosen)
    index = 0
    while index < len(rest):
        cut = rest[index]
        following = rest[index + 1] if index + 1 < len(rest) else None
        if used(cut, following):
            index += 1
        elif (
            following is not None
            and following.name.startswith(f"{cut.name}.")
            and following.name not in keep
        ):
            del rest[index + 1]  # the container stands for its first child
        elif cut.name not in keep:
            del rest[index]
        else:
            index += 1
    while len(rest) >= MOST_BLOCKS:
        free = [i for i, cut in enumerate(rest) if cut.name not in keep]
        if not free:
            break
        del rest[min(free, key=lambda i: used(rest[i], rest[i + 1] if i + 1 < len(rest) else None))]
    return rest


def _count(positions: Sequence[int], start: int, stop: int) -> int:
    return bisect_right(positions, stop - 1) - bisect_right(positions, start - 1)


def _owners(
    sites: Sequence[Site], probe: Probe, module: nn.Module
) -> tuple[tuple[tuple[str, ...], ...], dict[str, tuple[int, ...]]]:
    starts = [site.position for site in sites[1:]]
    own: list[list[str]] = [[] for _ in sites]
    shared: dict[str, tuple[int, ...]] = {}
    for name, users in _users(starts, probe, module):
        if len(users) == 1:
            own[users[0]].append(name)
        else:
            shared[name] = users
    return tuple(map(tuple, own)), shared


def _users(
    starts: Sequence[int], probe: Probe, module: nn.Module
) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, _ in module.named_parameters():
        used = probe.touches.get(name)
        if used is None:  # what nothing uses stays with the last stage
            yield name, (len(starts),)
        else:
            yield name, tuple(sorted({bisect_right(starts, position) for position in used}))
