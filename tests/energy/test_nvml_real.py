"""A real NVIDIA GPU, if there is one; the long run is `python -m benchmarks.energy_nvml`."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from lightning_edge.callbacks.run_account import host_of
from lightning_edge.energy import EnergyMeter, Provenance

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.fixture
def meter() -> Iterator[EnergyMeter]:
    with EnergyMeter("nvml", host=host_of(torch.device("cuda", 0))) as made:
        yield made


def test_only_the_ranks_own_gpu_is_read(meter: EnergyMeter) -> None:
    uuid = str(torch.cuda.get_device_properties(0).uuid)
    assert [domain.id.removeprefix("gpu:GPU-") for domain in meter.domains] == [uuid]


def test_energy_agrees_with_the_counter_itself(meter: EnergyMeter) -> None:
    import pynvml

    if meter.domains[0].provenance is not Provenance.COUNTER:
        pytest.skip("this GPU has no energy counter")
    handle = pynvml.nvmlDeviceGetHandleByUUID(meter.domains[0].id.removeprefix("gpu:"))
    a = torch.randn(2048, 2048, device="cuda")
    before_mj = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    with meter.window() as window:
        until_s = time.monotonic() + 3.0
        while time.monotonic() < until_s:
            a @ a
            torch.cuda.synchronize()
    truth_j = (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) - before_mj) / 1e3
    report = window.report
    assert report.energy_j == pytest.approx(truth_j, rel=0.1)
    assert report.coverage > 0.99
    assert report.measured_fraction == 1.0
    # An H100 rests at about 70 W and takes 700 W; a laptop's GPU rests at 5 W.
    assert 2.0 < (report.power_w or 0.0) < 1500.0


def test_a_reading_is_cheap(meter: EnergyMeter) -> None:
    for _ in range(50):
        meter.read()
    feed = meter.feeds[0]
    assert feed.cost_s / feed.interval_s < 0.005
