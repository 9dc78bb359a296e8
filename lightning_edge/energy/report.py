"""The account of a window.

Joules per domain, their total, where they come from and how sure they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lightning_edge.energy.domain import Domain, Provenance, roots

LOWER_BOUND_BELOW = 0.995
"""With less of the time covered than this, a sum is called a lower bound."""


@dataclass(frozen=True)
class DomainEnergy:
    """The account of one domain.

    Args:
        domain: What the joules are of.
        duration_s: Length of the window, in seconds.
        covered_s: Seconds of it for which the joules are known.
        energy_j: The joules of those seconds; None if there are none.
        counted_j: The part of `energy_j` that goes into the total; None for a part of another
            domain.
        max_power_w: Greatest power seen; None if unknown.
    """

    domain: Domain
    duration_s: float
    covered_s: float
    energy_j: float | None
    counted_j: float | None
    max_power_w: float | None = None

    @property
    def power_w(self) -> float | None:
        """Mean watts over the covered time."""
        if self.energy_j is None or self.covered_s <= 0:
            return None
        return self.energy_j / self.covered_s

    @property
    def uncertainty_j(self) -> float | None:
        """Standard uncertainty.

        The instrument's, one update at each end, and what was not covered.
        """
        if self.energy_j is None or self.covered_s <= 0:
            return None
        ends = 2.0 * self.domain.update_period_s / self.covered_s
        missing = max(self.duration_s - self.covered_s, 0.0) / self.covered_s
        return self.energy_j * math.hypot(self.domain.rel_uncertainty, ends, missing)

    def __add__(self, other: DomainEnergy) -> DomainEnergy:
        """The same domain over two windows that do not overlap."""
        return DomainEnergy(
            other.domain,
            self.duration_s + other.duration_s,
            self.covered_s + other.covered_s,
            _add(self.energy_j, other.energy_j),
            _add(self.counted_j, other.counted_j),
            max((p for p in (self.max_power_w, other.max_power_w) if p is not None), default=None),
        )

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, for JSON and for other ranks."""
        return {
            "domain": self.domain.to_mapping(),
            "duration_s": self.duration_s,
            "covered_s": self.covered_s,
            "energy_j": self.energy_j,
            "counted_j": self.counted_j,
            "max_power_w": self.max_power_w,
        }

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> DomainEnergy:
        """The reverse of `to_mapping`."""
        return cls(**{**mapping, "domain": Domain.from_mapping(mapping["domain"])})


@dataclass(frozen=True)
class EnergyReport:
    """The account of one machine over a window.

    Every sum is over domains that do not overlap. Unknown is None, never 0.

    Args:
        name: What the window was for.
        duration_s: Its length, in seconds.
        domains: Account per domain id.
        notes: What the reader should know: sources lost, counters reset.
    """

    name: str
    duration_s: float
    domains: Mapping[str, DomainEnergy]
    notes: tuple[str, ...] = ()

    @property
    def counted(self) -> tuple[DomainEnergy, ...]:
        """The accounts that make up the total."""
        return tuple(entry for entry in self.domains.values() if entry.counted_j is not None)

    @property
    def energy_j(self) -> float | None:
        """Total joules; None if nothing is known. A lower bound where `is_lower_bound`."""
        return _sum(entry.counted_j for entry in self.counted)

    @property
    def measured_j(self) -> float | None:
        """The joules of the total behind which an instrument stands."""
        return _sum(e.counted_j for e in self.counted if e.domain.provenance.measured)

    @property
    def estimated_j(self) -> float | None:
        """The joules of the total that are modelled or emulated."""
        return _sum(e.counted_j for e in self.counted if not e.domain.provenance.measured)

    @property
    def measured_fraction(self) -> float | None:
        """`measured_j` as a share of the total, 0 to 1; None if there is no total."""
        total_j = self.energy_j
        if total_j is None:
            return None
        return (
            (self.measured_j or 0.0) / total_j
            if total_j > 0
            else float(self.measured_j is not None)
        )

    @property
    def by_provenance(self) -> dict[Provenance, float]:
        """Joules of the total per provenance."""
        found: dict[Provenance, float] = {}
        for entry in self.counted:
            kind = entry.domain.provenance
            found[kind] = found.get(kind, 0.0) + (entry.counted_j or 0.0)
        return found

    @property
    def coverage(self) -> float:
        """Share of the time, 0 to 1, for which the joules of the domains in the total are known."""
        tops = [
            e for e in self.domains.values() if e.counted_j is not None or _is_top(e, self.domains)
        ]
        wanted_s = sum(max(entry.duration_s, 0.0) for entry in tops)
        return min(sum(entry.covered_s for entry in tops) / wanted_s, 1.0) if wanted_s > 0 else 0.0

    @property
    def is_lower_bound(self) -> bool:
        """Whether part of the time is missing in `energy_j`."""
        return self.energy_j is not None and self.coverage < LOWER_BOUND_BELOW

    @property
    def power_w(self) -> float | None:
        """Mean watts: the sum of the mean powers of the domains in the total."""
        return _sum(entry.power_w for entry in self.counted)

    @property
    def uncertainty_j(self) -> float | None:
        """Standard uncertainty of the total.

        Errors of one source add up, those of different sources in quadrature.
        """
        per_source: dict[str, float] = {}
        for entry in self.counted:
            if entry.uncertainty_j is not None:
                source = entry.domain.source
                per_source[source] = per_source.get(source, 0.0) + entry.uncertainty_j
        return math.hypot(*per_source.values()) if per_source else None

    def __add__(self, other: EnergyReport) -> EnergyReport:
        """Both windows, which must not overlap. What each counted stays counted."""
        domains = dict(self.domains)
        for key, entry in other.domains.items():
            domains[key] = domains[key] + entry if key in domains else entry
        notes = tuple(dict.fromkeys((*self.notes, *other.notes)))
        return EnergyReport(self.name, self.duration_s + other.duration_s, domains, notes)

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, for JSON and for other ranks."""
        return {
            "name": self.name,
            "duration_s": self.duration_s,
            "domains": {key: entry.to_mapping() for key, entry in self.domains.items()},
            "notes": list(self.notes),
        }

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> EnergyReport:
        """The reverse of `to_mapping`."""
        domains = {key: DomainEnergy.from_mapping(e) for key, e in mapping["domains"].items()}
        return cls(mapping["name"], mapping["duration_s"], domains, tuple(mapping["notes"]))


def count_roots(entries: Iterable[DomainEnergy]) -> dict[str, DomainEnergy]:
    """Fill in `counted_j`: a domain counts when no other of them contains it."""
    listed = list(entries)
    tops = {domain.id for domain in roots(entry.domain for entry in listed)}
    return {
        e.domain.id: replace(e, counted_j=e.energy_j if e.domain.id in tops else None)
        for e in listed
    }


def _is_top(entry: DomainEnergy, domains: Mapping[str, DomainEnergy]) -> bool:
    return entry.domain.id in {domain.id for domain in roots(e.domain for e in domains.values())}


def _add(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else a + b


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) if known else None
