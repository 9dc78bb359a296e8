"""Small changes of an assignment, from which a search finds better ones.

cut       a stage's first blocks go to the stage in front, or the other way round
rows      some rows of a stage go from one of its devices to another
devices   one joins, leaves, moves to a neighbouring stage, or two change places
stages    two become one, one becomes two
pace      number of micro-batches, depths, checkpointing, power modes
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from lightning_edge.plan.assignment import Assignment, Part
from lightning_edge.plan.rules import Rules
from lightning_edge.plan.shaping import Draft, Shaper, drafts, slope, with_depth

__all__: list[str] = []

_STEPS = (1, -1, 2, -2, 4, -4)
_MOST_PLACES = 6
Kind = Callable[[Assignment], Iterator[Assignment | None]]


class Moves:
    """The neighbours of assignments.

    Args:
        shaper: Completes changed drafts.
        rules: What is allowed.
        numbers: Numbers of micro-batches to choose from, ascending.
        alike: Class of each rank: devices of one class can stand in for each other.
    """

    def __init__(
        self, shaper: Shaper, rules: Rules, numbers: tuple[int, ...], alike: tuple[int, ...]
    ) -> None:
        self.shaper, self.rules, self.numbers, self.alike = shaper, rules, numbers, alike
        self._places = frozenset(rules.legal)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of changes, cheap ones first."""
        found = (
            self._cuts, self._rows, self._numbers, self._depths, self._checkpoints,
            self._leaving, self._joining, self._swaps, self._stages,
        )  # fmt: skip
        return (*found, self._modes) if self.rules.free_modes else found

    @property
    def slight(self) -> tuple[Kind, ...]:
        """The kinds that leave the devices where they are."""
        found = (self._depths, self._numbers, self._cuts, self._rows, self._swaps)
        return (*found, self._modes) if self.rules.free_modes else found

    def of(self, kind: Kind, assignment: Assignment) -> Iterator[Assignment]:
        """Yield the changes of a kind that the rules allow."""
        for change in kind(assignment):
            if change is not None and change != assignment and self.rules.allow(change):
                yield change

    def _again(self, a: Assignment, stages: list[Draft]) -> Assignment | None:
        return self.shaper.complete(stages, a.micro_batches, slope(a))

    def _cuts(self, a: Assignment) -> Iterator[Assignment | None]:
        for index in range(1, len(a.parts)):
            front, behind = a.parts[index - 1], a.parts[index]
            for by in _STEPS:
                cut = behind.first + by
                if front.first < cut < behind.stop and cut in self._places:
                    # with the rows as they are, and shared out anew
                    parts = list(a.parts)
                    parts[index - 1] = front._replace(stop=cut)
                    parts[index] = behind._replace(first=cut)
                    yield self.shaper.fit(a._replace(parts=tuple(parts)))
                    if len(front.ranks) > 1 or len(behind.ranks) > 1:
                        stages = drafts(a)
                        stages[index - 1] = stages[index - 1]._replace(stop=cut)
                        stages[index] = stages[index]._replace(first=cut)
                        yield self._again(a, stages)

    def _rows(self, a: Assignment) -> Iterator[Assignment | None]:
        piece = self.shaper.piece
        for index, part in enumerate(a.parts):
            if len(part.ranks) < 2:
                continue
            seconds = [
                self.shaper.judge.seconds(part, i, a.micro_batches)[0]
                for i in range(len(part.ranks))
            ]
            order = sorted(range(len(part.ranks)), key=lambda i: seconds[i])
            # of many devices only the fastest and the slowest few
            ends = order if len(order) <= 4 else order[:2] + order[-2:]
            for giver in ends:
                for taker in ends:
                    for size in (piece, 2 * piece, 4 * piece):
                        if giver != taker and part.rows[giver] > size:
                            rows = list(part.rows)
                            rows[giver] -= size
                            rows[taker] += size
                            yield _with(a, index, part._replace(rows=tuple(rows)))

    def _numbers(self, a: Assignment) -> Iterator[Assignment | None]:
        below = [n for n in self.numbers if n < a.micro_batches]
        above = [n for n in self.numbers if n > a.micro_batches]
        for number in below[-2:] + above[:2]:
            for growth in {slope(a), 2}:
                yield self.shaper.complete(drafts(a), number, growth)

    def _depths(self, a: Assignment) -> Iterator[Assignment | None]:
        if len(a.parts) > 1:
            for growth in (1, 2, 3, 4, a.micro_batches):
                yield self.shaper.complete(drafts(a), a.micro_batches, growth)
        for index, part in enumerate(a.parts):
            for by in (1, -1, 2):
                if part.depth + by >= 1 and len(a.parts) > 1:
                    yield with_depth(a, index, part.depth + by)
        if len(a.parts) == 1:
            for depth in (1, 2):
                yield with_depth(a, 0, depth)

    def _checkpoints(self, a: Assignment) -> Iterator[Assignment | None]:
        for index, part in enumerate(a.parts):
            other = _with(a, index, part._replace(checkpoint=not part.checkpoint))
            yield other
            if part.checkpoint:  # keep activations, of fewer micro-batches
                for depth in sorted({1, 2, part.depth // 2, part.depth - 1}):
                    if 1 <= depth < part.depth:
                        yield with_depth(other, index, depth)

    def _modes(self, a: Assignment) -> Iterator[Assignment | None]:
        for index, part in enumerate(a.parts):
            for i in range(len(part.ranks)):
                yield from self.modes(a, index, i)

    def modes(self, a: Assignment, index: int, i: int) -> Iterator[Assignment]:
        """Yield the assignments with another power mode of a stage's i-th device."""
        part = a.parts[index]
        for mode in range(len(self.shaper.costs.devices[part.ranks[i]].modes)):
            if mode != part.modes[i]:
                modes = (*part.modes[:i], mode, *part.modes[i + 1 :])
                yield _with(a, index, part._replace(modes=modes))
                if len(part.ranks) > 1:
                    stages = drafts(a)
                    stages[index] = stages[index]._replace(modes=modes)
                    again = self._again(a, stages)
                    if again is not None:
                        yield again

    def _leaving(self, a: Assignment) -> Iterator[Assignment | None]:
        for index, part in enumerate(a.parts):
            for i, rank in enumerate(part.ranks):
                if rank in self.rules.keep:
                    continue
                stages = drafts(a)
                if len(part.ranks) > 1:
                    stages[index] = _without(stages[index], i)
                    yield self._again(a, stages)
                    continue
                for neighbour in (index - 1, index + 1):
                    if 0 <= neighbour < len(stages):
                        yield self._again(a, _absorbed(stages, index, neighbour))

    def _joining(self, a: Assignment) -> Iterator[Assignment | None]:
        taken, tried = set(a.ranks), set[int]()
        for rank in self.rules.ranks:
            if rank in taken or self.alike[rank] in tried:
                continue
            tried.add(self.alike[rank])
            yield from self.joining(a, rank)

    def joining(self, a: Assignment, rank: int) -> Iterator[Assignment]:
        """Yield the assignments in which a device without work gets some."""
        for mode in self._modes_of(rank):
            for index in range(len(a.parts)):
                joined = drafts(a)
                joined[index] = _joined(joined[index], rank, mode)
                changes = [joined, *self._inserted(drafts(a), index, rank, mode)]
                for stages in changes:
                    found = self._again(a, stages)
                    if found is not None and self.rules.allow(found):
                        yield found

    def _modes_of(self, rank: int) -> Iterable[int]:
        """The modes that a device may be in."""
        if self.rules.free_modes:
            return range(len(self.shaper.costs.devices[rank].modes))
        return (self.shaper.costs.mode_index(rank, None),)

    def _inserted(
        self, stages: list[Draft], index: int, rank: int, mode: int
    ) -> Iterator[list[Draft]]:
        """Give a new stage of one device some of another's blocks, in front of it or behind."""
        old = stages[index]
        places = [cut for cut in self.rules.legal if old.first < cut < old.stop]
        if len(places) > _MOST_PLACES:  # the cut moves on later
            quarter = len(places) / 4
            places = [places[round(quarter * n)] for n in (1, 2, 3)]
        new = Draft(old.first, old.stop, (rank,), (mode,), old.checkpoint)
        for cut in places:
            for front, behind in ((old, new), (new, old)):
                pair = [front._replace(stop=cut), behind._replace(first=cut)]
                yield [*stages[:index], *pair, *stages[index + 1 :]]

    def _swaps(self, a: Assignment) -> Iterator[Assignment | None]:
        """Two devices of different stages change places, or one with a device that has no work."""
        seats = [(p, i) for p, part in enumerate(a.parts) for i in range(len(part.ranks))]
        for at, (p, i) in enumerate(seats):
            here = a.parts[p].ranks[i]
            for q, j in seats[at + 1 :]:
                there = a.parts[q].ranks[j]
                if p != q and self.alike[here] != self.alike[there]:
                    stages = drafts(a)
                    mine, other = a.parts[p].modes[i], a.parts[q].modes[j]
                    stages[p] = _replaced(stages[p], i, there, other)
                    stages[q] = _replaced(stages[q], j, here, mine)
                    yield self._again(a, stages)
            for rank in self.rules.ranks:
                if rank not in a.ranks and self.alike[rank] != self.alike[here]:
                    stages = drafts(a)
                    mode = self.shaper.costs.mode_index(rank, None)
                    stages[p] = _replaced(stages[p], i, rank, mode)
                    yield self._again(a, stages)

    def _stages(self, a: Assignment) -> Iterator[Assignment | None]:
        for index in range(len(a.parts) - 1):
            front, behind = drafts(a)[index : index + 2]
            members = _sorted(front.ranks + behind.ranks, front.modes + behind.modes)
            merged = Draft(
                front.first, behind.stop, *members, front.checkpoint and behind.checkpoint
            )
            stages = drafts(a)
            yield self._again(a, [*stages[:index], merged, *stages[index + 2 :]])
            for giver, taker in ((index, index + 1), (index + 1, index)):
                for i in range(len(stages[giver].ranks)):
                    if len(stages[giver].ranks) > 1:
                        changed = drafts(a)
                        rank, mode = stages[giver].ranks[i], stages[giver].modes[i]
                        changed[giver] = _without(stages[giver], i)
                        changed[taker] = _joined(stages[taker], rank, mode)
                        yield self._again(a, changed)
        for index, part in enumerate(a.parts):
            for i, rank in enumerate(part.ranks):
                if len(part.ranks) > 1:
                    stages = drafts(a)
                    stages[index] = _without(stages[index], i)
                    for change in self._inserted(stages, index, rank, part.modes[i]):
                        yield self._again(a, change)


def _with(a: Assignment, index: int, part: Part) -> Assignment:
    return a._replace(parts=(*a.parts[:index], part, *a.parts[index + 1 :]))


def _sorted(
    ranks: tuple[int, ...], modes: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Devices of a stage stand in the order of their ranks."""
    pairs = sorted(zip(ranks, modes, strict=True))
    return tuple(rank for rank, _ in pairs), tuple(mode for _, mode in pairs)


def _joined(stage: Draft, rank: int, mode: int) -> Draft:
    ranks, modes = _sorted((*stage.ranks, rank), (*stage.modes, mode))
    return stage._replace(ranks=ranks, modes=modes)


def _without(stage: Draft, i: int) -> Draft:
    return stage._replace(
        ranks=stage.ranks[:i] + stage.ranks[i + 1 :], modes=stage.modes[:i] + stage.modes[i + 1 :]
    )


def _replaced(stage: Draft, i: int, rank: int, mode: int) -> Draft:
    return _joined(_without(stage, i), rank, mode)


def _absorbed(stages: list[Draft], index: int, neighbour: int) -> list[Draft]:
    """Take a stage away and give its blocks to the one beside it."""
    gone = stages[index]
    found = list(stages)
    found[neighbour] = found[neighbour]._replace(
        first=min(gone.first, stages[neighbour].first), stop=max(gone.stop, stages[neighbour].stop)
    )
    del found[index]
    return found
