from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_edge.energy import EnergyMeter, Provenance, SourceError, Unavailable
from lightning_edge.energy.domain import roots
from lightning_edge.energy.sources import rapl as rapl_module
from lightning_edge.energy.sources.rapl import RaplSource
from tests.energy import trees
from tests.energy.trees import Clock, faked_host


def _top(source: RaplSource) -> set[str]:
    return {domain.id for domain in roots(source.domains)}


def test_psys_contains_packages_and_dram(tmp_path: Path) -> None:
    trees.rapl(tmp_path)
    source = RaplSource.probe(faked_host(tmp_path, Clock()))
    assert _top(source) == {"rapl:psys"}
    parents = {domain.id: domain.parent for domain in source.domains}
    assert parents == {
        "rapl:psys": None,
        "rapl:package-0": "rapl:psys",
        "rapl:package-0:core": "rapl:package-0",
        "rapl:package-0:dram": "rapl:psys",
    }
    source.close()


def test_without_psys_packages_and_dram_add_up(tmp_path: Path) -> None:
    trees.rapl(tmp_path, psys=False, sockets=2)
    source = RaplSource.probe(faked_host(tmp_path, Clock()))
    assert _top(source) == {
        "rapl:package-0", "rapl:package-0:dram", "rapl:package-1", "rapl:package-1:dram",
    }  # fmt: skip
    source.close()


def test_wrap_around_loses_and_invents_nothing(tmp_path: Path) -> None:
    trees.rapl(tmp_path)  # both counters stand 1 J before their range
    clock = Clock()
    meter = EnergyMeter("rapl", host=faked_host(tmp_path, clock), background=False)
    with meter, meter.window() as window:
        clock.pass_s(1.0)
        trees.spend(tmp_path, "intel-rapl:0", 10.0)
        trees.spend(tmp_path, "intel-rapl:1", 18.0)
    report = window.report
    assert report.domains["rapl:package-0"].energy_j == pytest.approx(10.0)
    assert report.energy_j == pytest.approx(18.0)  # psys alone, not 28
    assert report.coverage == 1.0
    assert list(report.by_provenance) == [Provenance.COUNTER]


def test_a_pause_that_may_hide_several_wraps_is_not_covered(tmp_path: Path) -> None:
    trees.rapl(tmp_path, psys=False, dram=False)
    clock = Clock()
    meter = EnergyMeter("rapl", host=faked_host(tmp_path, clock), background=False)
    with meter, meter.window() as window:
        clock.pass_s(1.0)
        trees.spend(tmp_path, "intel-rapl:0", 5.0)
        meter.read()
        clock.pass_s(3600.0)
        trees.spend(tmp_path, "intel-rapl:0", 7.0)
        meter.read()
        clock.pass_s(1.0)
        trees.spend(tmp_path, "intel-rapl:0", 5.0)
    report = window.report
    assert report.energy_j == pytest.approx(10.0)
    assert report.coverage == pytest.approx(2 / 3602)
    assert report.is_lower_bound
    assert any("started anew" in note for note in report.notes)


def test_psys_that_is_not_wired_is_ignored(tmp_path: Path) -> None:
    trees.rapl(tmp_path)
    (tmp_path / "sys/class/powercap/intel-rapl:1/energy_uj").write_text("0\n")
    source = RaplSource.probe(faked_host(tmp_path, Clock()))
    assert _top(source) == {"rapl:package-0", "rapl:package-0:dram"}
    source.close()


@pytest.fixture
def deny(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Refuse to open files whose path contains a text, as the kernel does to all but root."""
    parts: list[str] = []
    real = rapl_module.NumberFile

    def denied(path: Path) -> object:
        if any(part in str(path) for part in parts):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(rapl_module, "NumberFile", denied)
    return parts.append


def test_permission_error_names_the_remedy(tmp_path: Path, deny: Callable[[str], None]) -> None:
    trees.rapl(tmp_path)
    deny("energy_uj")
    with pytest.raises(Unavailable, match="no permission.*package-0") as caught:
        RaplSource.probe(faked_host(tmp_path, Clock()))
    assert "chmod a+r" in caught.value.remedy
    assert "udev" in caught.value.remedy
    assert "powercap:ro" in caught.value.remedy


def test_one_readable_zone_is_used(tmp_path: Path, deny: Callable[[str], None]) -> None:
    trees.rapl(tmp_path)
    deny("intel-rapl:1/energy_uj")  # psys
    source = RaplSource.probe(faked_host(tmp_path, Clock()))
    assert "rapl:psys" not in {domain.id for domain in source.domains}
    assert _top(source) == {"rapl:package-0", "rapl:package-0:dram"}
    source.close()


def test_dram_alone_is_not_taken_for_the_machine(
    tmp_path: Path, deny: Callable[[str], None]
) -> None:
    trees.rapl(tmp_path, psys=False)
    deny("intel-rapl:0/energy_uj")
    deny(":0:0/energy_uj")
    with pytest.raises(Unavailable, match="no permission"):
        RaplSource.probe(faked_host(tmp_path, Clock()))


def test_virtual_machine_has_none(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no RAPL zones"):
        RaplSource.probe(faked_host(tmp_path, Clock()))


def test_failed_reads_are_made_up_for_by_the_counter(tmp_path: Path) -> None:
    trees.rapl(tmp_path, psys=False, dram=False)
    clock = Clock()
    path = tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj"
    meter = EnergyMeter("rapl", host=faked_host(tmp_path, clock), background=False)
    with meter:
        start_s = meter.read()
        kept = path.read_text()
        path.write_text("")
        path_core = path.parent / "intel-rapl:0:0/energy_uj"
        kept_core = path_core.read_text()
        path_core.write_text("")
        clock.pass_s(1.0)
        middle_s = meter.read()
        during = meter.report(start_s, middle_s)
        assert during.energy_j is None  # unknown, not 0
        assert during.coverage == 0.0
        path.write_text(kept)
        path_core.write_text(kept_core)
        trees.spend(tmp_path, "intel-rapl:0", 8.0)
        clock.pass_s(1.0)
        stop_s = meter.read()
        assert meter.report(start_s, stop_s).energy_j == pytest.approx(8.0)
        assert meter.report(start_s, stop_s).coverage == 1.0
        # What is known afterwards is shared out evenly, so that the parts add up to the whole.
        assert meter.report(start_s, middle_s).energy_j == pytest.approx(4.0)
        assert meter.report(middle_s, stop_s).energy_j == pytest.approx(4.0)


def test_closed_source_says_so(tmp_path: Path) -> None:
    trees.rapl(tmp_path)
    source = RaplSource.probe(faked_host(tmp_path, Clock()))
    source.close()
    source.close()
    with pytest.raises(SourceError, match="closed"):
        source.read()
