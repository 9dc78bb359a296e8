"""Which phase the program was in, when: a list of time stamps that costs next to nothing to extend.

Kept as cumulative seconds per phase at every change, so that the share of any interval is two
look-ups::

    time      0      2      3          6
    phase     |compute|comm |  compute |
    compute   0      2      2          5        seconds up to then; linear in between
    comm      0      0      1          1        -> of [1, 3]: compute 1 s, comm 1 s
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from lightning_edge.errors import EnergyError

MAX_MARKS = 262_144
"""Beyond this many marks the older half is forgotten; its seconds stay in the totals."""


class Phase(str, Enum):
    """What a training process can be doing."""

    COMPUTE = "compute"
    COMMUNICATION = "communication"
    WAITING = "waiting"
    DATA = "data"
    EVALUATION = "evaluation"
    CHECKPOINT = "checkpoint"
    OTHER = "other"
    """Time without a mark."""


PHASES: tuple[str, ...] = tuple(phase.value for phase in Phase)
_INDEX: Mapping[str, int] = {name: number for number, name in enumerate(PHASES)}


class PhaseMarks:
    """The phases of one process. Only one thread marks; others may read.

    Args:
        clock: Monotonic seconds; the meter's clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._current = _INDEX["other"]
        self._now = [0.0] * len(PHASES)
        self._times = array("d", [clock()])
        self._seconds = array("d", self._now)

    @property
    def current(self) -> str:
        """The phase that goes on now."""
        return PHASES[self._current]

    def enter(self, phase: str) -> str:
        """Begin `phase` now, ending the one before, and return the name of the one before."""
        before = self._current
        number = _index(phase)
        if number != before:
            self._extend(self._clock(), {})
            self._current = number
        return PHASES[before]

    @contextmanager
    def phase(self, phase: str) -> Iterator[None]:
        """Be in `phase` inside the block, and afterwards in the phase before.

        Blocks nest: the inner one counts.
        """
        before = self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def split(self, **seconds: float) -> None:
        """Say how the time since the last mark was spent.

        For callers that keep sums and not time stamps.

        What is left over belongs to the phase that was entered. Seconds that ran side by side and
        so exceed the time that passed are scaled down together.

        Args:
            seconds: Seconds per phase, such as ``compute=0.8, waiting=0.1``.
        """
        self._extend(self._clock(), {_index(name): value for name, value in seconds.items()})

    def _extend(self, now_s: float, spent: Mapping[int, float]) -> None:
        passed_s = max(now_s - self._times[-1], 0.0)
        used_s = sum(max(value, 0.0) for value in spent.values())
        scale = passed_s / used_s if used_s > passed_s else 1.0
        for number, value in spent.items():
            self._now[number] += max(value, 0.0) * scale
        self._now[self._current] += max(passed_s - used_s * scale, 0.0)
        if len(self._times) >= MAX_MARKS:
            self._times = self._times[MAX_MARKS // 2 :]
            self._seconds = self._seconds[MAX_MARKS // 2 * len(PHASES) :]
        # Seconds first: another thread reads as many rows as there are times.
        self._seconds.extend(self._now)
        self._times.append(now_s)

    def seconds(self, start_s: float, stop_s: float) -> dict[str, float]:
        """Seconds per phase between two times; phases that did not occur are left out."""
        ends = self.table()(np.array([start_s, stop_s]))
        spent = ends[1] - ends[0]
        return {name: float(spent[k]) for k, name in enumerate(PHASES) if spent[k] > 1e-9}

    def table(self) -> PhaseTable:
        """A copy of what is marked so far, to evaluate at many times."""
        times = np.array(self._times[:])
        seconds = np.array(self._seconds[: len(times) * len(PHASES)])
        return PhaseTable(times, seconds.reshape(len(times), len(PHASES)), self._current)


@dataclass(frozen=True)
class PhaseTable:
    """Cumulative seconds per phase at the marks.

    Args:
        times_s: Time of each mark, shape ``[marks]``.
        seconds: Seconds per phase up to each mark, shape ``[marks, len(PHASES)]``.
        current: Index of the phase after the last mark.
    """

    times_s: NDArray[np.float64]
    seconds: NDArray[np.float64]
    current: int

    def __call__(self, at_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Seconds per phase up to each of `at_s`, shape ``[len(at_s), len(PHASES)]``.

        Before the first mark that is remembered everything is "other"; after the last one its
        phase goes on.
        """
        right = np.clip(np.searchsorted(self.times_s, at_s), 1, max(len(self.times_s) - 1, 1))
        if len(self.times_s) > 1:
            t0, t1 = self.times_s[right - 1], self.times_s[right]
            share = np.clip((at_s - t0) / np.maximum(t1 - t0, 1e-12), 0.0, 1.0)[:, None]
            found = (1 - share) * self.seconds[right - 1] + share * self.seconds[right]
        else:
            found = np.repeat(self.seconds, len(at_s), axis=0)
        found[:, self.current] += np.maximum(at_s - self.times_s[-1], 0.0)
        found[:, _INDEX["other"]] -= np.maximum(self.times_s[0] - at_s, 0.0)
        return found

    def series(
        self, start_s: float, stop_s: float, bins: int = 120
    ) -> list[tuple[float, dict[str, float]]]:
        """``(end in s since start_s, seconds per phase)`` of `bins` equal parts of a window."""
        edges = np.linspace(start_s, stop_s, bins + 1)
        parts = np.diff(self(edges), axis=0)
        return [
            (
                float(end - start_s),
                {name: float(row[k]) for k, name in enumerate(PHASES) if row[k] > 1e-9},
            )
            for end, row in zip(edges[1:], parts, strict=True)
        ]


def _index(phase: str) -> int:
    try:
        return _INDEX[phase]
    except KeyError:
        raise EnergyError(f"there is no phase {phase!r}; phases are {', '.join(PHASES)}") from None
