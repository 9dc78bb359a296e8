"""Devices with memory limits train a model that none of them has room for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_edge.testbed import DeviceSpec, Testbed

pytestmark = [pytest.mark.root, pytest.mark.multiproc, pytest.mark.slow, pytest.mark.timeout(580)]

PROGRAMS = Path(__file__).parent / "programs"
BLOCKS, WIDTH = 48, 1536
PARAMETERS = BLOCKS * (WIDTH * WIDTH + WIDTH)
LIMIT = 1100 * 2**20
START = 420 * 2**20  # what Python, torch and lightning take


def on_devices(
    settings: dict[str, Any], program: str = "larger.py"
) -> tuple[dict[str, float], list[int]]:
    devices = [DeviceSpec(name, memory_bytes=LIMIT) for name in "abc"]
    with Testbed(devices) as bed:
        command = [sys.executable, str(PROGRAMS / program), json.dumps(settings)]
        result = bed.run(command, timeout_s=300).check()
    lines = [line for line in result.devices["a"].lines if line.startswith("{")]
    return json.loads(lines[-1]), [d.anonymous_peak_bytes for d in result.devices.values()]


def alone(settings: dict[str, Any], program: str = "larger.py") -> dict[str, float]:
    command = [sys.executable, str(PROGRAMS / program), json.dumps({**settings, "alone": True})]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def test_built_trained_saved_resumed_and_read_within_each_device_s_memory(tmp_path: Path) -> None:
    assert 16 * PARAMETERS > LIMIT  # weights, gradients and Adam's moments
    share = 16 * PARAMETERS // 3
    settings = {"blocks": BLOCKS, "epochs": 2, "folder": str(tmp_path / "alone")}
    (tmp_path / "alone").mkdir()
    first, expected = alone({**settings, "epochs": 1}), alone(settings)

    found, peaks = on_devices({**settings, "epochs": 1, "folder": str(tmp_path)})
    assert found["val_loss"] == pytest.approx(first["val_loss"], rel=2e-6)
    print("first epoch", found, [f"{peak / 2**20:.0f} MiB" for peak in peaks])
    assert max(peaks) < START + 1.15 * share
    assert (tmp_path / "epoch-0.ckpt").stat().st_size > 12 * PARAMETERS

    resumed, peaks = on_devices(
        {**settings, "folder": str(tmp_path), "resume": str(tmp_path / "epoch-0.ckpt")}
    )
    print("resumed", resumed, [f"{peak / 2**20:.0f} MiB" for peak in peaks])
    assert max(peaks) < START + 1.15 * share
    assert resumed["val_loss"] == pytest.approx(expected["val_loss"], rel=2e-6)


def test_a_device_with_the_whole_model_runs_out_of_memory(tmp_path: Path) -> None:
    settings = {"blocks": BLOCKS, "epochs": 1, "folder": str(tmp_path), "alone": True}
    with Testbed([DeviceSpec("a", memory_bytes=LIMIT)]) as bed:
        command = [sys.executable, str(PROGRAMS / "larger.py"), json.dumps(settings)]
        result = bed.run(command, timeout_s=300)
    assert result.devices["a"].outcome == "out of memory"
