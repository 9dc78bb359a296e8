"""How right the joules are: loads whose truth is known, seen through real sensors' habits.

    python -m benchmarks.energy                # the two tables, about a minute
    python -m benchmarks.energy --windows 10   # fewer windows, for a quick look

A load is a curve of true watts. A sensor shows it as hardware does: a counter that moves every U
seconds, or a mean over its own window, late by a lag. Three methods read the sensor on a virtual
clock:

* ours: this package's `EnergyMeter`, polled at 100 ms with jitter, phases by regression;
* Zeus: as its documentation describes it - counters read at both ends of a window, power polled
  at a fixed 100 ms and added up by the trapezoid rule, a window per phase;
* CodeCarbon: as its documentation describes it - counters read at both ends, else the power of the
  moment times the time since the last reading, one reading every 15 s and one at each end.

The two peers' methods are written anew from their descriptions; none of their code runs here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lightning_edge.energy import Domain, EnergyMeter, HostEnv, Provenance, Reading, Scope

Floats = NDArray[np.float64]
POLL_S, CODECARBON_S = 0.1, 15.0
POWERS_W = {"compute": 12.0, "communication": 5.0, "waiting": 3.0}
SHARES = {"compute": 0.5, "communication": 0.3, "waiting": 0.2}


class Load:
    """True watts over time, constant between edges.

    Args:
        edges: Times at which the power changes, in seconds.
        watts: Power of each stretch.
    """

    def __init__(self, edges: Floats, watts: Floats) -> None:
        self.edges = edges
        self._energy_j = np.concatenate([[0.0], np.cumsum(np.diff(edges) * watts)])

    def energy_j(self, at_s: float) -> float:
        return float(np.interp(at_s, self.edges, self._energy_j))


def square(period_s: float, until_s: float, random: np.random.Generator) -> Load:
    """12 W for 60 % of a period and 3 W for the rest, periods varying by 2 %."""
    periods = period_s * (1 + 0.02 * random.standard_normal(int(until_s / period_s * 1.2) + 10))
    lengths = np.column_stack([0.6 * periods, 0.4 * periods]).ravel()
    return Load(np.concatenate([[0.0], np.cumsum(lengths)]), np.tile([12.0, 3.0], len(periods)))


def bursts(until_s: float, random: np.random.Generator) -> Load:
    """Rest of 0.4 s in the mean, then a burst of about 0.15 s at 5 to 20 W."""
    count = int(until_s / 0.3) + 50
    rest = random.exponential(0.4, count)
    busy = random.lognormal(np.log(0.15), 0.6, count)
    watts = np.column_stack([np.full(count, 3.0), random.uniform(5.0, 20.0, count)]).ravel()
    lengths = np.column_stack([rest, busy]).ravel()
    return Load(np.concatenate([[0.0], np.cumsum(lengths)]), watts)


@dataclass(frozen=True)
class Sensor:
    """How hardware shows a load.

    Args:
        name: For the table.
        update_s: A counter's step, or the window that a sampled power is the mean of.
        lag_s: How late it is.
        counter: Whether it shows joules.
    """

    name: str
    update_s: float
    lag_s: float = 0.0
    counter: bool = False

    def joules(self, load: Load, at_s: float) -> float:
        return load.energy_j(np.floor((at_s - self.lag_s) / self.update_s) * self.update_s)

    def watts(self, load: Load, at_s: float) -> float:
        end_s = at_s - self.lag_s
        return (load.energy_j(end_s) - load.energy_j(end_s - self.update_s)) / self.update_s


SENSORS = (
    Sensor("counter 1 ms (RAPL)", 0.001, counter=True),
    Sensor("counter 100 ms (NVML)", 0.1, counter=True),
    Sensor("20 ms mean (INA)", 0.02),
    Sensor("100 ms mean, 50 ms late", 0.1, 0.05),
    Sensor("1 s mean (NVML power)", 1.0),
)


class SimulatedSource:
    """A sensor on a load, as a source of the meter."""

    kind: ClassVar[str] = "simulated"

    def __init__(self, sensor: Sensor, load: Load, clock: Callable[[], float]) -> None:
        kind = Provenance.COUNTER if sensor.counter else Provenance.SAMPLED
        self.domains = (Domain("x", "x", Scope.MODULE, kind, self.kind, sensor.update_s),)
        self._sensor, self._load, self._clock = sensor, load, clock

    @classmethod
    def probe(cls, host: HostEnv) -> SimulatedSource:
        raise NotImplementedError("made by hand")

    def read(self) -> Reading:
        now_s = self._clock()
        if self._sensor.counter:
            return Reading(now_s, energy_j={"x": self._sensor.joules(self._load, now_s)})
        return Reading(now_s, power_w={"x": self._sensor.watts(self._load, now_s)})

    def close(self) -> None:
        """Nothing is held open."""


class VirtualClock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def ours(
    sensor: Sensor, load: Load, start_s: float, stop_s: float, random: np.random.Generator
) -> float:
    """Joules of a window by this package's meter."""
    clock = VirtualClock()
    clock.now_s = start_s
    source = SimulatedSource(sensor, load, clock)
    host = HostEnv(sysroot=Path("/nonexistent"), clock=clock)
    with EnergyMeter([source], host=host, background=False) as meter:
        begin_s = meter.read()
        for at_s in polls(start_s, stop_s, meter.feeds[0].interval_s, random):
            clock.now_s = at_s
            meter.read()
        clock.now_s = stop_s
        return meter.report(begin_s, meter.read()).energy_j or 0.0


