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
"""Beyond this many marks every other one of the older half is forgotten: seconds stay exact at the
marks that are left."""


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
        # Time of each mark, and seconds per phase up to it; together, as other threads read them.
        self._rows = array("d", [clock()]), array("d", self._now)

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

    def insert(self, start_s: float, stop_s: float, seconds: Mapping[str, float]) -> None:
        """Say how a stretch of time that is over was spent: its phases one after the other.

        The time from the last mark to `start_s`, and what is left over at the stretch's end, belong
        to the phase that was entered. Stretches come in order; what lies before the last mark is
        known already and ignored.

        Args:
            start_s: Start of the stretch, by the meter's clock.
            stop_s: Its end.
            seconds: Seconds per phase, in their order.
        """
        if stop_s <= self._rows[0][-1]:
            return
        self._extend(start_s, {})
        for name, value in seconds.items():
            start_s += max(value, 0.0)
            self._extend(min(start_s, stop_s), {_index(name): value})
        self._extend(stop_s, {})

    def _extend(self, now_s: float, spent: Mapping[int, float]) -> None:
        times, seconds = self._rows
        now_s = max(now_s, times[-1])
        passed_s = now_s - times[-1]
        used_s = sum(max(value, 0.0) for value in spent.values())
        scale = passed_s / used_s if used_s > passed_s else 1.0
        for number, value in spent.items():
            self._now[number] += max(value, 0.0) * scale
        self._now[self._current] += max(passed_s - used_s * scale, 0.0)
        if len(times) >= MAX_MARKS:
            self._rows = times, seconds = _thinned(times, seconds)
        # Seconds first: another thread reads as many rows as there are times.
        seconds.extend(self._now)
        times.append(now_s)

    def seconds(self, start_s: float, stop_s: float) -> dict[str, float]:
        """Seconds per phase between two times; phases that did not occur are left out."""
        ends = self.table()(np.array([start_s, stop_s]))
        spent = ends[1] - ends[0]
        return {name: float(spent[k]) for k, name in enumerate(PHASES) if spent[k] > 1e-9}

    def table(self) -> PhaseTable:
        """A copy of what is marked so far, to evaluate at many times."""
        rows = self._rows
        times = np.array(rows[0][:])
        seconds = np.array(rows[1][: len(times) * len(PHASES)])
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


def _thinned(times: array[float], seconds: array[float]) -> tuple[array[float], array[float]]:
    """Every other row of the older half, the first one included, and all of the newer half."""
    half, width = len(times) // 2, len(PHASES)
    older = np.array(seconds[: half * width]).reshape(half, width)
    return times[:half:2] + times[half:], array("d", older[::2].ravel()) + seconds[half * width :]


def _index(phase: str) -> int:
    try:
        return _INDEX[phase]
    except KeyError:
        raise EnergyError(f"there is no phase {phase!r}; phases are {', '.join(PHASES)}") from None
