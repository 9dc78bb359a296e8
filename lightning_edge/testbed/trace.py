"""Bandwidth over time: a recorded trace from a file, or a made one with measured statistics."""

from __future__ import annotations

import bisect
import csv
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np

from lightning_edge.errors import TestbedError

__all__: list[str] = []

WIFI_INDOORS = "wifi-indoors"
SLOWEST_MBIT = 0.01  # a link at rate 0 is a cut; tc needs a rate

# Indoor Wi-Fi of a moving robot, statistics over 4458 seconds of the public logs of
# mobicom25paper676/intraDP (the recording itself carries no licence and is not shipped): quantiles
# of the bandwidth, and the correlation in time of its normal scores, which is near
# 0.82 x 0.981^k at k seconds (0.80 at 1 s, 0.70 at 10 s, 0.48 at 30 s).
_QUANTILES = ((0, 1), (0.05, 2), (0.25, 8), (0.5, 10), (0.75, 13), (0.95, 18), (0.99, 26), (1, 29))
_MBIT_PER_MB_S = 8.0
_SLOW_SHARE, _SLOW_MEMORY = 0.82, 0.981


@dataclass(frozen=True)
class Trace:
    """A rate that changes in steps, repeated when it ends.

    Args:
        times_s: Start of each step in seconds, rising, the first one 0.
        rates_mbit: Megabits per second from that moment on.
        period_s: Seconds after which the trace starts again.
        name: Where it comes from, for messages.
    """

    times_s: tuple[float, ...]
    rates_mbit: tuple[float, ...]
    period_s: float
    name: str

    def rate_mbit(self, time_s: float) -> float:
        """Return the rate `time_s` seconds after the start."""
        step = bisect.bisect_right(self.times_s, time_s % self.period_s) - 1
        return max(self.rates_mbit[max(step, 0)], SLOWEST_MBIT)

    @property
    def mean_mbit(self) -> float:
        """Return the mean over one period, weighted by time."""
        ends = (*self.times_s[1:], self.period_s)
        spans = [end - start for start, end in zip(self.times_s, ends, strict=True)]
        return math.fsum(r * s for r, s in zip(self.rates_mbit, spans, strict=True)) / self.period_s


def load_trace(source: str | Path) -> Trace:
    """Return the built-in trace of that name, or read a CSV file.

    Args:
        source: `wifi-indoors`, or a file with a header and the columns `t_s` (seconds, rising) and
            `mbit` (megabits per second).

    Raises:
        TestbedError: If the file cannot be read as such a trace; names the line.
    """
    if str(source) == WIFI_INDOORS:
        return wifi_indoors()
    times: list[float] = []
    rates: list[float] = []
    try:
        with open(source, newline="") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                try:
                    time_s, mbit = float(row["t_s"]), float(row["mbit"])
                except (KeyError, TypeError, ValueError):
                    raise TestbedError(
                        f"{source}:{number}: a trace has the columns t_s and mbit, both numbers; "
                        f"found {dict(row)}"
                    ) from None
                if not (math.isfinite(time_s) and math.isfinite(mbit) and mbit >= 0):
                    raise TestbedError(f"{source}:{number}: t_s={time_s}, mbit={mbit} is no rate")
                if times and time_s <= times[-1]:
                    raise TestbedError(f"{source}:{number}: t_s={time_s} does not rise")
                times.append(time_s)
                rates.append(mbit)
    except OSError as error:
        raise TestbedError(
            f"the bandwidth trace {str(source)!r} cannot be read ({error.strerror}); write a rate "
            f"such as 100mbit, {WIFI_INDOORS!r}, or the path of a CSV file with t_s,mbit"
        ) from None
    if not times:
        raise TestbedError(f"the bandwidth trace {str(source)!r} has no rows")
    last_s = times[-1] - times[-2] if len(times) > 1 else 1.0
    shifted = tuple(t - times[0] for t in times)
    return Trace(shifted, tuple(rates), shifted[-1] + last_s, str(source))


def wifi_indoors(duration_s: int = 600, seed: int = 0) -> Trace:
    """Make an indoor Wi-Fi trace, one step a second, with the statistics above.

    A slow first-order process and noise, both normal, are mapped through the quantiles.
    """
    random = np.random.default_rng(seed)
    normal = NormalDist()
    slow = random.standard_normal()
    rates = []
    for _ in range(duration_s):
        slow = _SLOW_MEMORY * slow + math.sqrt(1 - _SLOW_MEMORY**2) * random.standard_normal()
        noise = random.standard_normal()
        score = math.sqrt(_SLOW_SHARE) * slow + math.sqrt(1 - _SLOW_SHARE) * noise
        at, values = zip(*_QUANTILES, strict=True)
        rates.append(_MBIT_PER_MB_S * float(np.interp(normal.cdf(score), at, values)))
    return Trace(
        tuple(map(float, range(duration_s))), tuple(rates), float(duration_s), WIFI_INDOORS
    )
