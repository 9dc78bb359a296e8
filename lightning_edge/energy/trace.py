"""The joules of one domain as a function of time, from counter readings or power samples.

Legend: ``e(t)`` joules since the first reading, ``c(t)`` seconds for which they are known. Between
two points both are linear, so any window is a difference and adjoining windows add up exactly::

    counter   e grows by the counter's difference, also across failed reads: a counter counts on
    sampled   e grows by the trapezoid of two samples, unless they lie further apart than `gap_s`
    gap       e and c stay flat: the joules are unknown, and coverage = (c2 - c1) / (t2 - t1) tells

         c ^        _____/        a gap of a sampled domain: nothing is made up,
           |   ____/  ^           nothing is claimed either
           |__/     gap
           +---------------> t
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

__all__: list[str] = []

MAX_POINTS = 65_536
"""Beyond this many points (almost two hours at 10 Hz).

The older half is thinned to every other point.
"""


@dataclass(frozen=True)
class Slice:
    """A domain between two times.

    Args:
        energy_j: Joules that are known.
        covered_s: Seconds for which they are known.
        max_power_w: Greatest mean power between two neighbouring readings; None if nothing is
            known.
    """

    energy_j: float
    covered_s: float
    max_power_w: float | None


class Trace:
    """Collects readings of one domain and tells its joules between any two times.

    Times must not go back; a reading at the time of the last one replaces nothing and is ignored.
    """

    def __init__(self) -> None:
        self._t, self._e, self._c = array("d"), array("d"), array("d")
        self._last_counter_j: float | None = None
        self._last_power_w: float | None = None
        self._last_sample_s = 0.0
        self._samples = (array("d"), array("d"))

    def __len__(self) -> int:
        return len(self._t)

    def add_counter(self, t_s: float, counter_j: float, *, broken: bool = False) -> bool:
        """Take a cumulative reading; `broken` or a falling counter means that it started anew.

        Returns:
            Whether the counter started anew, so that the joules since the last reading are unknown.
        """
        before = self._last_counter_j
        restarted = before is not None and (broken or counter_j < before)
        if self._t and t_s <= self._t[-1] and not restarted:
            return False  # no time to put the joules in: the next reading brings them
        self._last_counter_j = counter_j
        if before is None or restarted:
            self._grow(t_s, 0.0, known=False)
        else:
            self._grow(t_s, counter_j - before, known=True)
        return restarted

    def add_power(self, t_s: float, power_w: float, *, gap_s: float) -> None:
        """Take a power sample; joules are known back to the last one if at most `gap_s` ago."""
        before, since = self._last_power_w, self._last_sample_s
        self._last_power_w, self._last_sample_s = power_w, t_s
        for column, value in zip(self._samples, (t_s, power_w), strict=True):
            column.append(value)
            if len(column) > MAX_POINTS:
                del column[: MAX_POINTS // 2]
        width_s = t_s - since
        if before is None or width_s > gap_s:
            self._grow(t_s, 0.0, known=False)
        else:
            self._grow(t_s, 0.5 * (before + power_w) * width_s, known=True)

    def _grow(self, t_s: float, energy_j: float, *, known: bool) -> None:
        if not self._t:
            self._append(t_s, 0.0, 0.0)
        elif t_s > self._t[-1]:
            covered_s = t_s - self._t[-1] if known else 0.0
            self._append(t_s, self._e[-1] + energy_j, self._c[-1] + covered_s)

    def _append(self, t_s: float, energy_j: float, covered_s: float) -> None:
        self._t.append(t_s)
        self._e.append(energy_j)
        self._c.append(covered_s)

    def at(self, t_s: float) -> tuple[float, float]:
        """Joules and known seconds up to `t_s`.

        Flat before the first reading and after the last.
        """
        if not self._t:
            return 0.0, 0.0
        right = bisect_left(self._t, t_s)
        if right == len(self._t):
            return self._e[-1], self._c[-1]
        if right == 0 or self._t[right] == t_s:
            return self._e[right], self._c[right]
        left = right - 1
        share = (t_s - self._t[left]) / (self._t[right] - self._t[left])
        return (
            self._e[left] + share * (self._e[right] - self._e[left]),
            self._c[left] + share * (self._c[right] - self._c[left]),
        )

    def between(self, start_s: float, stop_s: float, *, min_s: float = 0.0) -> Slice:
        """What is known of the time from `start_s` to `stop_s`.

        The maximum is over means of `min_s` or longer.
        """
        e0, c0 = self.at(start_s)
        e1, c1 = self.at(stop_s)
        powers = [p for _, _, p in self.powers(start_s, stop_s, min_s=min_s)]
        covered_s = min(max(c1 - c0, 0.0), max(stop_s - start_s, 0.0))
        return Slice(max(e1 - e0, 0.0), covered_s, max(powers, default=None))

    def powers(
        self, start_s: float, stop_s: float, *, min_s: float = 0.0
    ) -> list[tuple[float, float, float]]:
        """``(t0, t1, mean watts)`` of the known stretches inside the window.

        None shorter than `min_s`.

        A counter that moves every 100 ms, read twice within 1 ms, would else show a hundredfold
        power.
        """
        found = []
        t0, (e0, c0) = start_s, self.at(start_s)
        first = bisect_right(self._t, start_s)
        last = bisect_left(self._t, stop_s)
        for t1 in (*self._t[first:last], stop_s):
            if t1 - t0 < min_s or t1 <= t0:
                continue
            e1, c1 = self.at(t1)
            if c1 > c0:
                found.append((t0, t1, (e1 - e0) / (c1 - c0)))
            t0, e0, c0 = t1, e1, c1
        return found

    def steps(
        self, start_s: float, stop_s: float, *, update_s: float
    ) -> list[tuple[float, float, float]]:
        """``(t0, t1, mean watts)`` between the moves of a counter that moves every `update_s`.

        A reading shows the joules of the last move, which was some time since the reading before
        and at most `update_s` ago: half of that is taken off its time. Restarts and gaps of the
        counter are left out.
        """
        found = []
        first = bisect_left(self._t, start_s)
        last = bisect_right(self._t, stop_s)
        moved_s: float | None = None
        moved_j = 0.0
        for i in range(max(first, 1), last):
            if self._c[i] <= self._c[i - 1]:
                moved_s = None
            elif self._e[i] > self._e[i - 1]:
                now_s = self._t[i] - 0.5 * min(self._t[i] - self._t[i - 1], update_s)
                if moved_s is not None and now_s > moved_s:
                    found.append((moved_s, now_s, (self._e[i] - moved_j) / (now_s - moved_s)))
                moved_s, moved_j = now_s, self._e[i]
        return found

    def samples(self, start_s: float, stop_s: float) -> tuple[array[float], array[float]]:
        """Times and watts of the newest power samples inside the window.

        As the sensor gave them.
        """
        times, powers = self._samples
        part = slice(bisect_left(times, start_s), bisect_right(times, stop_s))
        return times[part], powers[part]

    def thin(self, keep: Iterable[float], *, limit: int = MAX_POINTS) -> None:
        """Drop every other point of the older half once there are more than `limit`.

        Exact at the times `keep`.
        """
        if len(self._t) <= limit:
            return
        half = len(self._t) // 2
        border_s = self._t[half]
        pinned = [t for t in keep if self._t[0] < t < border_s]
        old = {self._t[i]: (self._e[i], self._c[i]) for i in range(0, half, 2)}
        old.update({t: self.at(t) for t in pinned})
        times = sorted(old)
        self._t = array("d", times) + self._t[half:]
        self._e = array("d", [old[t][0] for t in times]) + self._e[half:]
        self._c = array("d", [old[t][1] for t in times]) + self._c[half:]
