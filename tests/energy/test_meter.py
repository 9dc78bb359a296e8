from __future__ import annotations

import math
import os
import pickle
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_edge.energy import EnergyMeter, Provenance, Scope, SourceLost
from lightning_edge.energy.feed import CPU_SHARE, Feed
from lightning_edge.errors import EnergyError
from tests.energy.fakes import FakeSource, domain, steady
from tests.energy.trees import Clock, cpu_stat, faked_host


def _meter(tmp_path: Path, clock: Clock, *sources: object) -> EnergyMeter:
    return EnergyMeter(
        list(sources),  # type: ignore[arg-type]
        host=faked_host(tmp_path, clock),
        background=False,
    )


def test_windows_nest_and_overlap(tmp_path: Path) -> None:
    clock = Clock()
    with _meter(tmp_path, clock, steady(clock, {"a": 10.0})) as meter:
        outer = meter.window("outer")
        clock.pass_s(1.0)
        left = meter.window("left")
        clock.pass_s(1.0)
        right = meter.window("right")
        clock.pass_s(1.0)
        left.close()
        clock.pass_s(1.0)
        right.close()
        outer.close()
        reports = {w.name: w.report for w in (outer, left, right)}
    assert {n: r.energy_j for n, r in reports.items()} == {
        "outer": pytest.approx(40.0), "left": pytest.approx(20.0), "right": pytest.approx(20.0),
    }  # fmt: skip
    assert reports["outer"].power_w == pytest.approx(10.0)
    assert reports["left"].name == "left"


def test_a_window_closes_also_on_an_error(tmp_path: Path) -> None:
    clock = Clock()
    with _meter(tmp_path, clock, steady(clock, {"a": 10.0})) as meter:
        window = meter.window()
        with pytest.raises(KeyError), window:
            raise KeyError(clock.pass_s(2.0))
        clock.pass_s(5.0)
        assert window.report.energy_j == pytest.approx(20.0)
        assert window.close().energy_j == pytest.approx(20.0)


def test_report_of_an_open_window_goes_on(tmp_path: Path) -> None:
    clock = Clock()
    with _meter(tmp_path, clock, steady(clock, {"a": 10.0})) as meter:
        window = meter.window()
        clock.pass_s(1.0)
        assert window.report.energy_j == pytest.approx(10.0)
        clock.pass_s(1.0)
        assert window.report.energy_j == pytest.approx(20.0)


def test_totals_never_add_a_part_to_its_whole(tmp_path: Path) -> None:
    clock = Clock()
    parts = [
        domain("psys", scope=Scope.PLATFORM),
        domain("package", parent="psys"),
        domain("core", scope=Scope.RAIL, parent="package"),
        domain("gpu:x", scope=Scope.GPU),
    ]
    watts = {"psys": 18.0, "package": 10.0, "core": 6.0, "gpu:x": 50.0}
    source = FakeSource(clock, parts, lambda: {k: v * clock() for k, v in watts.items()})
    with _meter(tmp_path, clock, source) as meter, meter.window() as window:
        clock.pass_s(2.0)
    assert window.report.energy_j == pytest.approx(136.0)
    assert {e.domain.id for e in window.report.counted} == {"psys", "gpu:x"}
    assert window.report.domains["core"].energy_j == pytest.approx(12.0)


def test_a_plug_contains_the_whole_host(tmp_path: Path) -> None:
    clock = Clock()
    plug = domain("plug", scope=Scope.PLATFORM, provenance=Provenance.EXTERNAL)
    outside = FakeSource(clock, [plug], lambda: {"plug": 90.0})
    inside = steady(clock, {"package": 40.0})
    with _meter(tmp_path, clock, outside, inside) as meter, meter.window() as window:
        for _ in range(10):
            clock.pass_s(0.1)
            meter.read()
    assert window.report.energy_j == pytest.approx(90.0)