def polls(
    start_s: float, stop_s: float, interval_s: float, random: np.random.Generator
) -> Iterator[float]:
    """Times of jittered polling, as the sampler's thread does it."""
    at_s = start_s
    while (at_s := at_s + interval_s * random.uniform(0.5, 1.5)) < stop_s:
        yield at_s


def zeus(sensor: Sensor, load: Load, start_s: float, stop_s: float) -> float:
    """Joules of a window by Zeus's method."""
    if sensor.counter:
        return sensor.joules(load, stop_s) - sensor.joules(load, start_s)
    times = np.append(np.arange(start_s, stop_s, POLL_S), stop_s)
    watts = np.array([sensor.watts(load, at_s) for at_s in times])
    return float(np.sum(0.5 * (watts[1:] + watts[:-1]) * np.diff(times)))


def codecarbon(sensor: Sensor, load: Load, start_s: float, stop_s: float) -> float:
    """Joules of a window by CodeCarbon's method."""
    if sensor.counter:
        return sensor.joules(load, stop_s) - sensor.joules(load, start_s)
    times = np.append(np.arange(start_s, stop_s, CODECARBON_S), stop_s)
    watts = [sensor.watts(load, at_s) for at_s in times[1:]]
    return float(np.sum(np.array(watts) * np.diff(times)))


