"""What a profile's numbers come to for a stretch of blocks on a device: seconds and bytes.

Everything is a difference of two running sums, so that a planner can ask millions of times:

    forward_s    0.0   0.1   0.3   0.6         seconds in front of block 0, 1, 2, 3
    blocks            [ 0 ] [ 1 ] [ 2 ]        blocks 1..3 take 0.6 - 0.1 s
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

from lightning_edge.errors import ProfileError
from lightning_edge.plan.profile import Profile

__all__: list[str] = []

Sums = tuple[float, ...]


def _sums(values: Iterable[float]) -> Sums:
    return tuple(accumulate(values, initial=0.0))


class Costs:
    """Seconds and bytes by rank, index of the power mode, and blocks `first..stop`.

    Args:
        profile: Complete.

    Raises:
        ProfileError: With everything that is missing.
    """

    def __init__(self, profile: Profile) -> None:
        lacking = profile.missing()
        if lacking:
            raise ProfileError(lacking)
        self.profile = profile
        self.devices = profile.devices
        blocks = self.blocks = profile.model.blocks
        self._keys = [[mode.timing or d.timing for mode in d.modes] for d in profile.devices]
        self.speeds = [[mode.speed for mode in d.modes] for d in profile.devices]
        self._seconds: dict[tuple[str, int], tuple[Sums, Sums]] = {}
        self._steps = {
            key: _sums(block.timings[key].step_s for block in blocks)
            for keys in self._keys
            for key in keys
        }
        self._state = _sums(
            b.parameter_bytes + b.gradient_bytes + b.optimizer_bytes for b in blocks
        )
        self._kept = _sums(b.activation_bytes for b in blocks)
        self._inputs = _sums(b.checkpoint_bytes for b in blocks)
        index = {block.name: i for i, block in enumerate(blocks)}
        self.shared = [
            (tuple(sorted(index[name] for name in s.blocks)), s) for s in profile.model.shared
        ]

    def table(self, rank: int, mode: int, rows: int) -> tuple[Sums, Sums]:
        """Running sums of forward and backward seconds over the blocks, at speed 1."""
        key = (self._keys[rank][mode], rows)
        found = self._seconds.get(key)
        if found is None:
            timings = [block.timings[key[0]] for block in self.blocks]
            found = (
                _sums(timing.forward(rows) for timing in timings),
                _sums(timing.backward(rows) for timing in timings),
            )
            self._seconds[key] = found
        return found

    def pass_s(
        self, rank: int, mode: int, first: int, stop: int, rows: int, checkpoint: bool
    ) -> tuple[float, float]:
        """Seconds of one forward and one backward; with `checkpoint` the latter recomputes."""
        if rows == 0:
            return 0.0, 0.0
        forward, backward = self.table(rank, mode, rows)
        speed, fixed = self.speeds[rank][mode], self.devices[rank].instruction_s
        ahead = (forward[stop] - forward[first]) / speed
        back = (backward[stop] - backward[first]) / speed
        return ahead + fixed, back + (ahead if checkpoint else 0.0) + fixed

    def step_s(self, rank: int, mode: int, first: int, stop: int) -> float:
        """Seconds of the optimizer's step, and what else each step costs."""
        sums = self._steps[self._keys[rank][mode]]
        return (sums[stop] - sums[first]) / self.speeds[rank][mode] + self.devices[rank].step_s

    def state_bytes(self, first: int, stop: int) -> float:
        """Parameters, gradients and optimizer state, shared ones included once."""
        total = self._state[stop] - self._state[first]
        for users, shared in self.shared:
            if any(first <= user < stop for user in users):
                total += shared.parameter_bytes + shared.gradient_bytes + shared.optimizer_bytes
        return total

    def kept_bytes(self, first: int, stop: int, checkpoint: bool) -> float:
        """Per row, what one micro-batch in flight keeps from forward to backward."""
        sums = self._inputs if checkpoint else self._kept
        return sums[stop] - sums[first]

    def passing_bytes(self, first: int, stop: int, checkpoint: bool) -> float:
        """Per row, what is needed only while a block computes; the largest block's."""
        return max(
            block.workspace_bytes + (block.activation_bytes if checkpoint else 0.0)
            for block in self.blocks[first:stop]
        )

    def crossing_bytes(self, block: int) -> tuple[float, float]:
        """Per row, what crosses the cut in front of a block forwards and backwards."""
        return self.blocks[block].forward_bytes, self.blocks[block].backward_bytes

    def power_w(self, rank: int, mode: int) -> tuple[float, float, float] | None:
        """Watts while idle, computing and communicating; None if some are unknown."""
        found = self.devices[rank].modes[mode]
        if found.idle_w is None or found.compute_w is None or found.communication_w is None:
            return None
        return found.idle_w, found.compute_w, found.communication_w

    def mode_index(self, rank: int, name: str | None) -> int:
        """The index of a device's power mode; of its current one for `None`."""
        device = self.devices[rank]
        return device.modes.index(device.power_mode(name))