def test_failures_lower_coverage_and_leave_a_note(tmp_path: Path) -> None:
    clock = Clock()
    watts = domain("w", provenance=Provenance.SAMPLED, scope=Scope.PLATFORM)
    answers: list[object] = [{"w": 5.0}]
    source = FakeSource(clock, [watts], lambda: answers[0])  # type: ignore[arg-type,return-value]
    with _meter(tmp_path, clock, source) as meter, meter.window() as window:
        for second in range(100):
            # A user's source may raise anything, and may say anything.
            answers[0] = {
                2: RuntimeError("the plug is offline"), 3: {"w": float("nan")}, 4: {"w": -3.0},
            }.get(second // 10, {"w": 5.0})  # fmt: skip
            clock.pass_s(0.1)
            meter.read()
    report = window.report
    # Seconds 2 to 5 are unknown: from the last good reading to the next.
    assert report.coverage == pytest.approx(0.69, abs=0.02)
    assert report.energy_j == pytest.approx(5.0 * 10.0 * report.coverage)
    assert report.is_lower_bound
    assert (report.uncertainty_j or 0.0) > 10.0
    notes = "\n".join(report.notes)
    assert "the plug is offline" in notes
    assert "w said nan" in notes
    assert "w said -3.0" in notes


def test_a_lost_source_keeps_its_joules(tmp_path: Path) -> None:
    clock = Clock()
    gone: list[Exception] = []
    source = FakeSource(clock, [domain("a")], lambda: gone[0] if gone else {"a": 10.0 * clock()})
    with _meter(tmp_path, clock, source, steady(clock, {"b": 1.0})) as meter:
        window = meter.window()
        clock.pass_s(5.0)
        meter.read()
        gone.append(SourceLost("fell off the bus"))
        clock.pass_s(5.0)
        report = window.close()
        assert source.closed
        reads = source.reads
        meter.read()
        assert source.reads == reads
    assert report.domains["a"].energy_j == pytest.approx(50.0)
    assert report.energy_j == pytest.approx(60.0)
    assert report.coverage == pytest.approx(0.75)
    assert "fake was lost: fell off the bus" in report.notes


def test_nothing_read_is_none_and_never_zero(tmp_path: Path) -> None:
    clock = Clock()
    source = FakeSource(clock, [domain("a")], lambda: OSError("no"))
    with _meter(tmp_path, clock, source) as meter, meter.window() as window:
        clock.pass_s(1.0)
    report = window.report
    assert report.energy_j is None
    assert report.power_w is None
    assert report.measured_fraction is None
    assert report.uncertainty_j is None
    assert report.coverage == 0.0


def test_account_goes_on_after_a_checkpoint(tmp_path: Path) -> None:
    clock = Clock()
    with _meter(tmp_path, clock, steady(clock, {"a": 10.0})) as meter:
        clock.pass_s(3.0)
        state = meter.state_dict()
    # Another process, on another machine that can only estimate: what was counted stays counted.
    other = Clock()
    cpu_stat(tmp_path, busy_s=0, idle_s=100)
    with EnergyMeter("model", host=faked_host(tmp_path, other), background=False) as meter:
        meter.load_state_dict(state)
        other.pass_s(10.0)
        totals = meter.totals()
    assert totals.measured_j == pytest.approx(30.0)
    assert (totals.estimated_j or 0.0) > 0
    assert totals.energy_j == pytest.approx(30.0 + (totals.estimated_j or 0.0))
    assert totals.duration_s == pytest.approx(13.0)


def test_uncertainty_shrinks_with_the_window(tmp_path: Path) -> None:
    clock = Clock()
    slow = FakeSource(clock, [domain("a", update_period_s=0.1)], lambda: {"a": 10.0 * clock()})
    with _meter(tmp_path, clock, slow) as meter:
        found = []
        for seconds in (0.2, 4.0, 100.0):
            with meter.window() as window:
                clock.pass_s(seconds)
            report = window.report
            found.append((report.uncertainty_j or 0.0) / (report.energy_j or 1.0))
    # sqrt(rel^2 + (2 U / W)^2)
    expected = [math.hypot(0.05, 0.2 / seconds) for seconds in (0.2, 4.0, 100.0)]
    assert found == pytest.approx(expected, rel=1e-3)


@given(
    st.lists(
        st.tuples(st.floats(0.01, 3.0), st.floats(0.0, 100.0), st.booleans()),
        min_size=3,
        max_size=25,
    )
)
def test_meter_is_additive_over_adjoining_windows(steps: list[tuple[float, float, bool]]) -> None:
    clock = Clock()
    now = {"c": 0.0, "w": 0.0}
    failing = [False]
    domains = [domain("c"), domain("w", provenance=Provenance.SAMPLED, scope=Scope.GPU)]
    source = FakeSource(clock, domains, lambda: OSError("x") if failing[0] else dict(now))
    with _meter(Path("/nonexistent"), clock, source) as meter:
        edges = [meter.read()]
        for wait_s, watts, fails in steps:
            clock.pass_s(wait_s)
            now["c"] += watts * wait_s
            now["w"] = watts
            failing[0] = fails
            edges.append(meter.read())
        for key in ("c", "w"):
            whole = meter.report(edges[0], edges[-1]).domains[key]
            parts = [
                meter.report(a, b).domains[key] for a, b in zip(edges[:-1], edges[1:], strict=True)
            ]
            joules = math.fsum(part.energy_j or 0.0 for part in parts)
            assert joules == pytest.approx(whole.energy_j or 0.0, abs=1e-6)
            assert math.fsum(p.covered_s for p in parts) == pytest.approx(whole.covered_s)
            assert all(p.energy_j is None or p.energy_j >= 0.0 for p in parts)


class TestPace:
    def test_a_costly_source_is_asked_less_often(self) -> None:
        clock, cpu = Clock(), Clock()

        def answer() -> dict[str, float]:
            cpu.pass_s(0.004)  # CPU time of one reading
            return {"a": clock()}

        feed = Feed(FakeSource(clock, [domain("a")], answer), 0.1, clock, cpu)
        for _ in range(5):
            clock.pass_s(feed.interval_s)
            feed.read()
        assert feed.interval_s == pytest.approx(0.004 / CPU_SHARE)

    def test_a_cheap_source_keeps_the_wanted_period(self) -> None:
        clock = Clock()
        feed = Feed(steady(clock, {"a": 1.0}), 0.1, clock, clock)
        feed.read()
        assert feed.interval_s == 0.1

    def test_a_slow_gauge_is_not_asked_ten_times_a_second(self) -> None:
        clock = Clock()
        gauge = FakeSource(clock, [domain("a", update_period_s=10.0)], lambda: {"a": 1.0})
        assert Feed(gauge, 0.1, clock, clock).interval_s == 2.5

    def test_a_coarse_counter_is_asked_more_often_than_it_moves(self) -> None:
        clock = Clock()
        nvml = FakeSource(clock, [domain("a", update_period_s=0.1)], lambda: {"a": 1.0})
        assert Feed(nvml, 0.1, clock, clock).interval_s == 0.025

    def test_a_failing_source_is_left_alone_more_and_more(self) -> None:
        clock = Clock()
        answer: list[object] = [OSError("busy")]
        feed = Feed(FakeSource(clock, [domain("a")], lambda: answer[0]), 0.1, clock, clock)  # type: ignore[arg-type,return-value]
        intervals = []
        for _ in range(10):
            feed.read()
            intervals.append(feed.interval_s)
        assert intervals[1] == 0.1
        assert intervals[-1] == pytest.approx(6.4)
        answer[0] = {"a": 1.0}
        feed.read()
        assert feed.interval_s == 0.1


def test_background_thread_polls_and_ends(tmp_path: Path) -> None:
    source = steady(time.monotonic, {"a": 10.0})
    meter = EnergyMeter([source], host=faked_host(tmp_path, time.monotonic), period_s=0.005)
    with meter:
        assert meter.start() is meter  # a second start does nothing
        deadline = time.monotonic() + 10.0
        while source.reads < 5 and time.monotonic() < deadline:
            time.sleep(0.005)
        window = meter.window()
        threads = [threading.Thread(target=lambda: meter.window("t").close()) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        report = window.close()
        assert report.energy_j == pytest.approx(10.0 * report.duration_s, rel=1e-6)
    assert source.reads >= 5
    assert source.closed
    assert not meter.running
    assert "energy-sampler" not in {thread.name for thread in threading.enumerate()}


def test_jitter_leaves_the_users_random_numbers_alone(tmp_path: Path) -> None:
    import random

    random.seed(3)
    expected = random.Random(3).random()
    meter = EnergyMeter(
        [steady(time.monotonic, {"a": 1.0})],
        host=faked_host(tmp_path, time.monotonic),
        period_s=0.001,
    )
    with meter:
        time.sleep(0.02)
    assert random.random() == expected


def test_forked_child_says_so_and_can_start_anew(tmp_path: Path) -> None:
    cpu_stat(tmp_path, busy_s=0, idle_s=100)
    meter = EnergyMeter("model", host=faked_host(tmp_path, time.monotonic), period_s=0.01)
    with meter:
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                try:
                    meter.read()
                    answer = "no error"
                except EnergyError as error:
                    answer = str(error)
                meter.close()  # the parent's meter is not the child's to close
                with meter.start().window() as window:
                    time.sleep(0.03)
                answer += f"|{(window.report.energy_j or 0.0) > 0}"
                meter.close()
                os.write(write_end, answer.encode())
            finally:
                os._exit(0)
        os.close(write_end)
        _, status = os.waitpid(child, 0)
        answer = os.read(read_end, 1000).decode()
        os.close(read_end)
        assert status == 0
        assert answer == (
            "the energy meter does not run in this process; call start() here "
            "(it was started before a fork)|True"
        )
        assert meter.running
        assert (meter.totals().energy_j or 0.0) > 0


def test_pickled_meter_takes_its_settings_along(tmp_path: Path) -> None:
    meter = EnergyMeter("model", period_s=0.25)
    with meter:
        copy = pickle.loads(pickle.dumps(meter))
    assert not copy.running
    with pytest.raises(EnergyError, match=r"call start\(\) here"):
        copy.read()
    with copy:
        assert copy.running
        assert [domain.provenance for domain in copy.domains] == [Provenance.MODEL]


def test_settings_are_checked() -> None:
    with pytest.raises(EnergyError, match="period_s=0 must be above 0"):
        EnergyMeter(period_s=0)
    with pytest.raises(EnergyError, match="does not run in this process"):
        EnergyMeter().totals()


def test_attribution_of_a_meter(tmp_path: Path) -> None:
    """End to end on a virtual clock: 20 W while computing, 4 W while waiting."""
    clock = Clock()
    joules = [0.0]
    source = FakeSource(clock, [domain("a")], lambda: {"a": joules[0]})
    with _meter(tmp_path, clock, source) as meter:
        start_s = meter.read()
        for step in range(200):
            for phase, watts in (("compute", 20.0), ("waiting", 4.0)):
                with meter.phase(phase):
                    for _ in range(2 + step % 3):
                        clock.pass_s(0.07)
                        joules[0] += watts * 0.07
                        meter.read()
        report = meter.attribute(start_s, meter.read())
    assert report.separable, report.reason
    assert (report.power_w or {})["compute"] == pytest.approx(20.0, rel=0.01)
    assert (report.power_w or {})["waiting"] == pytest.approx(4.0, rel=0.01)


def test_power_series_leaves_gaps_out(tmp_path: Path) -> None:
    clock = Clock()
    watts = domain("w", provenance=Provenance.SAMPLED, scope=Scope.PLATFORM)
    source = FakeSource(clock, [watts], lambda: {"w": 6.0})
    with _meter(tmp_path, clock, source) as meter:
        start_s = meter.read()
        for wait_s in [0.1] * 20 + [6.0] + [0.1] * 20:
            clock.pass_s(wait_s)
            meter.read()
        series = meter.power_series(start_s, clock(), bins=10)
    assert [round(t, 6) for t, _ in series] == [0.5, 1.5, 8.5, 9.5]
    assert all(power == pytest.approx(6.0) for _, power in series)
