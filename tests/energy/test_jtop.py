"""The jtop source: against jetson-stats' own service where installed, and a faithful fake client.

`pip install jetson-stats` (a test tool here: AGPL-3.0, never imported by the package unless asked
for) runs the contract test on any Linux machine.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_edge.energy import EnergyMeter, SourceError, SourceLost, Unavailable
from lightning_edge.energy.domain import roots
from lightning_edge.energy.host import load_jtop
from lightning_edge.energy.power_modes import JtopPowerControl, current_mode, listed_modes
from lightning_edge.energy.sources.jtop import JtopSource
from lightning_edge.errors import EnergyError
from tests.energy import trees
from tests.energy.jtop_client import FakeJtop, host_with
from tests.energy.trees import Clock, faked_host

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if importlib.util.find_spec("jtop") is None:
        pytest.skip("jetson-stats is not installed: pip install jetson-stats")
    root, scratch = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("jtop")
    trees.jetson(root, trees.HWMON_BOARDS["Orin Nano"])
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, str(HERE / "jtop_service.py"), str(root), str(scratch)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return found


class TestRealService:
    def test_without_the_service(self, answers: dict[str, Any]) -> None:
        assert "jtop.service is not active" in answers["no_service"]

    def test_start_method_survives_the_import(self, answers: dict[str, Any]) -> None:
        assert answers["start_method"] == "spawn"
        assert answers["start_method_after_use"] == "spawn"

    def test_rails_and_total(self, answers: dict[str, Any]) -> None:
        assert answers["total"] == ["VDD_IN"]
        assert answers["domains"] == {
            "jtop:VDD_IN": None,
            "jtop:VDD_CPU_GPU_CV": "jtop:VDD_IN",
            "jtop:VDD_SOC": "jtop:VDD_IN",
        }
        assert answers["power_w"] == {
            "jtop:VDD_IN": 7.0, "jtop:VDD_CPU_GPU_CV": 2.5, "jtop:VDD_SOC": 1.5,
        }  # fmt: skip

    def test_values_follow_and_become_energy(self, answers: dict[str, Any]) -> None:
        assert answers["power_w_changed"]["jtop:VDD_IN"] == 10.0
        covered_j = answers["duration_s"] * 10.0
        assert 0.5 * covered_j < answers["energy_j"] <= covered_j * 1.001

    def test_another_client_that_asks_for_fewer_values(self, answers: dict[str, Any]) -> None:
        assert answers["slow_w"] == pytest.approx(7.0)
        assert answers["slow_covered"] > 0.5

    def test_total_does_not_become_the_sum_of_rails(self, answers: dict[str, Any]) -> None:
        assert answers["without_total"] == {"jtop:VDD_CPU_GPU_CV": 2.5, "jtop:VDD_SOC": 1.5}

    def test_power_modes(self, answers: dict[str, Any]) -> None:
        assert answers["modes"] == ["15W", "25W", "MAXN_SUPER"]
        assert answers["mode"] == "25W"
        assert answers["mode_set"] == ["0", "15W"]
        assert answers["mode_restored"] == ["1", "25W"]

    def test_power_mode_for_the_time_of_a_run(self, answers: dict[str, Any]) -> None:
        assert answers["mode_of_run"] == ["0", "15W"]
        assert answers["mode_after_run"] == ["1", "25W"]
        refused = answers["run refused MAXN_SUPER"]
        assert refused.startswith("device.power_mode=MAXN_SUPER: after ")
        assert "needs a reboot: sudo nvpmodel -m 2" in refused

    def test_mode_that_needs_a_reboot_is_not_forced(self, answers: dict[str, Any]) -> None:
        assert "needs a reboot: sudo nvpmodel -m 2" in answers["refused MAXN_SUPER"]
        assert "no power mode 'nonsense'" in answers["refused nonsense"]

    def test_death_of_the_service_is_noticed(self, answers: dict[str, Any]) -> None:
        assert answers["lost"].startswith("jtop's client stopped")


AGX = {"VDD_GPU_SOC": 3154, "VDD_CPU_CV": 14307, "VIN_SYS_5V0": 4968, "VDDQ_VDD2_1V8AO": 1093}


class TestClientHabits:
    def test_no_rail_twice_on_agx_orin(self, tmp_path: Path) -> None:
        """jtop's own sum is 23 522 mW there."""
        source = JtopSource.probe(host_with(tmp_path, Clock(), FakeJtop(AGX)))
        top = roots(source.domains)
        assert [domain.id for domain in top] == ["jtop:total"]
        assert source.read().power_w["jtop:total"] == pytest.approx(22.429)

    def test_old_values_are_no_values(self, tmp_path: Path) -> None:
        clock, fake = Clock(), FakeJtop({"VDD_IN": 7000})
        meter = EnergyMeter("jtop", host=host_with(tmp_path, clock, fake), background=False)
        with meter, meter.window() as window:
            for _ in range(10):
                clock.pass_s(0.1)
                fake.client.update(fake.client.board)
                meter.read()
            clock.pass_s(9.0)  # the service hangs; the client still shows 7 W
        assert window.report.energy_j == pytest.approx(7.0, rel=0.02)
        assert window.report.coverage == pytest.approx(0.1, rel=0.02)
        assert any("9.0 s old" in note for note in window.report.notes)

    def test_lost_for_good(self, tmp_path: Path) -> None:
        clock, fake = Clock(), FakeJtop({"VDD_IN": 7000})
        source = JtopSource.probe(host_with(tmp_path, clock, fake))
        clock.pass_s(5.0)
        with pytest.raises(SourceError, match="5.0 s old"):
            source.read()
        clock.pass_s(60.0)
        with pytest.raises(SourceLost, match="65 s old"):
            source.read()
        fake.client.error = BrokenPipeError(32, "Broken pipe")  # what the real client raises
        with pytest.raises(SourceLost, match="BrokenPipeError"):
            source.read()
        source.close()
        source.close()
        assert fake.client.closed
        assert fake.client.observers == []

    def test_no_known_total(self, tmp_path: Path) -> None:
        with pytest.raises(Unavailable, match="rails VDD_FOO, no total"):
            JtopSource.probe(host_with(tmp_path, Clock(), FakeJtop({"VDD_FOO": 1000})))

    def test_silent_service(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("lightning_edge.energy.sources.jtop.FIRST_VALUE_TIMEOUT_S", 0.05)
        fake = FakeJtop({"VDD_IN": 7000})
        fake.client.gives_values = False
        with pytest.raises(Unavailable, match="gave no value"):
            JtopSource.probe(host_with(tmp_path, Clock(), fake))
        assert fake.client.closed

    def test_not_installed(self, tmp_path: Path) -> None:
        with pytest.raises(Unavailable, match="pip3 install jetson-stats"):
            JtopSource.probe(faked_host(tmp_path, Clock()))

    def test_start_method_is_put_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "jtop.py").write_text(
            "import multiprocessing\nmultiprocessing.set_start_method('fork', force=True)\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "jtop", raising=False)
        before = multiprocessing.get_start_method(allow_none=True)
        multiprocessing.set_start_method("spawn", force=True)
        try:
            load_jtop()
            assert multiprocessing.get_start_method() == "spawn"
        finally:
            multiprocessing.set_start_method(before, force=True)
            sys.modules.pop("jtop", None)


class TestPowerModes:
    def test_read_without_privilege(self, tmp_path: Path) -> None:
        trees.write(
            tmp_path,
            {
                "/etc/nvpmodel.conf": "# POWER_MODEL ID=9 NAME=OLD\n< POWER_MODEL ID=0 NAME=15W >\n"
                "CPU_ONLINE CORE_0 1\n< POWER_MODEL ID=1 NAME=25W >\n"
                "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< PM_CONFIG DEFAULT=1 >",
                "/var/lib/nvpmodel/status": "pmode:0002 fmode:quiet",
            },
        )
        host = faked_host(tmp_path, Clock())
        assert listed_modes(host) == {0: "15W", 1: "25W", 2: "MAXN_SUPER"}
        assert current_mode(host) == "MAXN_SUPER"
        elsewhere = faked_host(tmp_path / "pc", Clock())
        assert listed_modes(elsewhere) == {}
        assert current_mode(elsewhere) is None

    def test_set_and_restore(self, tmp_path: Path) -> None:
        fake = FakeJtop({"VDD_IN": 7000})
        with JtopPowerControl(host_with(tmp_path, Clock(), fake)) as control:
            control.set("15W")
            assert control.current() == "15W"
        assert fake.client.model.name == "25W"
        assert fake.client.closed

    def test_refused_mode(self, tmp_path: Path) -> None:
        fake = FakeJtop({"VDD_IN": 7000})
        fake.client.model.refuses = "15W"
        with (
            JtopPowerControl(host_with(tmp_path, Clock(), fake)) as control,
            pytest.raises(EnergyError, match=r"after 0\.1 s .* not in 15W.*sudo nvpmodel -m 0"),
        ):
            control.set("15W", timeout_s=0.1)
