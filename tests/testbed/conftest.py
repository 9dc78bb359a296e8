"""Tests that build a testbed: skipped where none can be built, checked for what they leave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_edge.testbed import missing_requirements
from lightning_edge.testbed.cgroup_mounts import find_cgroups
from lightning_edge.testbed.slots import RUN, Slot


@pytest.fixture(autouse=True)
def buildable(request: pytest.FixtureRequest) -> None:
    """Leave out what this machine cannot run, with the testbed's own reasons."""
    if request.node.get_closest_marker("root") and (missing := missing_requirements()):
        pytest.skip("; ".join(missing))


def traces(slot: Slot) -> list[str]:
    """Everything on this machine that is named after a slot."""
    found = [str(folder) for folder in find_cgroups().folders(str(slot.number)) if folder.exists()]
    found += [str(path) for path in Path("/run/netns").glob(f"letb{slot.number}-*")]
    return found + ([str(slot.folder)] if slot.folder.exists() else [])


def alive(pid: int | str) -> bool:
    """Whether a process runs; one that waits for its parent to notice its end does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def slots() -> Iterator[list[Slot]]:
    """Collect slots; at the end of the test nothing of them may be left.

    A testbed beside this test may take a slot the moment it is free, so its owner is asked for.
    """
    collected: list[Slot] = []
    yield collected
    for slot in collected:
        owner = RUN / str(slot.number) / "owner.json"
        assert owner.exists() or not traces(slot), f"left behind: {traces(slot)}"
