"""Battery, Raspberry Pi, the testbed's meter, and the estimate of last resort."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_edge.energy import (
    EnergyMeter,
    PowerModel,
    Provenance,
    Scope,
    SourceError,
    Unavailable,
    fit_power_model,
)
from lightning_edge.energy.sources.battery import BatterySource, battery_pct
from lightning_edge.energy.sources.emulated import EmulatedSource
from lightning_edge.energy.sources.model import ModelSource, default_model
from lightning_edge.energy.sources.raspberry_pi import BOARD, RAILS, RaspberryPiSource
from lightning_edge.energy.telemetry import temperature_c
from lightning_edge.errors import EnergyError
from tests.energy import trees
from tests.energy.trees import Clock, faked_host


class TestBattery:
    def test_power_of_the_machine_and_not_of_the_mouse(self, tmp_path: Path) -> None:
        trees.laptop_battery(tmp_path)
        source = BatterySource.probe(faked_host(tmp_path, Clock()))
        assert source.read().power_w == {"battery": 12.5}
        assert source.domains[0].provenance is Provenance.BATTERY
        assert source.domains[0].scope is Scope.PLATFORM
        assert battery_pct(faked_host(tmp_path, Clock())) == 72.0

    def test_current_times_voltage(self, tmp_path: Path) -> None:
        trees.laptop_battery(tmp_path)
        base = tmp_path / "sys/class/power_supply/BAT0"
        (base / "power_now").unlink()
        (base / "current_now").write_text("-1500000\n")  # some drivers sign a discharge
        (base / "voltage_now").write_text("12000000\n")
        source = BatterySource.probe(faked_host(tmp_path, Clock()))
        assert source.read().power_w == {"battery": pytest.approx(18.0)}

    @pytest.mark.parametrize("by_charge", [False, True])
    def test_energy_taken_where_there_is_no_power(self, tmp_path: Path, by_charge: bool) -> None:
        trees.laptop_battery(tmp_path)
        base = tmp_path / "sys/class/power_supply/BAT0"
        (base / "power_now").unlink()
        if by_charge:
            (base / "energy_now").unlink()
            trees.write(base, {"charge_now": 3_000_000, "voltage_now": 12_000_000})
        source = BatterySource.probe(faked_host(tmp_path, Clock()))
        assert source.read().energy_j == {"battery": 0.0}
        if by_charge:
            trees.write(base, {"charge_now": 2_900_000})  # 0.1 Ah at 12 V
        else:
            trees.write(base, {"energy_now": 34_800_000})  # 1.2 Wh
        assert source.read().energy_j == {"battery": pytest.approx(4320.0)}

    @pytest.mark.parametrize("status", ["Charging", "Full", "Not charging"])
    def test_on_the_mains_it_tells_nothing(self, tmp_path: Path, status: str) -> None:
        trees.laptop_battery(tmp_path, status=status)
        with pytest.raises(Unavailable, match=f"BAT0 is {status}.*unplug"):
            BatterySource.probe(faked_host(tmp_path, Clock()))

    def test_plugged_in_during_the_run_lowers_the_coverage(self, tmp_path: Path) -> None:
        trees.laptop_battery(tmp_path)
        clock = Clock()
        meter = EnergyMeter("battery", host=faked_host(tmp_path, clock), background=False)
        with meter, meter.window() as window:
            clock.pass_s(10.0)
            meter.read()
            trees.laptop_battery(tmp_path, status="Charging")
            clock.pass_s(90.0)
        assert window.report.energy_j == pytest.approx(125.0)
        assert window.report.coverage == pytest.approx(0.1)
        assert any("Charging" in note for note in window.report.notes)

    def test_no_battery(self, tmp_path: Path) -> None:
        host = faked_host(tmp_path, Clock())
        assert battery_pct(host) is None
        with pytest.raises(Unavailable, match="no battery"):
            BatterySource.probe(host)


class TestRaspberryPi:
    def test_board_power_follows_the_fit(self, tmp_path: Path) -> None:
        trees.write(tmp_path, {"/proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0"})
        source = RaspberryPiSource.probe(faked_host(tmp_path, Clock(), run=trees.pmic_command))
        rails_w = 0.1 * 3.7 + 0.2 * 3.3 + 2.0 * 0.8
        watts = source.read().power_w
        assert watts[RAILS] == pytest.approx(rails_w)
        assert watts[BOARD] == pytest.approx(1.1451 * rails_w + 0.5879)
        assert {d.id: d.parent for d in source.domains} == {BOARD: None, RAILS: BOARD}

    @pytest.mark.parametrize(
        ("board", "remedy"),
        [("Raspberry Pi 5 Model B", "group video"), ("Raspberry Pi 4 Model B", "only the Pi 5")],
    )
    def test_no_command(self, tmp_path: Path, board: str, remedy: str) -> None:
        trees.write(tmp_path, {"/proc/device-tree/model": board})
        with pytest.raises(Unavailable, match=remedy):
            RaspberryPiSource.probe(faked_host(tmp_path, Clock()))

    def test_output_without_currents(self, tmp_path: Path) -> None:
        trees.write(tmp_path, {"/proc/device-tree/model": "Raspberry Pi 5"})
        host = faked_host(tmp_path, Clock(), run=lambda *_: "EXT5V_V volt(24)=5.1V\n")
        with pytest.raises(Unavailable, match="no rail with current and voltage"):
            RaspberryPiSource.probe(host)

    def test_not_a_pi(self, tmp_path: Path) -> None:
        with pytest.raises(Unavailable, match="not a Raspberry Pi"):
            RaspberryPiSource.probe(faked_host(tmp_path, Clock()))


class TestEmulated:
    def _meter(self, folder: Path, clock: Clock) -> dict[str, str]:
        about = {
            "format": 1, "emulated": True, "device": "orin", "board": "orin-nano:15W",
            "idle_w": 3.1, "busy_w": 11.4, "joules_per_byte": 3e-8, "update_period_s": 0.05,
            "rel_uncertainty": 0.3, "source": "test",
        }  # fmt: skip
        trees.write(
            folder,
            {
                "meter.json": json.dumps(about),
                "energy_uj": f"{5_000_000:020d}",
                "power_w": 3.1,
                "time_s": clock(),
            },
        )
        return {"LIGHTNING_EDGE_METER_DIR": str(folder), "LIGHTNING_EDGE_TESTBED": "bed7"}

    def test_is_taken_alone_and_never_called_measured(self, tmp_path: Path) -> None:
        clock = Clock()
        environ = self._meter(tmp_path / "meter", clock)
        trees.rapl(tmp_path)  # the real machine's counters, which are not this device's
        host = faked_host(tmp_path, clock, environ=environ)
        meter = EnergyMeter(host=host, background=False)
        with meter, meter.window() as window:
            clock.pass_s(2.0)
            energy = tmp_path / "meter/energy_uj"
            energy.write_text(f"{15_000_000:020d}\n")
            (tmp_path / "meter/time_s").write_text(f"{clock()}\n")
        report = window.report
        assert list(report.domains) == ["emulated:bed7:orin"]
        assert report.energy_j == pytest.approx(10.0)
        assert report.measured_j is None
        assert report.measured_fraction == 0.0
        assert list(report.by_provenance) == [Provenance.EMULATED]
        assert report.domains["emulated:bed7:orin"].domain.rel_uncertainty == 0.3

    def test_a_meter_that_stopped_is_dead_and_not_idle(self, tmp_path: Path) -> None:
        clock = Clock()
        host = faked_host(tmp_path, clock, environ=self._meter(tmp_path / "meter", clock))
        source = EmulatedSource.probe(host)
        clock.pass_s(0.9)
        source.read()
        clock.pass_s(0.2)
        with pytest.raises(SourceError, match="stopped 1.1 s ago"):
            source.read()
        source.close()

    def test_refusals(self, tmp_path: Path) -> None:
        with pytest.raises(Unavailable, match="not on the testbed"):
            EmulatedSource.probe(faked_host(tmp_path, Clock()))
        environ = {"LIGHTNING_EDGE_METER_DIR": str(tmp_path)}
        with pytest.raises(Unavailable, match=r"cannot be read.*meter\.json"):
            EmulatedSource.probe(faked_host(tmp_path, Clock(), environ=environ))
        trees.write(tmp_path, {"meter.json": '{"format": 2}'})
        with pytest.raises(Unavailable, match="format 2, not 1"):
            EmulatedSource.probe(faked_host(tmp_path, Clock(), environ=environ))


class TestModel:
    def test_energy_follows_utilisation(self, tmp_path: Path) -> None:
        clock = Clock()
        trees.cpu_stat(tmp_path, busy_s=100, idle_s=100)
        host = faked_host(tmp_path, clock)
        source = ModelSource.probe(host, PowerModel(2.0, 10.0))
        clock.pass_s(10.0)
        trees.cpu_stat(tmp_path, busy_s=110, idle_s=130)  # a quarter of four cores' time
        assert source.read().energy_j == {"model:platform": pytest.approx(10 * 4.0)}
        clock.pass_s(5.0)
        trees.cpu_stat(tmp_path, busy_s=130, idle_s=130)
        assert source.read().energy_j == {"model:platform": pytest.approx(40.0 + 50.0)}
        assert source.domains[0].provenance is Provenance.MODEL

    def test_a_busy_gpu_counts_like_busy_cores(self, tmp_path: Path) -> None:
        clock = Clock()
        trees.cpu_stat(tmp_path, busy_s=100, idle_s=100)
        trees.write(tmp_path, {"/sys/class/devfreq/17000000.gpu/device/load": 750})
        source = ModelSource.probe(faked_host(tmp_path, clock), PowerModel(0.0, 10.0))
        clock.pass_s(2.0)
        trees.cpu_stat(tmp_path, busy_s=100, idle_s=108)
        assert source.read().energy_j == {"model:platform": pytest.approx(15.0)}

    def test_known_board(self, tmp_path: Path) -> None:
        trees.write(tmp_path, {"/proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0"})
        model = default_model(faked_host(tmp_path, Clock()))
        assert (model.idle_w, model.full_w, model.whole_platform) == (1.6, 7.2, True)
        assert "geerlingguy" in model.origin

    def test_power_limit_of_the_processor(self, tmp_path: Path) -> None:
        base = "/sys/class/powercap/intel-rapl:0"
        trees.write(
            tmp_path,
            {f"{base}/name": "package-0", f"{base}/constraint_0_power_limit_uw": 65_000_000},
        )
        model = default_model(faked_host(tmp_path, Clock()))
        assert model.full_w == 65.0
        assert not model.whole_platform

    def test_a_guess_is_called_one(self, tmp_path: Path) -> None:
        model = default_model(faked_host(tmp_path, Clock()))
        assert "a guess" in model.origin
        assert model.rel_uncertainty == 0.6

    def test_fit_finds_the_curve(self) -> None:
        truth = PowerModel(3.0, 12.0, exponent=1.6)
        points = [(u / 10, truth.power_w(u / 10)) for u in range(11)]
        model = fit_power_model(points)
        assert model.idle_w == pytest.approx(3.0, abs=0.02)
        assert model.full_w == pytest.approx(12.0, abs=0.02)
        assert model.exponent == pytest.approx(1.6, abs=0.02)
        assert model.rel_uncertainty == 0.15

    def test_too_few_points(self) -> None:
        with pytest.raises(EnergyError, match="at rest, at about half and at full load"):
            fit_power_model([(0.1, 3.0), (0.9, 9.0)])
        with pytest.raises(EnergyError, match="do not fix"):
            fit_power_model([(0.50, 3.0), (0.51, 9.0), (0.52, 9.0)])

    def test_impossible_models_are_refused(self) -> None:
        with pytest.raises(EnergyError, match="idle_w <= full_w"):
            PowerModel(5.0, 3.0)
        with pytest.raises(EnergyError, match="exponent=9"):
            PowerModel(1.0, 3.0, exponent=9)

    def test_without_proc_stat(self, tmp_path: Path) -> None:
        with pytest.raises(Unavailable, match="no /proc/stat"):
            ModelSource.probe(faked_host(tmp_path, Clock()))


def test_hottest_zone_without_the_absurd(tmp_path: Path) -> None:
    trees.write(
        tmp_path,
        {
            "/sys/class/thermal/thermal_zone0/temp": 51_500,
            "/sys/class/thermal/thermal_zone1/temp": -256_000,  # an offline zone of a Jetson
            "/sys/class/thermal/thermal_zone2/temp": "",
        },
    )
    host = faked_host(tmp_path, Clock())
    assert temperature_c(host, {"gpu:0:temp_c": 63.0}) == 63.0
    assert temperature_c(host, {}) == 51.5
    assert temperature_c(faked_host(tmp_path / "none", Clock()), {}) is None
