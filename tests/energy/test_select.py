from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from lightning_edge.energy import EnergyMeter, HostEnv, PowerModel, Unavailable, select
from lightning_edge.energy.select import Choice, open_sources
from lightning_edge.energy.table import choices_table
from lightning_edge.errors import EnergyError
from tests.energy import trees
from tests.energy.fakes import FakeSource
from tests.energy.trees import Clock, faked_host


def _kinds(host: HostEnv, **settings: bool) -> tuple[list[str], dict[str, Choice]]:
    sources, choices = open_sources("auto", host, **settings)
    for source in sources:
        source.close()
    return [source.kind for source in sources], {choice.kind: choice for choice in choices}


def test_jetson(tmp_path: Path) -> None:
    trees.jetson(tmp_path, trees.HWMON_BOARDS["Orin Nano"])
    trees.cpu_stat(tmp_path, 1, 1)
    used, choices = _kinds(faked_host(tmp_path, Clock()))
    assert used == ["jetson"]
    assert choices["model"].reason == "not needed: something better covers this machine"
    assert choices["jtop"].remedy == 'sources=["jtop"]'


def test_laptop_prefers_counters_to_the_battery(tmp_path: Path) -> None:
    trees.rapl(tmp_path)
    trees.laptop_battery(tmp_path)
    assert _kinds(faked_host(tmp_path, Clock()))[0] == ["rapl"]


def test_laptop_without_permission_uses_the_battery(tmp_path: Path) -> None:
    trees.laptop_battery(tmp_path)
    assert _kinds(faked_host(tmp_path, Clock()))[0] == ["battery"]


def test_raspberry_pi(tmp_path: Path) -> None:
    trees.write(tmp_path, {"/proc/device-tree/model": "Raspberry Pi 5 Model B"})
    host = faked_host(tmp_path, Clock(), run=trees.pmic_command)
    assert _kinds(host)[0] == ["raspberry_pi"]


def test_virtual_machine_is_estimated_and_everything_says_why(tmp_path: Path) -> None:
    trees.cpu_stat(tmp_path, 1, 1)
    used, choices = _kinds(faked_host(tmp_path, Clock()))
    assert used == ["model"]
    assert all(choice.reason for choice in choices.values())
    text = choices_table(list(choices.values()), width=200)
    assert "no RAPL zones" in text
    assert "load the kernel module" in text


def test_strict_refuses_an_estimate(tmp_path: Path) -> None:
    trees.cpu_stat(tmp_path, 1, 1)
    with pytest.raises(EnergyError, match="only an estimate.*(?s:.*)nvml: no NVML binding"):
        open_sources("auto", faked_host(tmp_path, Clock()), strict=True)


def test_strict_with_nothing_at_all(tmp_path: Path) -> None:
    with pytest.raises(EnergyError, match="this machine has none:"):
        open_sources("auto", faked_host(tmp_path, Clock()), strict=True)


def test_what_is_named_must_be_there_and_all_problems_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(EnergyError) as caught:
        open_sources(["rapl", "nvlm", "battery"], faked_host(tmp_path, Clock()))
    text = str(caught.value)
    assert "rapl: no RAPL zones" in text
    assert "nvlm: no such source; known: emulated, jetson, rapl" in text
    assert "battery: no battery" in text


def test_class_and_ready_source(tmp_path: Path) -> None:
    host = faked_host(tmp_path, Clock())
    ready = FakeSource.probe(host)
    sources, choices = open_sources([FakeSource, ready], host)
    assert [source.kind for source in sources] == ["fake", "fake"]
    assert [choice.reason for choice in choices] == ["reads fake:all", "given"]


def test_users_own_model(tmp_path: Path) -> None:
    trees.cpu_stat(tmp_path, 1, 1)
    meter = EnergyMeter(
        host=faked_host(tmp_path, Clock()), model=PowerModel(1.0, 2.0), background=False
    )
    with meter:
        assert [domain.id for domain in meter.domains] == ["model:platform"]


class BrokenSource(FakeSource):
    kind = "broken"

    @classmethod
    def probe(cls, host: HostEnv) -> FakeSource:
        raise ZeroDivisionError("a bug in a plug-in")


@pytest.fixture
def plugged_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    points = [
        EntryPoint("plug", "tests.energy.fakes:FakeSource", select.ENTRY_POINTS),
        EntryPoint("broken", "tests.energy.test_select:BrokenSource", select.ENTRY_POINTS),
        EntryPoint("missing", "no_such_module:Source", select.ENTRY_POINTS),
    ]
    monkeypatch.setattr(select, "entry_points", lambda group: points)
    select.plugins.cache_clear()
    yield
    select.plugins.cache_clear()


@pytest.mark.usefixtures("plugged_in")
def test_plugins_are_found_and_a_broken_one_stops_nothing(tmp_path: Path) -> None:
    trees.cpu_stat(tmp_path, 1, 1)
    used, choices = _kinds(faked_host(tmp_path, Clock()))
    assert used == ["fake"]  # it covers the platform, so no estimate is needed
    assert choices["broken"].reason == "ZeroDivisionError: a bug in a plug-in"
    assert "missing" not in choices
    assert select.plugins()["plug"].kind == "fake"
    with pytest.raises(EnergyError, match="known:.*plug"):
        open_sources("nonsense", faked_host(tmp_path, Clock()))


def test_unavailable_keeps_reason_and_remedy_apart() -> None:
    error = Unavailable("no sensor", "buy one")
    assert (error.reason, error.remedy, str(error)) == (
        "no sensor",
        "buy one",
        "no sensor. buy one",
    )
