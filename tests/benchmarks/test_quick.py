"""A short run of every benchmark, so that none of them rots; CI has time for two of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.thorough, pytest.mark.root, pytest.mark.multiproc]

ROOT = Path(__file__).parents[2]


def short(tmp_path: Path, name: str, *arguments: str) -> Any:
    """Run a benchmark and return what it wrote."""
    out = tmp_path / f"{name}.json"
    flag = "--out" if name == "planner" else "--json"
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *arguments, flag, str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert out.with_suffix(".md").read_text().count("\n") > 3
    return json.loads(out.read_text())


def test_planning(tmp_path):
    found = short(tmp_path, "planner", "--quick", "--only", "speed")
    assert found["speed"]["simulator"]["instructions"] > 10**6


@pytest.mark.slow
def test_the_executor(tmp_path):
    found = short(tmp_path, "executor", "--quick", "--only", "latency")
    assert {row["setting"] for row in found["rows"]} == {
        "two stages, 8 micro-batches",
        "two replicas",
    }


@pytest.mark.slow
def test_throughput(tmp_path):
    found = short(tmp_path, "throughput", "--quick", "--only", "one", "edge")
    names = [outcome["contestant"] for outcome in found["outcomes"]]
    assert "edge_collab, time" in names
    assert len(names) == 3
    assert all(outcome["samples_per_s"] > 0 for outcome in found["outcomes"])
    # Equal training: the fastest device's losses and ours.
    one, ours = (
        next(o["losses"] for o in found["outcomes"] if name in o["contestant"])
        for name in ("device 0", "edge_collab")
    )
    assert one[:2] == pytest.approx(ours[:2], rel=1e-4)


def test_convergence(tmp_path):
    found = short(tmp_path, "convergence", "--quick", "--only", "plain", "edge")
    losses = {curve["contestant"]: curve["losses"] for curve in found["curves"]}
    one, ours = losses["Lightning on device 0 (80 %)"], losses["edge_collab"]
    assert one == pytest.approx(ours, rel=1e-4)
    assert one[1] < one[0]


@pytest.mark.slow
def test_scaling(tmp_path):
    found = short(tmp_path, "scaling", "--quick")
    assert [pool["devices"] for pool in found["pools"]] == [1, 2, 4, 8]
    assert {step["layout"] for step in found["steps"]} == {"pipeline", "replicas"}
