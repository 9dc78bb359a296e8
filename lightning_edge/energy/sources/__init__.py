"""The built-in sources, one per file, by the name under which users ask for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lightning_edge.energy.sources.battery import BatterySource
from lightning_edge.energy.sources.emulated import EmulatedSource
from lightning_edge.energy.sources.gpu_model import GpuModelSource
from lightning_edge.energy.sources.hwmon import HwmonSource
from lightning_edge.energy.sources.jetson_ina import JetsonSource
from lightning_edge.energy.sources.jtop import JtopSource
from lightning_edge.energy.sources.model import ModelSource
from lightning_edge.energy.sources.nvml import NvmlSource
from lightning_edge.energy.sources.rapl import RaplSource
from lightning_edge.energy.sources.raspberry_pi import RaspberryPiSource

if TYPE_CHECKING:
    from lightning_edge.energy.source import PowerSource

BUILT_IN: Mapping[str, type[PowerSource]] = {
    source.kind: source
    for source in (
        EmulatedSource,
        JetsonSource,
        RaplSource,
        NvmlSource,
        HwmonSource,
        RaspberryPiSource,
        BatterySource,
        ModelSource,
        GpuModelSource,
        JtopSource,
    )
}
