from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lightning_edge.errors import TestbedError
from lightning_edge.testbed import machine
from lightning_edge.testbed.machine import missing_requirements, this_machine


@pytest.fixture
def root(monkeypatch):
    """A root with everything, on a machine with everything."""
    status = "Name:\tpytest\nCapEff:\t000001ffffffffff\n"
    read_text = Path.read_text

    def read(path: Path, *args: object) -> str:
        return status if str(path) == "/proc/self/status" else read_text(path, *args)

    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr(shutil, "which", lambda tool: f"/sbin/{tool}")
    monkeypatch.setattr(machine, "find_cgroups", lambda: None)

    def set_status(text: str) -> None:
        nonlocal status
        status = text

    return set_status


def test_nothing_is_missing_where_all_is_there(root):
    assert missing_requirements() == ()


def test_a_root_without_capabilities_is_told_which(root):
    root("CapEff:\t00000000a80425fb\n")  # what a container has by default
    assert [text.split()[2] for text in missing_requirements()] == [
        "CAP_NET_ADMIN",
        "CAP_SYS_ADMIN",
    ]


def test_missing_tools_and_cgroups_are_named(root, monkeypatch):
    def refuse() -> None:
        raise TestbedError("no cgroups here")

    monkeypatch.setattr(machine, "find_cgroups", refuse)
    assert missing_requirements() == ("no cgroups here",)
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    assert [text.split()[2] for text in missing_requirements()] == ["`ip`", "`tc`"]


def test_the_machine_is_measured_once_and_only_when_asked(monkeypatch):
    found = this_machine()
    assert found.cores >= 1
    assert found.memory_bytes > 2**28
    assert 0.5 < found.core_gflops < 2000
    monkeypatch.setattr(machine.subprocess, "run", None)  # a second measurement would fail
    assert this_machine() == found
    assert this_machine(measure=False).core_gflops is None
