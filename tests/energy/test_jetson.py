from __future__ import annotations

from pathlib import Path

import pytest

from lightning_edge.energy import EnergyMeter, Provenance, Scope, SourceError, Unavailable
from lightning_edge.energy.domain import roots
from lightning_edge.energy.sources.jetson_ina import TOTAL_VARIABLE, JetsonSource
from tests.energy import trees
from tests.energy.trees import Clock, faked_host


@pytest.mark.parametrize("board", trees.HWMON_BOARDS)
def test_total_of_each_board(tmp_path: Path, board: str) -> None:
    trees.jetson(tmp_path, trees.HWMON_BOARDS[board])
    source = JetsonSource.probe(faked_host(tmp_path, Clock()))
    counted = {domain.id for domain in roots(source.domains)}
    watts = source.read().power_w
    source.close()
    assert sum(watts[key] for key in counted) == pytest.approx(
        trees.HWMON_TOTALS_W[board], abs=5e-4
    )
    assert all(d.provenance is Provenance.SAMPLED for d in source.domains)
    assert all(d.scope is Scope.MODULE for d in source.domains if d.id in counted)


def test_nano_reads_the_old_driver(tmp_path: Path) -> None:
    trees.jetson_nano(tmp_path)
    source = JetsonSource.probe(faked_host(tmp_path, Clock()))
    assert source.read().power_w["ina:6-0040:POM_5V_IN"] == pytest.approx(0.950)
    assert [d.id for d in roots(source.domains)] == ["ina:6-0040:POM_5V_IN"]
    source.close()


def test_thor_takes_the_carrier_input_in_microwatts(tmp_path: Path) -> None:
    trees.thor(tmp_path)
    source = JetsonSource.probe(faked_host(tmp_path, Clock()))
    top = roots(source.domains)
    assert [(d.name, d.scope) for d in top] == [("VIN", Scope.PLATFORM)]
    assert source.read().power_w[top[0].id] == pytest.approx(31.5)
    source.close()


def test_a_rail_inside_another_is_never_added(tmp_path: Path) -> None:
    """jtop adds VDDQ_VDD2_1V8AO to its feeding rail: 4.9 % too much."""
    trees.jetson(tmp_path, trees.HWMON_BOARDS["AGX Orin"])
    source = JetsonSource.probe(faked_host(tmp_path, Clock()))
    parents = {domain.name: domain.parent for domain in source.domains}
    assert parents["VDDQ_VDD2_1V8AO"] == "ina:1-0040:VIN_SYS_5V0"
    assert parents["VDD_CPU_CV"] == "ina:total"
    source.close()


def test_unconnected_sum_and_dead_channels_are_left_out(tmp_path: Path) -> None:
    trees.jetson(tmp_path, trees.HWMON_BOARDS["Orin Nano"])
    folder = tmp_path / "sys/bus/i2c/devices/1-0040/hwmon/hwmon3"
    (folder / "curr3_input").unlink()
    (folder / "curr3_input").mkdir()  # reading a directory fails as a disabled channel does: EISDIR
    source = JetsonSource.probe(faked_host(tmp_path, Clock()))
    assert {domain.name for domain in source.domains} == {"VDD_IN", "VDD_CPU_GPU_CV"}
    source.close()


def test_the_chips_own_window_is_known(tmp_path: Path) -> None:
    trees.jetson(tmp_path, trees.HWMON_BOARDS["Orin Nano"])
    source = JetsonSource.probe(faked_host(tmp_path, Clock()))
    assert {domain.update_period_s for domain in source.domains} == {0.036}
    source.close()


def test_total_is_missing_when_one_of_its_rails_fails(tmp_path: Path) -> None:
    """The total must not silently change its meaning, as jtop's does."""
    trees.jetson(tmp_path, trees.HWMON_BOARDS["AGX Xavier"])
    source = JetsonSource.probe(faked_host(tmp_path, Clock()))
    path = tmp_path / "sys/bus/i2c/devices/1-0040/hwmon/hwmon3/curr1_input"
    path.write_text("")
    watts = source.read().power_w
    assert "ina:total" not in watts
    assert watts["ina:1-0040:CPU"] == pytest.approx(0.38)
    path.write_text("60\n")
    assert source.read().power_w["ina:total"] == pytest.approx(6.880)
    source.close()


def test_custom_carrier_names_its_own_total(tmp_path: Path) -> None:
    chips = {"1-0040": {1: ("VDD_FOO", 5000, 1000), 2: ("VDD_BAR", 5000, 200)}}
    trees.jetson(tmp_path, chips)
    with pytest.raises(Unavailable, match=f'no known total.*{TOTAL_VARIABLE}="VDD_FOO'):
        JetsonSource.probe(faked_host(tmp_path, Clock()))
    host = faked_host(tmp_path, Clock(), environ={TOTAL_VARIABLE: "VDD_FOO"})
    source = JetsonSource.probe(host)
    assert [domain.name for domain in roots(source.domains)] == ["VDD_FOO"]
    source.close()
    host = faked_host(tmp_path, Clock(), environ={TOTAL_VARIABLE: "VDD_FOO+VDD_BAZ"})
    with pytest.raises(Unavailable, match="but not all of"):
        JetsonSource.probe(host)


def test_refusals_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="not a Jetson"):
        JetsonSource.probe(faked_host(tmp_path, Clock()))
    trees.write(tmp_path, {"/sys/bus/i2c/devices/0-0050/name": "24c02"})
    with pytest.raises(Unavailable, match="no INA power monitor"):
        JetsonSource.probe(faked_host(tmp_path, Clock()))


def test_everything_unreadable_is_a_transient_error(tmp_path: Path) -> None:
    trees.jetson_nano(tmp_path)
    source = JetsonSource.probe(faked_host(tmp_path, Clock()))
    for path in tmp_path.glob("sys/bus/i2c/devices/6-0040/iio:device0/in_current*"):
        path.write_text("")
    with pytest.raises(SourceError, match="in_current0_input"):
        source.read()
    source.close()
    with pytest.raises(SourceError, match="closed"):
        source.read()


def test_meter_integrates_the_module(tmp_path: Path) -> None:
    trees.jetson(tmp_path, trees.HWMON_BOARDS["Orin Nano"])
    clock = Clock()
    meter = EnergyMeter("jetson", host=faked_host(tmp_path, clock), background=False)
    current = tmp_path / "sys/bus/i2c/devices/1-0040/hwmon/hwmon3/curr1_input"
    with meter, meter.window() as window:
        for _ in range(10):
            clock.pass_s(0.1)
            meter.read()
        current.write_text("2000\n")  # 7 W, then 10 W: the edge lies inside one trapezoid
        for _ in range(10):
            clock.pass_s(0.1)
            meter.read()
    assert window.report.energy_j == pytest.approx(7.0 + 10.0 - 0.15)
    assert window.report.coverage == 1.0
    assert window.report.measured_fraction == 1.0
    assert window.report.domains["ina:1-0040:VDD_SOC"].counted_j is None
