"""What stages would cost: matrices over all stretches of blocks, for devices i..j of an order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_edge.plan.network import NoLinkError
from lightning_edge.plan.rules import Rules
from lightning_edge.plan.shaping import Shaper

__all__: list[str] = []

Array = NDArray[np.float64]
Room = tuple[float, int, float]
"""Of a device: bytes that it has, rows of a micro-batch, bytes of holes per byte kept."""
_LARGEST = 16  # devices that share a stage; larger ones come from the seeds


@dataclass
class StageCosts:
    """One stage on all stretches; entry [a, b] is for blocks between edges a and b.

    Attributes:
        pass_s: Forward and backward of a micro-batch on the slowest device; inf where memory lacks.
        busy_s: All of a step that does not wait: passes, summing, the optimizer.
        message_s: By edge b, of a micro-batch's messages both ways, to whoever is next.
        link_s: By edge b, of all messages of the busier way.
        dynamic_j: Joules above idle.
        idle_w: Of all devices of the stage.
    """

    pass_s: Array
    busy_s: Array
    message_s: Array
    link_s: Array
    dynamic_j: Array
    idle_w: float

    def values(self, rest: Array, step_s: float | None) -> Array:
        """Return what the stage and the rest behind it are worth, [a, b] for a < K.

        Args:
            rest: By edge b, the worth of the rest.
            step_s: None for seconds; else joules in steps of so many seconds.
        """
        if step_s is None:
            last = len(rest) - 1
            behind = self.pass_s + (self.message_s + rest)[None, :]
            behind[:, last] = rest[last]
            found = np.maximum(self.busy_s, behind)
            return np.maximum(found, self.link_s[None, :])
        joules = self.dynamic_j + self.idle_w * step_s + rest[None, :]
        limit = np.maximum(self.busy_s, self.link_s[None, :])
        return np.where(limit <= step_s, joules, np.inf)


class Segments:
    """The stages of one order of devices.

    Args:
        shaper: Knows costs, rows and limits.
        rules: Who may share a stage.
        order: Ranks along the pipeline.
        modes: By rank.
        number: Micro-batches.
        edges: Blocks at which stages may begin, then the number of blocks.
    """

    def __init__(
        self,
        shaper: Shaper,
        rules: Rules,
        order: Sequence[int],
        modes: Sequence[int],
        number: int,
        edges: Sequence[int],
    ) -> None:
        self.order, self.modes, self.edges = tuple(order), tuple(modes), tuple(edges)
        self.number = min(number, shaper.rows)
        self._shaper, self._rules, self._costs = shaper, rules, shaper.costs
        self._network = shaper.judge.simulator.network
        last = len(edges) - 1
        self.owner = np.zeros((len(order) + 1, last + 1), dtype=np.int64)
        self._upper = np.triu(np.ones((last, last + 1), dtype=bool), 1)
        if rules.cuts is not None:  # every cut asked for is one
            self._upper &= ~np.triu(np.ones((last, last + 1), dtype=bool), 2)
        if rules.side_by_side:
            self._upper[:] = False
            self._upper[0, last] = True
        self._stages: dict[tuple[int, int], tuple[StageCosts, Array, list[Room]]] = {}
        costs = self._costs
        cuts = [costs.crossing_bytes(e) if e < len(costs.blocks) else (0.0, 0.0) for e in edges]
        self._ahead = np.array([ahead for ahead, _ in cuts])
        self._back = np.array([back for _, back in cuts])
        self._state = self._spans([costs.state_bytes(0, e) if e else 0.0 for e in edges])
        self._kept = self._spans([costs.kept_bytes(0, e, False) for e in edges])
        self._inputs = self._spans([costs.kept_bytes(0, e, True) for e in edges])
        self._passing = costs.passing_bytes(0, len(costs.blocks), False)
        self._passing_again = costs.passing_bytes(0, len(costs.blocks), True)
        gradients = [sum(b.gradient_bytes for b in costs.blocks[:e]) for e in edges]
        self._gradients = self._spans(gradients)

    @staticmethod
    def _spans(sums: Sequence[float] | Array) -> Array:
        """Differences [a, b] of running sums at the edges, for a < K."""
        values = np.asarray(sums, dtype=np.float64)
        return np.asarray(values[None, :] - values[:-1, None])

    def ends(self, i: int) -> Iterator[int]:
        """Positions behind the last device of stages that begin with device i."""
        groups, order = self._rules.groups, self.order
        most = min(len(order), i + min(_LARGEST, self._shaper.rows // self._shaper.piece))
        if groups is None:
            yield from range(i + 1, most + 1)
            return
        if self._rules.side_by_side:
            if i == 0:
                yield len(order)
            return
        home = next(g for g in groups if order[i] in g.shares)
        size = next((n for n, r in enumerate(order[i:]) if r not in home.shares), len(order) - i)
        if home.parallelism == "pipeline":
            yield i + 1
        elif home.parallelism == "data":
            if i == 0 or order[i - 1] not in home.shares:
                yield i + size
        else:
            yield from range(i + 1, min(most, i + size) + 1)

    def stage(self, i: int, j: int, behind: NDArray[np.int64]) -> StageCosts | None:
        """Return the costs of a stage on devices i..j; None if they cannot talk.

        Args:
            i: Position of the first device.
            j: Position behind the last one.
            behind: By edge b, number of stages behind it, which the depth follows from.
        """
        if (i, j) not in self._stages:
            try:
                self._stages[i, j] = self._measure(i, j)
            except NoLinkError:
                return None
        costs, forward, devices = self._stages[i, j]
        if all(limit == float("inf") for limit, *_ in devices):
            return costs
        extra = self._extra(devices, behind, forward)
        return StageCosts(
            costs.pass_s + extra,
            costs.busy_s + self.number * extra,
            costs.message_s,
            costs.link_s,
            costs.dynamic_j,
            costs.idle_w,
        )

    def _measure(self, i: int, j: int) -> tuple[StageCosts, Array, list[Room]]:
        costs, number, rows = self._costs, self.number, self._shaper.rows
        ranks = self.order[i:j]
        blocks = len(costs.blocks)
        fair = max(1, rows // len(ranks) // number)
        pace = [1 / sum(costs.pass_s(r, self.modes[r], 0, blocks, fair, False)) for r in ranks]
        shape = self._upper.shape
        pass_s, forward_s, dynamic = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        step_s, idle = np.zeros(shape), 0.0
        devices = []
        for rank, speed in zip(ranks, pace, strict=True):
            mode, share = self.modes[rank], rows * speed / sum(pace) / number
            ahead, back = self._passes(rank, mode, share)
            own = ahead + back
            pass_s = np.maximum(pass_s, own)
            forward_s = np.maximum(forward_s, ahead)
            steps = [costs.step_s(rank, mode, 0, e) for e in self.edges]
            own_step = self._spans(steps) + costs.devices[rank].step_s
            step_s = np.maximum(step_s, own_step)
            watts = costs.power_w(rank, mode)
            if watts is not None:
                dynamic = dynamic + (watts[1] - watts[0]) * (number * own + own_step)
                idle += watts[0]
            limit = costs.devices[rank].memory_bytes
            holes = costs.devices[rank].holes_ratio * (1 - 1 / number)
            room = float("inf") if limit is None else limit - costs.devices[rank].holes_bytes
            devices.append((room, int(np.ceil(share)), holes))
        summing = np.zeros(shape)
        if len(ranks) > 1:
            ring = self._network.ring(ranks)
            summing = self._gradients * ring.seconds_per_byte + ring.latency_s
        pass_s = np.where(self._upper, pass_s, np.inf)
        message_s, link_s = self._messages(i, j)
        found = StageCosts(
            pass_s, number * pass_s + summing + step_s, message_s, link_s, dynamic, idle
        )
        return found, forward_s, devices

    def _passes(self, rank: int, mode: int, share: float) -> tuple[Array, Array]:
        """Seconds of forward and backward of a broken number of rows, as on average."""
        costs, low = self._costs, int(share)
        weight = share - low
        device = costs.devices[rank]
        sums = np.zeros((2, len(self.edges)))
        for rows, part in ((low, 1 - weight), (low + 1, weight)):
            if rows and part:
                table = costs.table(rank, mode, rows)
                sums += part * np.array([[each[e] for e in self.edges] for each in table])
        fixed = device.instruction_s * min(1.0, share)
        speed = costs.speeds[rank][mode]
        return self._spans(sums[0] / speed) + fixed, self._spans(sums[1] / speed) + fixed

    def _messages(self, i: int, j: int) -> tuple[Array, Array]:
        """By edge, seconds of a micro-batch's messages both ways, and of all of the busier way."""
        if j == len(self.order):
            zero = np.zeros(len(self.edges))
            return zero, zero
        source, target = self.order[j - 1], self.order[j]
        there = self._network.path(source, target)
        back = self._network.path(target, source)
        rows = self._shaper.rows
        ahead_s = self._ahead * rows * there.seconds_per_byte
        back_s = self._back * rows * back.seconds_per_byte
        both = (ahead_s + back_s) / self.number + there.latency_s + back.latency_s
        shared = bool(set(there.media) & set(back.media))
        return both, ahead_s + back_s if shared else np.maximum(ahead_s, back_s)

    def _extra(self, devices: Sequence[Room], behind: NDArray[np.int64], forward: Array) -> Array:
        """Seconds of computing again where memory asks for it; inf where that is too little."""
        number = self.number
        extra = np.zeros_like(forward)
        crossing = self._ahead + self._back
        for limit, rows, holes in devices:
            fits = np.zeros_like(extra, dtype=bool)
            again = np.zeros_like(extra, dtype=bool)
            for growth in (2, 1, 0):
                depth = np.minimum(growth * behind + 1, number)[None, :]
                ends = (depth + 2) * (crossing[None, :] + crossing[:-1, None])
                rest = self._state + rows * ends
                fits |= rest + rows * ((depth + holes) * self._kept + self._passing) <= limit
                again |= (
                    rest + rows * ((depth + holes) * self._inputs + self._passing_again) <= limit
                )
            extra = np.maximum(extra, np.where(fits, 0.0, np.where(again, forward, np.inf)))
        return extra
