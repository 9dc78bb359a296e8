"""Joules of several processes on several machines, each physical domain counted once.

Ranks hand in their accounts; clocks are never compared, only joules and counts::

    rank  host  counts                        pool
    0     A     rapl:package-0, gpu:X         A rapl:package-0 (rank 0), A gpu:X (rank 0)
    1     A     rapl:package-0, gpu:Y         A gpu:Y (rank 1); the package is rank 0's already
    2     B     model:cpu                     B model:cpu (rank 2), an estimate

"n of m devices measured" counts ranks: measured is one whose joules all have an instrument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lightning_edge.energy.domain import roots
from lightning_edge.energy.report import DomainEnergy, EnergyReport

ALIKE = 0.98
"""A rank that covered this share of what the best one did covered it as well."""

Gather = Callable[[Any], list[Any]]
"""Hands in one object per rank and returns those of all ranks, in rank order."""


def alone(obj: Any) -> list[Any]:
    """The `Gather` of a process without others."""
    return [obj]


@dataclass(frozen=True)
class RankAccount:
    """What one rank has spent so far in one stage of the run.

    Args:
        rank: The rank.
        device: Its device's name.
        host: The running machine, as `HostEnv.boot_id`.
        report: The machine's joules.
        samples: Samples that passed through this rank.
        tokens: Tokens likewise; None if they are not counted.
        whole_samples: Samples of the whole batches, if the ranks know that; else None.
        passes: Number of ranks that each sample passes: the stages of a pipeline.
        battery_pct: Charge; None without a battery.
        temperature_c: Hottest sensor; None without one.
        phase_j: Joules per phase; None where they cannot be told apart.
        phase_s: Seconds per phase.
        phase_note: Why not, or how well.
        power_series: ``(s, W)`` since the start of the run.
        phase_series: ``(s, seconds per phase since the point before)`` likewise.
    """

    rank: int
    device: str
    host: str
    report: EnergyReport
    samples: float = 0.0
    tokens: float | None = None
    whole_samples: float | None = None
    passes: int = 1
    battery_pct: float | None = None
    temperature_c: float | None = None
    phase_j: Mapping[str, float] | None = None
    phase_s: Mapping[str, float] = field(default_factory=dict)
    phase_note: str = ""
    power_series: Sequence[tuple[float, float]] = ()
    phase_series: Sequence[tuple[float, Mapping[str, float]]] = ()

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, for JSON and for other ranks."""
        plain = replace(self, report=EnergyReport("", 0.0, {}))
        return asdict(plain) | {
            "report": self.report.to_mapping(),
            "power_series": [list(point) for point in self.power_series],
            "phase_series": [[t, dict(spent)] for t, spent in self.phase_series],
        }

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> RankAccount:
        """The reverse of `to_mapping`."""
        read = {
            "report": EnergyReport.from_mapping(mapping["report"]),
            "power_series": tuple((t, watts) for t, watts in mapping["power_series"]),
            "phase_series": tuple((t, spent) for t, spent in mapping["phase_series"]),
        }
        return cls(**{**mapping, **read})


