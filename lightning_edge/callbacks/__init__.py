"""Lightning callbacks: thin adapters around the rest of the package."""

from __future__ import annotations

from lightning_edge.callbacks.edge_profiler import EdgeProfiler
from lightning_edge.callbacks.energy_logger import EnergyLogger
from lightning_edge.callbacks.joules_per_sample import JoulesPerSample

__all__ = ["EdgeProfiler", "EnergyLogger", "JoulesPerSample"]