def totals(windows: int, random: np.random.Generator) -> None:
    """Table 1: error of a window's total."""
    print("\n### Totals: mean error in % (95th percentile) over windows of 10 s and of 60 s\n")
    print("| load | sensor | ours 10 s | Zeus 10 s | CodeCarbon 10 s | ours 60 s | Zeus 60 s |"
          " CodeCarbon 60 s |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    until_s = 200.0
    loads: dict[str, Load] = {
        f"square {period:g} s": square(period, until_s, random) for period in (0.1, 0.2, 0.5, 1.0)
    }
    loads["bursts"] = bursts(until_s, random)
    for name, load in loads.items():
        for sensor in SENSORS:
            cells = []
            for width_s in (10.0, 60.0):
                starts = random.uniform(2.0, until_s - width_s - 5.0, windows)
                errors: dict[str, list[float]] = {"ours": [], "zeus": [], "codecarbon": []}
                for start_s in starts:
                    stop_s = start_s + width_s
                    truth_j = load.energy_j(stop_s) - load.energy_j(start_s)
                    found = {
                        "ours": ours(sensor, load, start_s, stop_s, random),
                        "zeus": zeus(sensor, load, start_s, stop_s),
                        "codecarbon": codecarbon(sensor, load, start_s, stop_s),
                    }
                    for method, joules in found.items():
                        errors[method].append(100 * abs(joules / truth_j - 1))
                cells += [
                    f"{percent(np.mean(e))} ({percent(np.percentile(e, 95))})"
                    for e in errors.values()
                ]
            print(f"| {name} | {sensor.name} | {' | '.join(cells)} |")


def percent(value: np.floating[Any]) -> str:
    """Two digits, and nothing smaller than 0.01."""
    return "<0.01" if value < 0.01 else f"{value:.0f}" if value >= 10 else f"{value:.2g}"


@dataclass(frozen=True)
class PhaseRun:
    """Steps of three phases with their true joules.

    Args:
        load: The true power.
        marks: ``(time, phase)`` of each change.
        stop_s: The end.
    """

    load: Load
    marks: list[tuple[float, str]]
    stop_s: float

    def truth_j(self) -> dict[str, float]:
        return self.per_phase(lambda a, b: self.load.energy_j(b) - self.load.energy_j(a))

    def per_phase(self, joules: Callable[[float, float], float]) -> dict[str, float]:
        """Sum over all stretches of each phase."""
        found = dict.fromkeys(SHARES, 0.0)
        ends = [at_s for at_s, _ in self.marks[1:]] + [self.stop_s]
        for (start_s, phase), end_s in zip(self.marks, ends, strict=True):
            found[phase] += joules(start_s, end_s)
        return found


def phase_run(step_s: float, duration_s: float, random: np.random.Generator) -> PhaseRun:
    """Compute, communication, waiting at 12, 5 and 3 W, each step's parts varying by 15 %."""
    at_s, marks, watts = 2.0, [], [3.0]
    while at_s < duration_s:
        for phase, share in SHARES.items():
            marks.append((at_s, phase))
            watts.append(POWERS_W[phase])
            at_s += step_s * share * max(0.1, 1 + 0.15 * random.standard_normal())
    edges = np.array([0.0, *(mark for mark, _ in marks), at_s])
    return PhaseRun(Load(edges, np.array(watts)), marks, at_s)


def ours_phases(
    run: PhaseRun, sensor: Sensor, random: np.random.Generator
) -> Mapping[str, float] | None:
    clock = VirtualClock()
    clock.now_s = run.marks[0][0]
    host = HostEnv(sysroot=Path("/nonexistent"), clock=clock)
    source = SimulatedSource(sensor, run.load, clock)
    with EnergyMeter([source], host=host, background=False) as meter:
        begin_s = meter.read()
        events: list[tuple[float, str]] = list(run.marks)
        interval_s = meter.feeds[0].interval_s
        events += [(at_s, "") for at_s in polls(begin_s, run.stop_s, interval_s, random)]
        for at_s, phase in sorted(events):
            clock.now_s = at_s
            if phase:
                meter.phases.enter(phase)
            else:
                meter.read()
        clock.now_s = run.stop_s
        return meter.attribute(begin_s, meter.read()).energy_j


def phases(repeats: int, random: np.random.Generator) -> None:
    """Table 2: error of each phase's joules."""
    print("\n### Phases: mean error in % of compute / communication / waiting, runs of 60 s\n")
    print("| sensor | step | ours | not separable | Zeus | CodeCarbon |")
    print("|---|---|---|---|---|---|")
    for sensor in SENSORS:
        for step_s in (0.2, 0.5, 1.0):
            errors: dict[str, list[list[float]]] = {"ours": [], "zeus": [], "codecarbon": []}
            refused = 0
            for _ in range(repeats):
                run = phase_run(step_s, 60.0, random)
                truth_j = run.truth_j()
                found = ours_phases(run, sensor, random)
                refused += found is None
                methods = {
                    "ours": found,
                    "zeus": run.per_phase(partial(zeus, sensor, run.load)),
                    "codecarbon": run.per_phase(partial(codecarbon, sensor, run.load)),
                }
                for name, joules in methods.items():
                    if joules is not None:
                        relative = [100 * abs(joules[p] / truth_j[p] - 1) for p in SHARES]
                        errors[name].append(relative)
            cells = [
                " / ".join(percent(value) for value in np.mean(errors[name], axis=0))
                if errors[name]
                else "-"
                for name in ("ours", "zeus", "codecarbon")
            ]
            print(
                f"| {sensor.name} | {step_s:g} s | {cells[0]} | {refused} of {repeats} "
                f"| {cells[1]} | {cells[2]} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--windows", type=int, default=40, help="windows per cell")
    parser.add_argument("--repeats", type=int, default=5, help="runs per cell of the phases")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    totals(arguments.windows, np.random.default_rng(arguments.seed))
    phases(arguments.repeats, np.random.default_rng(arguments.seed + 1))


if __name__ == "__main__":
    main()
