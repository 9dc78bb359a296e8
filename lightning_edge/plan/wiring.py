"""From an assignment to what the simulator runs: seconds, messages and sums by instruction.

An instruction's code is its micro-batch m for a forward and M + m for a backward, so that a message
and the instruction that waits for it have the same code:

    stage 0   F m  --- code m, forward_bytes x rows --->   F m   stage 1
              B m  <-- code M + m, backward_bytes x rows   B m
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from lightning_edge.plan.assignment import Assignment, Part
from lightning_edge.plan.costs import Costs
from lightning_edge.plan.instruction import Instruction, Op
from lightning_edge.plan.network import Network, Ring
from lightning_edge.plan.rows import Interval, micro_batch_bounds, row_intervals
from lightning_edge.plan.schedule import stage_list

__all__: list[str] = []

REDUCE, STEP = -1, -2
_BUCKET_BYTES = 4 << 20  # what train.gradients sums at once
_MOST_BUCKETS = 16  # finer steps of a long reduction would tell nothing more

Send = tuple[int, int, float]
"""To which rank, with which code, how many bytes."""
_NONE: tuple[Send, ...] = ()


@dataclass
class Sum:
    """Gradients of one set of holders.

    Attributes:
        ring: Who and at what cost.
        buckets: Bytes of each.
        ready: By rank, per bucket, the share of the last backward after which it is final; empty
            for a rank whose reduction begins after it.
    """

    ring: Ring
    buckets: tuple[float, ...]
    ready: dict[int, tuple[float, ...]] = field(default_factory=dict)


@dataclass
class Work:
    """One step of one assignment; lists are indexed by rank, those inside by code."""

    size: int
    micro_batches: int
    lists: list[Sequence[int]]
    seconds: list[list[float]]
    needs: list[list[int]]
    sends: list[list[tuple[Send, ...]]]
    step_s: list[float]
    compute_s: list[float]
    copying_s: list[float]
    sums: list[Sum]
    parcels: list[Send]
    owner: int | None = None
    pair_bytes: dict[int, float] = field(default_factory=dict)

    def count(self, source: int, target: int, amount: float) -> None:
        """Count the bytes of a message."""
        pair = source * self.size + target
        self.pair_bytes[pair] = self.pair_bytes.get(pair, 0.0) + amount


@lru_cache(maxsize=4096)
def encoded(depth: int, micro_batches: int, first: bool) -> tuple[int, ...]:
    """The instruction list of a stage as codes."""
    return encode(stage_list(depth, micro_batches, first=first), micro_batches)


def encode(line: Sequence[Instruction], micro_batches: int) -> tuple[int, ...]:
    """Instructions as codes."""
    codes = []
    for op, m in line:
        if m is None:
            codes.append(REDUCE if op is Op.REDUCE else STEP)
        else:
            codes.append(m if op is Op.FORWARD else micro_batches + m)
    return tuple(codes)


@lru_cache(maxsize=4096)
def spread(rows: tuple[int, ...], micro_batches: int) -> tuple[tuple[Interval, ...], ...]:
    """For each device of a stage its rows in each micro-batch."""
    bounds = micro_batch_bounds(sum(rows), micro_batches)
    return tuple(zip(*row_intervals(rows, bounds), strict=True))


@lru_cache(maxsize=4096)
def _edges(
    front: tuple[int, ...], behind: tuple[int, ...], micro_batches: int
) -> tuple[tuple[tuple[int, int, int], ...], ...]:
    """Per micro-batch (sender, receiver, rows) between two stages, as positions in them."""
    found = []
    senders, receivers = spread(front, micro_batches), spread(behind, micro_batches)
    for m in range(micro_batches):
        row = []
        for i, sender in enumerate(senders):
            for j, receiver in enumerate(receivers):
                shared = min(sender[m][1], receiver[m][1]) - max(sender[m][0], receiver[m][0])
                if shared > 0:
                    row.append((i, j, shared))
        found.append(tuple(row))
    return tuple(found)


def wire(
    assignment: Assignment,
    costs: Costs,
    network: Network,
    owner: int | None,
    lists: Mapping[int, Sequence[int]] | None = None,
) -> Work:
    """Return the work of one training step.

    Args:
        assignment: What to do.
        costs: Seconds and bytes.
        network: Paths.
        owner: Who sends each device its rows of the next batch; None if everybody has them.
        lists: Instructions as codes by rank, instead of those of 1F1B.

    Raises:
        NoLinkError: If two devices have to talk and cannot.
    """
    size, micro_batches = network.size, assignment.micro_batches
    codes = 2 * micro_batches
    work = Work(
        size, micro_batches, [()] * size, [[]] * size, [[]] * size, [[]] * size,
        [0.0] * size, [0.0] * size, [0.0] * size, [], [], owner,
    )  # fmt: skip
    for index, part in enumerate(assignment.parts):
        line = encoded(part.depth, micro_batches, index == 0)
        for i, rank in enumerate(part.ranks):
            work.lists[rank] = line if lists is None else lists[rank]
            work.needs[rank] = [0] * codes
            work.sends[rank] = [_NONE] * codes
            _time(work, costs, part, i)
    for index in range(1, len(assignment.parts)):
        _connect(work, costs, network, assignment.parts[index - 1], assignment.parts[index])
    work.sums = _sums(assignment, costs, network)
    if owner is not None and costs.profile.model.batch_bytes:
        for part in assignment.parts:
            for rank, rows in zip(part.ranks, part.rows, strict=True):
                if rank != owner and rows:
                    network.path(owner, rank)
                    amount = rows * costs.profile.model.batch_bytes
                    work.parcels.append((rank, 0, amount))
                    work.count(owner, rank, amount)
                    work.copying_s[owner] += amount * costs.devices[owner].copy_s_per_byte
                    work.copying_s[rank] += amount * costs.devices[rank].copy_s_per_byte
    return work


def _time(work: Work, costs: Costs, part: Part, i: int) -> None:
    """Fill in how long the instructions of a stage's i-th device take."""
    rank, mode = part.ranks[i], part.modes[i]
    counts = [stop - start for start, stop in spread(part.rows, work.micro_batches)[i]]
    passes = {
        rows: costs.pass_s(rank, mode, part.first, part.stop, rows, part.checkpoint)
        for rows in set(counts)
    }
    work.seconds[rank] = [passes[n][0] for n in counts] + [passes[n][1] for n in counts]
    work.compute_s[rank] = sum(work.seconds[rank])
    work.step_s[rank] = costs.step_s(rank, mode, part.first, part.stop)
    work.compute_s[rank] += work.step_s[rank]


