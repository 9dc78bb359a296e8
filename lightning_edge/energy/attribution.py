"""Joules per phase, by regression of power on phase occupancy.

Sensors are slower than phases: taking the meter's value at each change of phase is wrong by 22-170
% at 100 ms sensors and 50-200 ms steps. Instead each sample is an equation. With ``O_ik`` the
share of phase k in the interval that sample i is the mean of, and ``p_k`` the power of phase k::

    s_i = sum_k O_ik p_k + noise,   p_k >= 0          solved by non-negative least squares (scipy)

                 t_i-L-w      t_i-L    t_i
    time    ------|============|--------|---->        w: the sensor's own averaging window
    phases     comp | comm | comp | comm | comp       L: its delay
                  <- O_i = (.6, .4) ->

w and L are found on a grid, by the smallest residual: a delay of 50 ms left out ruins the result.
The joules of phase k are ``p_k`` times its seconds, scaled together to the metered total. Where
phases always come in the same mix or the model explains too little, the answer is "not separable",
with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from lightning_edge.energy.domain import Domain
from lightning_edge.energy.phases import PHASES, PhaseMarks, PhaseTable

Floats = NDArray[np.float64]

WINDOWS_S = (0.02, 0.05, 0.1, 0.2, 1.0)
LAGS_S = tuple(np.arange(0, 0.2001, 0.01).tolist())
MIN_R = 0.5
"""Below this correlation the result was a failure in every trial."""
MAX_CONDITION = 50.0
"""Steps of 50 ms under a 100 ms sensor give 18-40 and still errors of a few per cent."""
MIN_SHARE = 0.005
"""Phases with less of the time are counted as "other"."""
MAX_ROWS = 4000
ROWS_PER_PHASE = 10


@dataclass(frozen=True)
class Series:
    """The power of one domain, as its source gave it.

    Args:
        domain: Whose power.
        energy_j: Joules metered in the window.
        stop_s: When each sample was taken, or the end of each stretch between a counter's moves.
        power_w: Sampled watts, or the mean watts of the stretch.
        start_s: Start of each stretch; None for samples, whose own window is unknown.
        idle_w: Measured idle power, if there is one.
    """

    domain: Domain
    energy_j: float
    stop_s: Floats
    power_w: Floats
    start_s: Floats | None = None
    idle_w: float | None = None


@dataclass(frozen=True)
class PhaseReport:
    """Joules per phase.

    Args:
        seconds: Seconds per phase.
        energy_j: Joules per phase; None where they cannot be told apart.
        uncertainty_j: Standard error of the regression per phase, without the instrument's own.
        reason: Why not, or how well.
        r: Correlation of model and samples, 0 to 1; of the worst domain that matters.
        condition: Condition number of the occupancies; likewise.
        lag_s: Delay found per domain.
        window_s: Averaging window found per domain; counters have none.
    """

    seconds: Mapping[str, float]
    energy_j: Mapping[str, float] | None
    reason: str
    uncertainty_j: Mapping[str, float] = field(default_factory=dict)
    r: float | None = None
    condition: float | None = None
    lag_s: Mapping[str, float] = field(default_factory=dict)
    window_s: Mapping[str, float] = field(default_factory=dict)

    @property
    def separable(self) -> bool:
        """Whether joules per phase can be given."""
        return self.energy_j is not None

    @property
    def power_w(self) -> Mapping[str, float] | None:
        """Mean watts per phase."""
        if self.energy_j is None:
            return None
        return {k: j / self.seconds[k] for k, j in self.energy_j.items() if self.seconds[k] > 0}

    def part(self, seconds: Mapping[str, float], energy_j: float) -> dict[str, float] | None:
        """Divide the joules of a part of the window, by the powers found over all of it.

        Args:
            seconds: Seconds per phase in the part.
            energy_j: Joules metered in the part.

        Returns:
            Joules per phase, which add up to `energy_j`; None where phases cannot be told apart.
        """
        powers_w = self.power_w
        if not powers_w:
            return None
        rest = "other" if "other" in powers_w else max(powers_w, key=lambda k: self.seconds[k])
        found = dict.fromkeys(powers_w, 0.0)
        for name, spent_s in seconds.items():
            key = name if name in powers_w else rest
            found[key] += powers_w[key] * spent_s
        total_j = sum(found.values())
        return {k: j * energy_j / total_j for k, j in found.items() if j > 0} or None


@dataclass(frozen=True)
class _Fit:
    powers_w: Floats
    errors_w: Floats
    r: float
    condition: float
    lag_s: float
    window_s: float | None


def attribute(
    series: Sequence[Series], marks: PhaseMarks, start_s: float, stop_s: float
) -> PhaseReport:
    """Divide the metered joules between `start_s` and `stop_s` among the phases."""
    seconds = marks.seconds(start_s, stop_s)
    columns = _columns(seconds, stop_s - start_s)
    spent = {
        name: sum(seconds.get(PHASES[k], 0.0) for k in parts) for name, parts in columns.items()
    }
    total_j = sum(one.energy_j for one in series)
    if not series or total_j <= 0:
        return PhaseReport(spent, None, "no energy was read")
    if len(columns) == 1:
        only = next(iter(columns))
        return PhaseReport(spent, {only: total_j}, "there is only one phase", {only: 0.0})

    table = marks.table()
    energy_j = dict.fromkeys(columns, 0.0)
    variance = dict.fromkeys(columns, 0.0)
    lags, windows = {}, {}
    worst_r, worst_condition = 1.0, 1.0
    for one in series:
        fit = _fit(one, table, columns)
        matters = one.energy_j > 0.05 * total_j
        if isinstance(fit, str):
            if matters:
                return PhaseReport(spent, None, f"{one.domain.name}: {fit}")
            continue
        if matters:
            worst_r, worst_condition = min(worst_r, fit.r), max(worst_condition, fit.condition)
        raw_j = fit.powers_w * np.array([spent[name] for name in columns])
        scale = one.energy_j / raw_j.sum() if raw_j.sum() > 0 else 0.0
        for name, joules, error_w in zip(columns, raw_j * scale, fit.errors_w, strict=True):
            energy_j[name] += float(joules)
            variance[name] += float(error_w * spent[name] * scale) ** 2
        lags[one.domain.id] = fit.lag_s
        if fit.window_s is not None:
            windows[one.domain.id] = fit.window_s
    numbers = f"R {worst_r:.2f}, condition {worst_condition:.0f}"
    problem = ""
    if worst_r < MIN_R:
        problem = f"power does not follow the phases ({numbers}; R of {MIN_R} is needed)"
    elif worst_condition > MAX_CONDITION:
        problem = f"the phases come in one fixed mix ({numbers}; at most {MAX_CONDITION:.0f})"
    errors = {name: math.sqrt(value) for name, value in variance.items()}
    return PhaseReport(
        spent,
        None if problem else energy_j,
        problem or numbers,
        {} if problem else errors,
        worst_r,
        worst_condition,
        lags,
        windows,
    )


def _columns(seconds: Mapping[str, float], duration_s: float) -> dict[str, list[int]]:
    """Phase name -> phases counted under it: those too short to be seen go with "other"."""
    columns: dict[str, list[int]] = {}
    for number, name in enumerate(PHASES):
        if seconds.get(name, 0.0) > 0:
            large = seconds[name] >= MIN_SHARE * duration_s
            columns.setdefault(name if large else "other", []).append(number)
    other = columns.get("other")
    if other and sum(seconds.get(PHASES[k], 0.0) for k in other) < MIN_SHARE * duration_s:
        # Together still too short: with the longest phase, so that its seconds are not lost.
        del columns["other"]
        if columns:
            longest = max(columns, key=lambda name: seconds[name])
            columns[longest] = columns[longest] + other
    return columns or {"other": list(range(len(PHASES)))}


def _fit(series: Series, table: PhaseTable, columns: Mapping[str, list[int]]) -> _Fit | str:
    """Fit the powers of one domain for every window and lag, and keep the best.

    Or say what is missing.
    """
    power_w = series.power_w[-MAX_ROWS:]
    needed = ROWS_PER_PHASE * len(columns)
    if len(power_w) < needed:
        return f"{len(power_w)} readings are too few for {len(columns)} phases; {needed} are needed"
    best: tuple[float, Floats, Floats, float, float | None] | None = None
    for occupancy, lag_s, window_s in _occupancies(series, table, columns):
        powers_w, residual = _solve(occupancy, power_w, columns, series.idle_w)
        if best is None or residual < best[0]:
            best = (residual, powers_w, occupancy, lag_s, window_s)
    assert best is not None
    residual, powers_w, occupancy, lag_s, window_s = best
    spread = float(np.sum((power_w - power_w.mean()) ** 2))
    r = math.sqrt(max(0.0, 1.0 - residual**2 / spread)) if spread > 0 else 0.0
    condition = float(np.linalg.cond(occupancy))
    noise = residual**2 / max(len(power_w) - len(columns), 1)
    errors_w = np.sqrt(noise * np.clip(np.diag(np.linalg.pinv(occupancy.T @ occupancy)), 0, None))
    return _Fit(powers_w, errors_w, r, condition, lag_s, window_s)


def _occupancies(
    series: Series, table: PhaseTable, columns: Mapping[str, list[int]]
) -> Iterator[tuple[Floats, float, float | None]]:
    """Shares of the phases in each reading's interval, shape ``[rows, phases]``.

    For each lag and window.
    """
    stop_s = series.stop_s[-MAX_ROWS:]
    merge = np.zeros((len(PHASES), len(columns)))
    for column, parts in enumerate(columns.values()):
        merge[parts, column] = 1.0
    for lag_s in LAGS_S:
        upper = table(stop_s - lag_s) @ merge
        if series.start_s is not None:
            start_s = series.start_s[-MAX_ROWS:]
            width_s = np.maximum(stop_s - start_s, 1e-9)[:, None]
            yield (upper - table(start_s - lag_s) @ merge) / width_s, lag_s, None
            continue
        for window_s in WINDOWS_S:
            yield (upper - table(stop_s - lag_s - window_s) @ merge) / window_s, lag_s, window_s


def _solve(
    occupancy: Floats, power_w: Floats, columns: Mapping[str, list[int]], idle_w: float | None
) -> tuple[Floats, float]:
    """Non-negative powers and the norm of the residual.

    A measured idle power pins the waiting phase.
    """
    rows, values = occupancy, power_w
    if idle_w is not None and "waiting" in columns:
        weight = math.sqrt(len(power_w))
        pin = np.array([[weight if name == "waiting" else 0.0 for name in columns]])
        rows, values = np.vstack([rows, pin]), np.append(values, weight * idle_w)
    powers_w, _ = nnls(rows, values)
    return powers_w, float(np.linalg.norm(occupancy @ powers_w - power_w))
