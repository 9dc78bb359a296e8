"""What a joule can be about.

Domains of a machine, where their numbers come from, one reading of them.

Domains form a forest, because meters overlap. A total is the sum over roots only::

    platform   rapl:psys ─┬─ rapl:package-0 ── rapl:package-0:dram      counted: psys
                          └─ rapl:package-1
    gpu        gpu:GPU-5f6c...                                          counted: the GPU
    module     ina:1-0040:VDD_IN ─┬─ ina:1-0040:VDD_CPU_GPU_CV          counted: VDD_IN
                                  └─ ina:1-0040:VDD_SOC
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any


class Provenance(str, Enum):
    """Where a number of joules comes from."""

    COUNTER = "counter"
    """A hardware energy counter; exact up to one update at each end."""
    SAMPLED = "sampled"
    """Power read by polling, integrated over time."""
    BATTERY = "battery"
    """The battery's own gauge while discharging."""
    MODEL = "model"
    """An estimate from utilisation and a table. Nothing was measured."""
    EMULATED = "emulated"
    """The testbed's pretended meter. Nothing was measured."""
    EXTERNAL = "external"
    """A source of the user's own."""

    @property
    def measured(self) -> bool:
        """Whether an instrument stands behind the number."""
        return self not in (Provenance.MODEL, Provenance.EMULATED)


class Scope(str, Enum):
    """How much of the machine a domain covers."""

    PLATFORM = "platform"
    MODULE = "module"
    PACKAGE = "package"
    GPU = "gpu"
    DRAM = "dram"
    RAIL = "rail"
    NETWORK = "network"


TYPICAL_UNCERTAINTY: Mapping[Provenance, float] = {
    Provenance.COUNTER: 0.05,
    Provenance.SAMPLED: 0.08,
    Provenance.BATTERY: 0.15,
    Provenance.MODEL: 0.40,
    Provenance.EMULATED: 0.40,
    Provenance.EXTERNAL: 0.10,
}
"""Relative uncertainty of each provenance where a source knows no better.

NVML and RAPL vendors state or imply 5 %, shunt monitors 5-10 %, gauges 10-20 %, utilisation models
30-40 %."""

_WHOLE_HOST = (Scope.PLATFORM, Scope.MODULE)


@dataclass(frozen=True)
class Domain:
    """A part of one machine whose energy can be told.

    Args:
        id: Unique and stable on this host, such as ``"ina:1-0040:VDD_IN"``.
        name: What to print.
        scope: How much of the machine it covers.
        provenance: Where its numbers come from.
        source: The kind of source that reads it, such as ``"rapl"``.
        update_period_s: How often the number changes, in seconds.
        rel_uncertainty: Relative standard uncertainty of its joules; by provenance when not given.
        parent: Id of the domain that contains this one, if any.
    """

    id: str
    name: str
    scope: Scope
    provenance: Provenance
    source: str
    update_period_s: float = 0.1
    rel_uncertainty: float = -1.0
    parent: str | None = None

    def __post_init__(self) -> None:
        if self.rel_uncertainty < 0:
            object.__setattr__(self, "rel_uncertainty", TYPICAL_UNCERTAINTY[self.provenance])

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, for JSON and for other ranks."""
        return asdict(self) | {"scope": self.scope.value, "provenance": self.provenance.value}

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Domain:
        """The reverse of `to_mapping`."""
        values = dict(mapping)
        values["scope"] = Scope(values["scope"])
        values["provenance"] = Provenance(values["provenance"])
        return cls(**values)


@dataclass(frozen=True)
class Reading:
    """What one source said at one moment.

    A domain that the source could not read this time is simply missing.

    Args:
        t_s: Monotonic time of the reading, in seconds.
        energy_j: Cumulative joules per domain id, unwrapped (counters).
        power_w: Watts per domain id (polled sensors).
        broken: Domains whose counter started anew since the last reading, so that the joules
            between are unknown.
        aux: Other values, such as ``temp_c``.
    """

    t_s: float
    energy_j: Mapping[str, float] = field(default_factory=dict)
    power_w: Mapping[str, float] = field(default_factory=dict)
    broken: frozenset[str] = frozenset()
    aux: Mapping[str, float] = field(default_factory=dict)


def roots(domains: Iterable[Domain]) -> tuple[Domain, ...]:
    """The domains of one host over which a total is taken: none contains another.

    * A plug or a battery feeds the whole host, so it contains everything else on it.
    * A model of the CPU or of the whole host is left out once something measured covers the same
      part.
    """
    known = {domain.id: domain for domain in domains}
    tops = [domain for domain in known.values() if domain.parent not in known]
    for feeding in (Provenance.EXTERNAL, Provenance.BATTERY):
        feeds = [d for d in tops if d.scope is Scope.PLATFORM and d.provenance is feeding]
        if feeds:
            return tuple(feeds)
    return tuple(
        domain
        for domain in tops
        if domain.provenance is not Provenance.MODEL or not any(covers(o, domain) for o in tops)
    )


def covers(other: Domain, model: Domain) -> bool:
    """Whether `other`, on the same host and not a model, covers the part that `model` estimates."""
    if other.provenance is Provenance.MODEL:
        return False
    if model.scope is Scope.GPU:
        return other.scope in _WHOLE_HOST or other.id == model.id.removeprefix("model:")
    return other.scope in (*_WHOLE_HOST, Scope.PACKAGE)
