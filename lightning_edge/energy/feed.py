"""One source at work: its readings go into traces, its failures into notes.

Its cost sets its pace.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from lightning_edge.energy.domain import Provenance, Reading
from lightning_edge.energy.source import PowerSource, SourceLost
from lightning_edge.energy.trace import Trace

__all__: list[str] = []

log = logging.getLogger(__name__)

CPU_SHARE = 0.004
"""Polling slows down until a source costs less than this share of one core; 0.5 % is promised."""

COARSE_S = 0.05
"""From this update period on, counters are asked more often than they move."""

FASTEST_S = 0.02
"""No source is asked more often than this in the mean."""

MAX_BACKOFF = 64
"""A source that keeps failing is asked at most this many times less often."""


class Feed:
    """Reads one source and keeps what it said.

    Args:
        source: The source; closed with the feed.
        period_s: Wanted mean time between two readings, in seconds.
        clock: Monotonic seconds.
        cpu_clock: CPU seconds of the calling thread.
    """

    def __init__(
        self,
        source: PowerSource,
        period_s: float,
        clock: Callable[[], float],
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self.source = source
        self.traces = {domain.id: Trace() for domain in source.domains}
        self.aux: dict[str, float] = {}
        self.notes: list[str] = []
        self.lost = False
        self.reads = 0
        self.cost_s = self.overhead_s = self.last_cpu_s = 0.0
        self._clock, self._cpu_clock = clock, cpu_clock
        self._failures = 0
        self._update_s = {domain.id: domain.update_period_s for domain in source.domains}
        # No use in asking a battery gauge that moves twice a minute ten times a second.
        quickest_s = min(self._update_s.values(), default=0.0)
        if (
            all(d.provenance is Provenance.COUNTER for d in source.domains)
            and quickest_s >= COARSE_S
        ):
            # When a coarse counter moves is seen to a quarter of its step: phases need that.
            period_s = min(period_s, max(0.25 * quickest_s, FASTEST_S))
        self._period_s = max(period_s, 0.25 * quickest_s)
        self._gap_s: float = getattr(source, "gap_s", 0.0)
        self._spawns: bool = getattr(source, "spawns", False)
        self._clock_cost = clock if self._spawns else cpu_clock

    @property
    def interval_s(self) -> float:
        """Mean time to the next reading.

        The wanted period, longer for a costly or failing source.
        """
        pace_s = max(self._period_s, (self.cost_s + self.overhead_s) / CPU_SHARE)
        return pace_s * min(2**self._failures, MAX_BACKOFF) if self._failures > 2 else pace_s

    def read(self) -> None:
        """Read once. Never raises: a failure lowers the coverage and leaves a note."""
        if self.lost:
            return
        before_s = self._clock_cost()
        try:
            reading = self.source.read()
        except SourceLost as error:
            self.lost = True
            self._note(f"{self.source.kind} was lost: {error}")
            self.close()
            return
        except Exception as error:  # a user's source may raise anything, and training must go on
            self._failures += 1
            self._note(
                f"{self.source.kind} could not be read at times: {type(error).__name__}: {error}"
            )
            return
        spent_s = max(self._clock_cost() - before_s, 0.0)
        self.last_cpu_s = 0.0 if self._spawns else spent_s
        # The first reading opens files and warms caches: the running mean forgets it.
        self.cost_s = spent_s if self.reads <= 1 else 0.9 * self.cost_s + 0.1 * spent_s
        self.reads += 1
        self._failures = 0
        self._store(reading)

    def charge(self, overhead_s: float) -> None:
        """Take a share of what polling costs beside the reading itself: waking up, keeping it."""
        self.overhead_s += 0.1 * (max(overhead_s, 0.0) - self.overhead_s)

    def _store(self, reading: Reading) -> None:
        for key, energy_j in reading.energy_j.items():
            if not self._sane(key, energy_j):
                continue
            broken = key in reading.broken
            if self.traces[key].add_counter(reading.t_s, energy_j, broken=broken):
                self._note(f"the counter of {key} started anew; the joules just before are unknown")
        for key, power_w in reading.power_w.items():
            if not self._sane(key, power_w):
                continue
            gap_s = max(5.0 * self.interval_s, 3.0 * self._update_s[key], self._gap_s)
            self.traces[key].add_power(reading.t_s, power_w, gap_s=gap_s)
        self.aux.update(reading.aux)

    def _sane(self, key: str, value: float) -> bool:
        if math.isfinite(value) and value >= 0:
            return True
        self._note(f"{key} said {value}, which was ignored")
        return False

    def _note(self, text: str) -> None:
        if text not in self.notes and len(self.notes) < 20:
            self.notes.append(text)
            log.warning("Energy: %s", text)

    def close(self) -> None:
        """Close the source."""
        try:
            self.source.close()
        except Exception as error:
            log.debug("closing %s: %s", self.source.kind, error)
