"""Little memory is seen, in the machine or in the group that a container is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from lightning_edge.train import pressure


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    memory = SimpleNamespace(available=50, total=100)
    monkeypatch.setattr(pressure.psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(pressure, "_groups", lambda: [tmp_path])
    return tmp_path


def write(group: Path, used: int, files: int = 0, limit: str = "1000") -> None:
    (group / "memory.max").write_text(limit)
    (group / "memory.current").write_text(str(used))
    (group / "memory.stat").write_text(f"anon 3\ninactive_file {files}\n")


def test_a_group_of_processes_may_be_full(group: Path) -> None:
    assert not pressure.memory_is_tight()  # no limit at all
    write(group, 940)
    assert not pressure.memory_is_tight()
    write(group, 960)
    assert pressure.memory_is_tight()
    write(group, 960, files=100)  # which the kernel takes back
    assert not pressure.memory_is_tight()
    write(group, 960, limit="max")
    assert not pressure.memory_is_tight()


def test_the_machine_may_be_full(group: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(available=4, total=100)
    monkeypatch.setattr(pressure.psutil, "virtual_memory", lambda: memory)
    assert pressure.memory_is_tight()
