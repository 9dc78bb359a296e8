"""How many joules, measured how: meter, sources, attribution.

Stands alone: no torch, no Lightning.
"""

from __future__ import annotations

from lightning_edge.energy.attribution import PhaseReport
from lightning_edge.energy.domain import Domain, Provenance, Reading, Scope
from lightning_edge.energy.host import HostEnv
from lightning_edge.energy.meter import EnergyMeter, Window
from lightning_edge.energy.phases import Phase, PhaseMarks
from lightning_edge.energy.report import DomainEnergy, EnergyReport
from lightning_edge.energy.source import PowerSource, SourceError, SourceLost, Unavailable
from lightning_edge.energy.sources.model import PowerModel, fit_power_model

__all__ = [
    "Domain",
    "DomainEnergy",
    "EnergyMeter",
    "EnergyReport",
    "HostEnv",
    "Phase",
    "PhaseMarks",
    "PhaseReport",
    "PowerModel",
    "PowerSource",
    "Provenance",
    "Reading",
    "Scope",
    "SourceError",
    "SourceLost",
    "Unavailable",
    "Window",
    "fit_power_model",
]
