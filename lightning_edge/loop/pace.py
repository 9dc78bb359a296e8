"""How long training steps take, from the start of one to the start of the next."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable

__all__: list[str] = []

KEPT = 2000
WARM_UP = 2  # the first steps make buffers, optimizer state and caches


class Pace:
    """Times the steps of a training; a step that something else interrupts does not count.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._begun_s: float | None = None
        self._seen = 0
        self.steps_s: deque[float] = deque(maxlen=KEPT)

    def begin(self) -> None:
        """A training step begins."""
        now_s = self._clock()
        if self._begun_s is not None:
            self._seen += 1
            if self._seen > WARM_UP:
                self.steps_s.append(now_s - self._begun_s)
        self._begun_s = now_s

    def interrupt(self) -> None:
        """Something other than training begins: a validation, the end of an epoch."""
        self._begun_s = None

    @property
    def median_s(self) -> float | None:
        """The median step; None until there are some."""
        return statistics.median(self.steps_s) if self.steps_s else None