@dataclass(frozen=True)
class PoolReport:
    """The account of all ranks.

    Args:
        accounts: One per rank, the newest that is known.
        owned: Per rank, the domains that are counted with it.
        silent: Ranks that did not answer the last time; their accounts are older.
        earlier: Pools of the runs that this one was resumed from.
    """

    accounts: tuple[RankAccount, ...]
    owned: Mapping[int, Mapping[str, DomainEnergy]]
    silent: tuple[int, ...] = ()
    earlier: tuple[PoolReport, ...] = ()

    @property
    def _entries(self) -> list[DomainEnergy]:
        mine = [entry for entries in self.owned.values() for entry in entries.values()]
        return mine + [entry for pool in self.earlier for entry in pool._entries]

    @property
    def energy_j(self) -> float | None:
        """Joules of all devices: measured and estimated; None if nothing is known."""
        known = [e.counted_j for e in self._entries if e.counted_j is not None]
        return math.fsum(known) if known else None

    @property
    def measured_j(self) -> float:
        """The part behind which an instrument stands."""
        return math.fsum(e.counted_j or 0.0 for e in self._entries if e.domain.provenance.measured)

    @property
    def estimated_j(self) -> float:
        """The part that is modelled or emulated."""
        return (self.energy_j or 0.0) - self.measured_j

    @property
    def measured_fraction(self) -> float | None:
        """Measured joules as a share of all, 0 to 1; None if nothing is known."""
        total_j = self.energy_j
        return None if total_j is None else self.measured_j / total_j if total_j > 0 else 0.0

    @property
    def uncertainty_j(self) -> float | None:
        """Standard uncertainty: instruments of different devices err independently."""
        known = [e.uncertainty_j for e in self._entries if e.uncertainty_j is not None]
        return math.hypot(*known) if known else None

    @property
    def devices_measured(self) -> int:
        """Number of ranks whose joules are all measured."""
        return sum(account.report.measured_fraction == 1.0 for account in self.accounts)

    @property
    def is_lower_bound(self) -> bool:
        """Whether a device is missing or was not covered all the time."""
        return any(a.report.energy_j is None or a.report.is_lower_bound for a in self.accounts)

    @property
    def samples(self) -> float:
        """Samples of the run, however many ranks each of them passed."""
        whole = [a.whole_samples for a in self.accounts if a.whole_samples is not None]
        mine = max(whole) if whole else sum(a.samples / a.passes for a in self.accounts)
        return mine + sum(pool.samples for pool in self.earlier)

    @property
    def tokens(self) -> float | None:
        """Tokens of the run; None if they are not counted."""
        known = [a.tokens / a.passes for a in self.accounts if a.tokens is not None]
        seen = sum(a.samples / a.passes for a in self.accounts)
        if not known or seen <= 0:
            return None
        # Every stage of a pipeline counts the tokens of the samples that it sees.
        whole = [a.whole_samples for a in self.accounts if a.whole_samples is not None]
        mine = sum(known) * (max(whole) / seen if whole else 1.0)
        return mine + sum(pool.tokens or 0.0 for pool in self.earlier)

    def device_energy_j(self, rank: int) -> float | None:
        """Joules that are counted with a rank.

        None if nothing is known or another rank counts them.
        """
        known = [e.counted_j for e in self.owned.get(rank, {}).values() if e.counted_j is not None]
        return math.fsum(known) if known else None

    def counted_with(self, rank: int) -> str | None:
        """Name of the device that counts what this rank reads, if that is another one."""
        account = next(a for a in self.accounts if a.rank == rank)
        mine = {entry.domain.id for entry in account.report.counted}
        if not mine or self.device_energy_j(rank) is not None:
            return None
        here = [a.rank for a in self.accounts if a.host == account.host and a.rank != rank]
        found = [other for other in here if mine & set(self.owned.get(other, {}))]
        return self.device_names()[found[0]] if found else None

    def device_names(self) -> dict[int, str]:
        """A name per rank; ranks on one machine get their number behind it."""
        names = [account.device for account in self.accounts]
        return {
            a.rank: a.device if names.count(a.device) == 1 else f"{a.device}-{a.rank}"
            for a in self.accounts
        }

    def phase_j(self) -> dict[str, float] | None:
        """Joules per phase over all ranks.

        None unless every rank that counts joules has them apart.
        """
        total: dict[str, float] = {}
        for account in self.accounts:
            own_j = self.device_energy_j(account.rank)
            if own_j is None:
                continue
            if account.phase_j is None:
                return None
            whole_j = sum(account.phase_j.values())
            for name, joules in account.phase_j.items():
                # What this rank sees but another one counts must not come in twice.
                share = own_j / account.report.energy_j if account.report.energy_j else 0.0
                total[name] = total.get(name, 0.0) + joules * min(share, 1.0)
            if whole_j <= 0:
                return None
        return total or None


def combine(
    accounts: Iterable[RankAccount],
    silent: Sequence[int] = (),
    earlier: Sequence[PoolReport] = (),
) -> PoolReport:
    """Count each physical domain once: with the lowest rank of those that covered it well."""
    ordered = tuple(sorted(accounts, key=lambda account: account.rank))
    owned: dict[int, dict[str, DomainEnergy]] = {account.rank: {} for account in ordered}
    for host in dict.fromkeys(account.host for account in ordered):
        here = [account for account in ordered if account.host == host]
        for key in _counted_ids(here):
            holders = [a for a in here if key in {e.domain.id for e in a.report.counted}]
            longest_s = max(a.report.domains[key].covered_s for a in holders)
            # Ranks read some milliseconds apart, and who counts must not change with each account.
            good = (a for a in holders if a.report.domains[key].covered_s >= ALIKE * longest_s)
            first = next(good)
            owned[first.rank][key] = first.report.domains[key]
    return PoolReport(ordered, owned, tuple(silent), tuple(earlier))


def _counted_ids(accounts: Sequence[RankAccount]) -> list[str]:
    """Ids that make up one host, seen from all of its ranks."""
    union = {e.domain.id: e.domain for account in accounts for e in account.report.counted}
    for account in accounts:
        if set(union) <= {entry.domain.id for entry in account.report.counted}:
            return list(union)  # one rank saw it all and has decided already
    return [domain.id for domain in roots(union.values())]


class Ledger:
    """The newest account of each rank. A rank that dies keeps its last one."""

    def __init__(self) -> None:
        self._accounts: dict[int, RankAccount] = {}
        self._silent: tuple[int, ...] = ()
        self._earlier: tuple[PoolReport, ...] = ()

    def update(self, accounts: Iterable[Mapping[str, Any] | None]) -> PoolReport:
        """Take what ranks handed in (None for one that did not answer) and combine."""
        heard = [RankAccount.from_mapping(account) for account in accounts if account is not None]
        self._accounts.update({account.rank: account for account in heard})
        self._silent = tuple(sorted(set(self._accounts) - {account.rank for account in heard}))
        return self.pool()

    def pool(self) -> PoolReport:
        """The account of all ranks that were ever heard of."""
        return combine(self._accounts.values(), self._silent, self._earlier)

    def state_dict(self) -> dict[str, Any]:
        """All accounts, those of earlier runs included, as plain values."""
        return {
            "runs": [
                [account.to_mapping() for account in accounts]
                for accounts in (*(p.accounts for p in self._earlier), self._accounts.values())
                if accounts
            ]
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after earlier runs, on however many ranks."""
        runs = [[RankAccount.from_mapping(a) for a in accounts] for accounts in state["runs"]]
        self._earlier = tuple(combine(accounts) for accounts in runs)
