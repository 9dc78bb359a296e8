"""Graphics cards and other chips of /sys/class/hwmon, measured and estimated."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_edge.energy import EnergyMeter, Provenance, Scope, SourceError, Unavailable
from lightning_edge.energy.domain import roots
from lightning_edge.energy.record import record
from lightning_edge.energy.replay import Recording
from lightning_edge.energy.select import open_sources
from lightning_edge.energy.sources.gpu_model import GpuModelSource, model_of
from lightning_edge.energy.sources.hwmon import TOTAL_VARIABLE, HwmonSource
from tests.energy import trees
from tests.energy.trees import Clock, faked_host


def chip(root: Path, number: int, name: str, device: str, files: dict[str, object]) -> Path:
    """A chip as the kernel shows it: its files below its device, and links to both."""
    base = root / f"sys/devices/{device}"
    folder = base / f"hwmon/hwmon{number}"
    trees.write(folder, {"name": name, **files})
    (folder / "device").symlink_to("../..")
    link = root / f"sys/class/hwmon/hwmon{number}"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(f"../../devices/{device}/hwmon/hwmon{number}")
    return folder


CARD = "0000:03:00.0"
AVERAGE = {"power1_average": 35_000_000, "power1_label": "PPT", "power1_cap": 150_000_000}


def test_discrete_amd_card_by_its_mean_power(tmp_path: Path) -> None:
    chip(tmp_path, 4, "amdgpu", CARD, {**AVERAGE, "power1_input": 90_000_000})
    source = HwmonSource.probe(faked_host(tmp_path, Clock()))
    assert source.read().power_w == {f"gpu:{CARD}": 35.0}
    assert [(d.scope, d.provenance) for d in source.domains] == [(Scope.GPU, Provenance.SAMPLED)]
    source.close()
    with pytest.raises(SourceError, match="closed"):
        source.read()


@pytest.mark.parametrize("driver", ["i915", "xe"])
def test_intel_card_by_its_counter(tmp_path: Path, driver: str) -> None:
    folder = chip(tmp_path, 2, driver, CARD, {"energy1_input": 5_000_000, "energy2_input": 1})
    clock = Clock()
    meter = EnergyMeter("hwmon", host=faked_host(tmp_path, clock), background=False)
    with meter, meter.window() as window:
        clock.pass_s(2.0)
        (folder / "energy1_input").write_text("65000000\n")
    assert window.report.energy_j == pytest.approx(60.0)
    assert list(window.report.by_provenance) == [Provenance.COUNTER]


def test_apu_is_the_package_and_never_beside_it(tmp_path: Path) -> None:
    """Its driver tells the power of the whole processor, which RAPL counts as well."""
    chip(tmp_path, 3, "amdgpu", "0000:05:00.0", {**AVERAGE, "in1_label": "vddnb"})
    host = faked_host(tmp_path, Clock(), environ={"CUDA_VISIBLE_DEVICES": ""})
    source = HwmonSource.probe(host)
    (apu,) = source.domains
    source.close()
    assert (apu.id, apu.scope) == ("hwmon:0000:05:00.0", Scope.PACKAGE)
    assert roots([apu]) == (apu,)
    trees.rapl(tmp_path, psys=False)
    sources, _ = open_sources("auto", host)
    counted = {d.id for d in roots(d for source in sources for d in source.domains)}
    for source in sources:
        source.close()
    assert counted == {"rapl:package-0", "rapl:package-0:dram"}


@pytest.mark.parametrize(
    ("environ", "seen"),
    [
        ({}, {"gpu:0000:03:00.0", "gpu:0000:0a:00.0"}),
        ({"HIP_VISIBLE_DEVICES": "1"}, {"gpu:0000:0a:00.0"}),
        ({"CUDA_VISIBLE_DEVICES": "0"}, {"gpu:0000:03:00.0"}),
    ],
)
def test_only_visible_cards(tmp_path: Path, environ: dict[str, str], seen: set[str]) -> None:
    chip(tmp_path, 7, "amdgpu", "0000:03:00.0", {"power1_input": 10_000_000})
    chip(tmp_path, 1, "amdgpu", "0000:0a:00.0", {"power1_input": 20_000_000})
    source = HwmonSource.probe(faked_host(tmp_path, Clock(), environ=environ))
    source.close()
    assert {domain.id for domain in source.domains} == seen


def test_hidden_cards_are_said_to_be_hidden(tmp_path: Path) -> None:
    chip(tmp_path, 7, "amdgpu", CARD, AVERAGE)
    with pytest.raises(Unavailable, match="hidden from this process"):
        HwmonSource.probe(faked_host(tmp_path, Clock(), environ={"CUDA_VISIBLE_DEVICES": ""}))


def test_unknown_chip_counts_only_when_its_owner_says_what_it_is(tmp_path: Path) -> None:
    chip(tmp_path, 0, "ina226", "1-0040", {"power1_input": 9_500_000})
    chip(tmp_path, 1, "nvme", "0000:01:00.0", {"temp1_input": 40_000})
    trees.rapl(tmp_path)  # a part of what the named input feeds
    host = faked_host(tmp_path, Clock())
    with pytest.raises(Unavailable, match=f'ina226:power1 .*{TOTAL_VARIABLE}="ina226:power1"'):
        HwmonSource.probe(host)
    named = faked_host(tmp_path, Clock(), environ={TOTAL_VARIABLE: "ina226:power1"})
    meter = EnergyMeter(host=named, background=False)
    with meter, meter.window() as window:
        named.clock.pass_s(0.4)  # type: ignore[attr-defined]
    assert window.report.energy_j == pytest.approx(3.8)
    assert [e.domain.scope for e in window.report.counted] == [Scope.PLATFORM]
    wrong = faked_host(tmp_path, Clock(), environ={TOTAL_VARIABLE: "ina219:power1"})
    with pytest.raises(Unavailable, match="names 0 channels; there are ina226:power1"):
        HwmonSource.probe(wrong)


def test_named_input_survives_recording(tmp_path: Path) -> None:
    chip(tmp_path / "pc", 0, "ina226", "1-0040", {"power1_input": 9_500_000})
    clock = Clock()
    host = faked_host(tmp_path / "pc", clock, environ={TOTAL_VARIABLE: "ina226:power1"})
    record(host, tmp_path / "pc.tar.gz", 0.0)
    (tmp_path / "elsewhere").mkdir()
    recording = Recording(tmp_path / "pc.tar.gz", tmp_path / "elsewhere")
    assert recording.host.environ == {TOTAL_VARIABLE: "ina226:power1"}
    assert recording.sources() == ["hwmon"]
    with EnergyMeter("hwmon", host=recording.host, background=False) as meter:
        assert [domain.scope for domain in meter.domains] == [Scope.PLATFORM]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no chip in /sys/class/hwmon"):
        HwmonSource.probe(faked_host(tmp_path, Clock()))
    chip(tmp_path, 0, "amdgpu", CARD, {"power1_input": ""})  # asleep: the driver says EPERM
    with pytest.raises(Unavailable, match="power1_input"):
        HwmonSource.probe(faked_host(tmp_path, Clock()))
    trees.write(tmp_path, {"/etc/nv_tegra_release": "R36"})
    with pytest.raises(Unavailable, match=r"read by the source jetson|power1_input"):
        HwmonSource.probe(faked_host(tmp_path, Clock()))


class TestEstimate:
    def _card(self, root: Path, files: dict[str, object]) -> Path:
        folder = root / f"sys/devices/{CARD}"
        trees.write(folder, {"gpu_busy_percent": 50})
        if files:
            chip(root, 0, "amdgpu", CARD, files)
        link = root / "sys/class/drm/card0"
        link.mkdir(parents=True)
        (link / "device").symlink_to(f"../../../devices/{CARD}")
        return folder / "gpu_busy_percent"

    def test_amd_card_without_power(self, tmp_path: Path) -> None:
        clock = Clock()
        busy = self._card(tmp_path, {"power1_cap": 100_000_000})
        source = GpuModelSource.probe(faked_host(tmp_path, clock))
        clock.pass_s(2.0)
        assert source.read().energy_j == {f"model:gpu:{CARD}": pytest.approx(110.0)}
        busy.write_text("")
        with pytest.raises(SourceError, match="AMD card 0000:03:00.0"):
            source.read()
        busy.write_text("0")
        clock.pass_s(1.0)  # the time of the failed reading is not lost
        assert source.read().energy_j == {f"model:gpu:{CARD}": pytest.approx(120.0)}

    @pytest.mark.parametrize("files", [AVERAGE, {"in1_label": "vddnb"}])
    def test_measured_cards_and_apus_are_not_estimated(
        self, tmp_path: Path, files: dict[str, object]
    ) -> None:
        self._card(tmp_path, files)
        with pytest.raises(Unavailable, match="tells its load and not its power"):
            GpuModelSource.probe(faked_host(tmp_path, Clock()))

    def test_processor_and_card_add_up(self, tmp_path: Path) -> None:
        self._card(tmp_path, {})
        trees.cpu_stat(tmp_path, 1, 1)
        sources, _ = open_sources("auto", faked_host(tmp_path, Clock()))
        counted = roots(d for source in sources for d in source.domains)
        assert {d.id for d in counted} == {"model:cpu", f"model:gpu:{CARD}"}

    def test_where_the_machine_is_covered_nothing_is_added(self, tmp_path: Path) -> None:
        self._card(tmp_path, {})
        trees.laptop_battery(tmp_path)
        sources, choices = open_sources("auto", faked_host(tmp_path, Clock()))
        assert [source.kind for source in sources] == ["battery"]
        assert "whole machine" in next(c.reason for c in choices if c.kind == "gpu_model")

    @pytest.mark.parametrize(
        ("name", "limit_w", "full_w", "origin"),
        [
            ("NVIDIA GeForce GTX 1050 Ti", None, 75.0, "maker"),
            ("NVIDIA GeForce GTX 960M", None, 75.0, "guess"),  # not a GTX 960
            ("NVIDIA GeForce GTX 1060 6GB", 120.0, 120.0, "driver"),
        ],
    )
    def test_limit(self, name: str, limit_w: float | None, full_w: float, origin: str) -> None:
        model = model_of(name, limit_w)
        assert model.full_w == full_w
        assert model.idle_w == pytest.approx(0.1 * full_w)
        assert origin in model.origin