def _connect(work: Work, costs: Costs, network: Network, front: Part, behind: Part) -> None:
    """Fill in the messages between two stages."""
    ahead, back = costs.crossing_bytes(behind.first)
    micro_batches = work.micro_batches
    checked = set()
    for m, row in enumerate(_edges(front.rows, behind.rows, micro_batches)):
        for i, j, rows in row:
            a, b = front.ranks[i], behind.ranks[j]
            if (i, j) not in checked:
                checked.add((i, j))
                network.path(a, b)
                network.path(b, a)
            _message(work, costs, a, b, m, rows * ahead)
            if back:
                _message(work, costs, b, a, micro_batches + m, rows * back)


def _message(work: Work, costs: Costs, a: int, b: int, code: int, amount: float) -> None:
    sends = work.sends[a]
    sends[code] = (*sends[code], (b, code, amount)) if sends[code] else ((b, code, amount),)
    work.needs[b][code] += 1
    pair = a * work.size + b
    work.pair_bytes[pair] = work.pair_bytes.get(pair, 0.0) + amount
    pack, unpack = costs.devices[a].copy_s_per_byte, costs.devices[b].copy_s_per_byte
    if pack:
        work.copying_s[a] += amount * pack
    if unpack:
        work.seconds[b][code] += amount * unpack
        work.copying_s[b] += amount * unpack


def _sums(assignment: Assignment, costs: Costs, network: Network) -> list[Sum]:
    """The reductions of all sets of holders."""
    # (gradient bytes, block, stages) of what is not a stage's own
    wanted: dict[tuple[int, ...], list[tuple[float, int]]] = {}
    for part in assignment.parts:
        if len(part.ranks) > 1:
            entries = wanted.setdefault(tuple(sorted(part.ranks)), [])
            entries += [
                (costs.blocks[b].gradient_bytes, b)
                for b in range(part.stop - 1, part.first - 1, -1)
            ]
    for users, shared in costs.shared:
        holders = tuple(
            sorted(
                rank
                for part in assignment.parts
                if any(part.first <= user < part.stop for user in users)
                for rank in part.ranks
            )
        )
        if len(holders) > 1:
            wanted.setdefault(holders, []).append((shared.gradient_bytes, users[0]))
    sums = []
    head = assignment.parts[0]
    for holders, entries in wanted.items():
        total = sum(amount for amount, _ in entries)
        if not total:
            continue
        overlapping = [rank for rank in holders if rank in head.ranks]
        number = min(max(1, round(total / _BUCKET_BYTES)), _MOST_BUCKETS) if overlapping else 1
        found = Sum(network.ring(holders), (total / number,) * number)
        for rank in overlapping:
            found.ready[rank] = _ready(costs, head, rank, entries, total, number)
        sums.append(found)
    return sums


def _ready(
    costs: Costs, head: Part, rank: int, entries: list[tuple[float, int]], total: float, number: int
) -> tuple[float, ...]:
    """After which shares of the first stage's backward the buckets are final."""
    i = head.ranks.index(rank)
    rows = max(1, head.rows[i])
    backward = costs.table(rank, head.modes[i], rows)[1]
    whole = backward[head.stop] - backward[head.first]
    ready: list[float] = []
    filled = 0.0
    for amount, block in entries:
        filled += amount
        # a block behind the first stage, of tied parameters, is no reason to wait
        done = (backward[head.stop] - backward[max(min(block, head.stop), head.first)]) / (
            whole or 1.0
        )
        while len(ready) < number and filled >= (len(ready) + 1) * total / number * (1 - 1e-9):
            ready.append(done)
    return tuple(ready)
