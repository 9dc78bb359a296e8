"""Run by test_nvml.py with the stub library on LD_LIBRARY_PATH: prints what each GPU gives.

The package's own `__init__` is passed over: energy/ stands alone, and starts at once without torch.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
import types
from pathlib import Path

package = types.ModuleType("lightning_edge")
package.__path__ = [str(Path(__file__).parents[2] / "lightning_edge")]
sys.modules["lightning_edge"] = package

from lightning_edge.energy import EnergyMeter, HostEnv, SourceLost, Unavailable  # noqa: E402
from lightning_edge.energy.select import open_sources  # noqa: E402
from lightning_edge.energy.sources.gpu_model import GpuModelSource  # noqa: E402
from lightning_edge.energy.sources.nvml import NvmlSource  # noqa: E402


def users() -> int:
    return int(ctypes.CDLL("libnvidia-ml.so.1").stub_users())


def probe(mode: str, visible: str | None = None) -> dict[str, object]:
    os.environ["STUB_NVML"] = mode
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    try:
        source = NvmlSource.probe(HostEnv(environ=environ))
    except Unavailable as error:
        return {"refused": error.reason, "users": users()}
    reading = source.read()
    source.close()
    source.close()
    return {
        "domains": {d.id: [d.name, d.provenance.value] for d in source.domains},
        "energy_j": dict(reading.energy_j),
        "power_w": dict(reading.power_w),
        "aux": dict(reading.aux),
        "users": users(),
    }


def estimated(mode: str, limit_mw: str | None = None) -> dict[str, object]:
    """What the estimate makes of a card: its joules over 10 s of a turned clock."""
    os.environ["STUB_NVML"] = mode
    if limit_mw is not None:
        os.environ["STUB_LIMIT_MW"] = limit_mw
    now_s = [100.0]
    try:
        source = GpuModelSource.probe(HostEnv(environ={}, clock=lambda: now_s[0]))
    except Unavailable as error:
        return {"refused": error.reason, "users": users()}
    finally:
        os.environ.pop("STUB_LIMIT_MW", None)
    now_s[0] += 10.0
    reading = source.read()
    source.close()
    source.close()
    (domain,) = source.domains
    return {"domain": domain.to_mapping(), "energy_j": dict(reading.energy_j), "users": users()}


def automatic(mode: str) -> dict[str, object]:
    """Which sources are taken on a PC with such a card."""
    os.environ["STUB_NVML"] = mode
    sources, _ = open_sources("auto", HostEnv(environ={}))
    found = {domain.id for source in sources for domain in source.domains}
    for source in sources:
        source.close()
    return {"domains": sorted(found), "users": users()}


def lost_later() -> dict[str, object]:
    os.environ["STUB_NVML"] = "desktop"
    meter = EnergyMeter("nvml", background=False)
    with meter:
        window = meter.window()
        time.sleep(0.25)
        meter.read()
        os.environ["STUB_NVML"] = "lost"
        report = window.close()
        known_j = report.energy_j
        time.sleep(0.25)
        after = meter.totals()
    os.environ["STUB_NVML"] = "desktop"
    return {
        "known_j": known_j,
        "after_j": after.energy_j,
        "coverage": after.coverage,
        "notes": list(after.notes),
        "users": users(),
    }


def one_lost() -> str:
    """The source itself says for good only when the last GPU is gone."""
    os.environ["STUB_NVML"] = "desktop"
    source = NvmlSource.probe(HostEnv(environ={}))
    os.environ["STUB_NVML"] = "lost"
    try:
        source.read()
    except SourceLost as error:
        return f"SourceLost: {error}"
    finally:
        source.close()
        os.environ["STUB_NVML"] = "desktop"
    return "no error"


def measured() -> dict[str, object]:
    """Half a second of 50 W on each of two GPUs, by a counter that moves every 100 ms."""
    os.environ["STUB_NVML"] = "desktop"
    with EnergyMeter("nvml", period_s=0.02) as meter, meter.window() as window:
        time.sleep(0.5)
    report = window.report
    return {
        "energy_j": report.energy_j,
        "duration_s": report.duration_s,
        "uncertainty_j": report.uncertainty_j,
        "max_w": [entry.max_power_w for entry in report.domains.values()],
    }


assert "torch" not in sys.modules
assert "lightning" not in sys.modules
json.dump(
    {
        "desktop": probe("desktop"),
        "pascal": probe("pascal"),
        "hopper": probe("hopper"),
        "jetson": probe("jetson"),
        "lost": probe("lost"),
        "mig": probe("mig", "MIG-cccc"),
        "none": probe(""),
        "laptop": probe("laptop"),
        "laptop_estimated": estimated("laptop"),
        "limit_estimated": estimated("laptop", "60000"),
        "desktop_estimated": estimated("desktop"),
        "jetson_estimated": estimated("jetson"),
        "laptop_automatic": automatic("laptop"),
        "desktop_automatic": automatic("desktop"),
        "by_number": probe("desktop", "1"),
        "by_uuid": probe("desktop", "GPU-bbbb"),
        "hidden": probe("desktop", ""),
        "invalid_ends_the_list": probe("desktop", "0,7,1"),
        "lost_later": lost_later(),
        "one_lost": one_lost(),
        "measured": measured(),
    },
    sys.stdout,
)
