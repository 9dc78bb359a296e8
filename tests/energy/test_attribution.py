"""The division by phase on synthetic power traces whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lightning_edge.energy.attribution import PhaseReport, Series, attribute
from lightning_edge.energy.domain import Domain, Provenance, Scope
from lightning_edge.energy.phases import PhaseMarks
from tests.energy.trees import Clock

POWERS_W = {"compute": 12.0, "communication": 5.0, "waiting": 3.0}
SHARES = {"compute": 0.5, "communication": 0.3, "waiting": 0.2}
DOMAIN = Domain("ina:x:VDD_IN", "VDD_IN", Scope.MODULE, Provenance.SAMPLED, "jetson")


class Run:
    """A training run of phases with a known power each.

    Args:
        step_s: Mean length of a step.
        duration_s: Length of the run.
        jitter: Relative spread of each phase's length.
        powers_w: True power of each phase.
    """

    def __init__(
        self,
        step_s: float,
        duration_s: float,
        *,
        jitter: float = 0.15,
        powers_w: dict[str, float] = POWERS_W,
        seed: int = 0,
    ) -> None:
        self.random = np.random.default_rng(seed)
        clock = Clock()
        clock.now_s = self.start_s = 0.0
        self.marks = PhaseMarks(clock)
        edges, watts = [0.0], []
        while clock.now_s < duration_s:
            for phase, share in SHARES.items():
                self.marks.enter(phase)
                clock.pass_s(step_s * share * max(0.1, 1 + jitter * self.random.standard_normal()))
                edges.append(clock.now_s)
                watts.append(powers_w[phase])
        self.stop_s = clock.now_s
        self._edges = np.array(edges)
        self._energy_j = np.concatenate([[0.0], np.cumsum(np.diff(edges) * np.array(watts))])
        spent = self.marks.seconds(0.0, self.stop_s)
        self.truth_j = {phase: powers_w[phase] * spent[phase] for phase in SHARES}
        self.total_j = float(self._energy_j[-1])

    def energy(self, at_s: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.interp(at_s, self._edges, self._energy_j)

    def sampled(self, *, window_s: float, lag_s: float, idle_w: float | None = None) -> Series:
        """A sensor with 3 % and 0.15 W of noise and 40 mW resolution, polled with jitter."""
        waits = 0.1 * self.random.uniform(0.5, 1.5, int(self.stop_s / 0.1))
        times = np.cumsum(waits)
        times = times[(times > window_s + lag_s) & (times < self.stop_s)]
        mean_w = (self.energy(times - lag_s) - self.energy(times - lag_s - window_s)) / window_s
        noise = 1 + 0.03 * self.random.standard_normal(len(times))
        seen = mean_w * noise + 0.15 * self.random.standard_normal(len(times))
        return Series(DOMAIN, self.total_j, times, np.round(seen / 0.04) * 0.04, idle_w=idle_w)

    def counted(self, *, lag_s: float) -> Series:
        """A counter that is exact, read late."""
        times = np.cumsum(0.1 * self.random.uniform(0.5, 1.5, int(self.stop_s / 0.1)))
        times = times[(times > lag_s) & (times < self.stop_s)]
        joules = self.energy(times - lag_s)
        watts = np.diff(joules) / np.diff(times)
        return Series(DOMAIN, self.total_j, times[1:], watts, times[:-1])

    def errors_pct(self, report: PhaseReport) -> dict[str, float]:
        assert report.energy_j is not None, report.reason
        return {p: 100 * abs(report.energy_j[p] / self.truth_j[p] - 1) for p in SHARES}


@pytest.mark.parametrize(
    ("step_s", "limits_pct"),
    [(0.05, (3, 12, 35)), (0.2, (2, 8, 15)), (1.0, (2, 3, 4))],
)
def test_sensor_of_100_ms_over_a_minute(step_s: float, limits_pct: tuple[float, ...]) -> None:
    run = Run(step_s, 60.0)
    report = attribute([run.sampled(window_s=0.1, lag_s=0.0)], run.marks, 0.0, run.stop_s)
    errors = run.errors_pct(report)
    assert all(error < limit for error, limit in zip(errors.values(), limits_pct, strict=True)), (
        errors
    )
    assert sum((report.energy_j or {}).values()) == pytest.approx(run.total_j)


@pytest.mark.parametrize(("window_s", "lag_s"), [(0.1, 0.05), (0.02, 0.12), (0.2, 0.0)])
def test_window_and_lag_are_found(window_s: float, lag_s: float) -> None:
    run = Run(0.2, 30.0)
    report = attribute([run.sampled(window_s=window_s, lag_s=lag_s)], run.marks, 0.0, run.stop_s)
    assert report.lag_s[DOMAIN.id] == pytest.approx(lag_s, abs=0.011)
    assert report.window_s[DOMAIN.id] == window_s
    assert max(run.errors_pct(report).values()) < 15


def test_late_counter() -> None:
    run = Run(0.2, 30.0)
    report = attribute([run.counted(lag_s=0.05)], run.marks, 0.0, run.stop_s)
    assert report.lag_s[DOMAIN.id] == pytest.approx(0.05)
    assert max(run.errors_pct(report).values()) < 1.0


def test_idle_that_was_measured_steadies_the_rest() -> None:
    plain, pinned = [], []
    for seed in range(4):
        run = Run(0.05, 20.0, seed=seed)
        series = run.sampled(window_s=0.1, lag_s=0.0)
        free = attribute([series], run.marks, 0.0, run.stop_s)
        fixed = Series(DOMAIN, run.total_j, series.stop_s, series.power_w, idle_w=3.0)
        held = attribute([fixed], run.marks, 0.0, run.stop_s)
        plain.append(run.errors_pct(free)["waiting"])
        pinned.append(run.errors_pct(held)["waiting"])
    assert max(pinned) < 2.0
    assert np.mean(pinned) < np.mean(plain)


def test_two_domains_add_up() -> None:
    run = Run(0.2, 30.0)
    gpu = run.sampled(window_s=0.1, lag_s=0.05)
    package = Domain("rapl:package-0", "package-0", Scope.PACKAGE, Provenance.COUNTER, "rapl")
    cpu = run.counted(lag_s=0.0)
    cpu = Series(package, run.total_j, cpu.stop_s, cpu.power_w, cpu.start_s)
    report = attribute([gpu, cpu], run.marks, 0.0, run.stop_s)
    assert sum((report.energy_j or {}).values()) == pytest.approx(2 * run.total_j)
    assert report.lag_s == {DOMAIN.id: pytest.approx(0.05), "rapl:package-0": 0.0}
    assert (report.power_w or {})["compute"] == pytest.approx(24.0, rel=0.05)


def test_a_power_that_does_not_follow_the_phases_is_not_divided() -> None:
    run = Run(0.2, 30.0)
    noise = np.random.default_rng(1).uniform(2.0, 12.0, 250)
    series = Series(DOMAIN, run.total_j, np.linspace(1.0, 29.0, 250), noise)
    report = attribute([series], run.marks, 0.0, run.stop_s)
    assert not report.separable
    assert report.energy_j is None
    assert "power does not follow the phases" in report.reason


def test_phases_in_one_fixed_mix_are_not_divided() -> None:
    """Short steps, all alike: any division of the joules would fit."""
    clock = Clock()
    clock.now_s = 0.0
    marks = PhaseMarks(clock)
    marks.enter("compute")
    random = np.random.default_rng(0)
    for _ in range(10_000):
        clock.pass_s(0.005)
        marks.insert(clock() - 0.005, clock(), {"waiting": 0.002})
    times = np.linspace(1.0, 49.0, 400)
    watts = 8.0 + 0.1 * random.standard_normal(400)
    report = attribute([Series(DOMAIN, 400.0, times, watts)], marks, 0.0, 50.0)
    assert not report.separable


def test_part_of_a_run_by_the_powers_of_all_of_it() -> None:
    seconds = {"compute": 10.0, "waiting": 10.0, "evaluation": 20.0}
    joules = {"compute": 100.0, "waiting": 20.0, "evaluation": 160.0}
    report = PhaseReport(seconds, joules, "")
    # Half of the training: 50 + 10 J by these powers, of which the meter saw 66 J.
    assert report.part({"compute": 5.0, "waiting": 5.0}, 66.0) == {
        "compute": pytest.approx(55.0), "waiting": pytest.approx(11.0),
    }  # fmt: skip
    # What was too short to be seen goes with what filled most of the time.
    found = report.part({"compute": 5.0, "data": 0.1}, 66.0)
    assert found is not None
    assert set(found) == {"compute", "evaluation"}
    assert sum(found.values()) == pytest.approx(66.0)
    assert PhaseReport(seconds, None, "mixed").part({"compute": 1.0}, 1.0) is None


def test_too_few_readings() -> None:
    run = Run(0.2, 2.0)
    report = attribute([run.sampled(window_s=0.1, lag_s=0.0)], run.marks, 0.0, run.stop_s)
    assert not report.separable
    assert "too few for 3 phases; 30 are needed" in report.reason


def test_one_phase_needs_no_regression() -> None:
    clock = Clock()
    marks = PhaseMarks(clock)
    marks.enter("compute")
    clock.pass_s(10)
    series = Series(DOMAIN, 70.0, np.array([]), np.array([]))
    report = attribute([series], marks, clock() - 10, clock())
    assert report.energy_j == {"compute": 70.0}


def test_nothing_read() -> None:
    report = attribute([], PhaseMarks(Clock()), 0.0, 10.0)
    assert not report.separable
    assert report.reason == "no energy was read"


def test_phases_too_short_to_be_seen_lose_no_seconds() -> None:
    clock = Clock()
    clock.now_s = 0.0
    marks = PhaseMarks(clock)
    marks.enter("compute")
    clock.pass_s(99.9)
    marks.enter("checkpoint")
    clock.pass_s(0.1)
    marks.enter("compute")
    series = Series(DOMAIN, 700.0, np.array([]), np.array([]))
    report = attribute([series], marks, 0.0, 100.0)
    assert report.energy_j == {"compute": 700.0}
    assert report.seconds == {"compute": pytest.approx(100.0)}
