"""Intel and AMD processors: the RAPL energy counters of /sys/class/powercap.

::

    intel-rapl:0    package-0  ── intel-rapl:0:0 core, intel-rapl:0:1 uncore   inside the package
                               ── intel-rapl:0:2 dram                          beside it
    intel-rapl:1    psys       the platform: contains packages and dram, so the three are never
    added intel-rapl-mmio:0          the same package again: left out

A discrete GPU is a root of its own: whether psys includes it differs from laptop to laptop.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lightning_edge.energy.domain import Domain, Provenance, Reading, Scope
from lightning_edge.energy.host import HostEnv
from lightning_edge.energy.source import SourceError, Unavailable
from lightning_edge.energy.sources.sysfs import NumberFile, close_all

POWERCAP = "/sys/class/powercap"
PLAUSIBLE_W = 1000.0
"""No package draws more.

So a counter read again sooner than its range at this power wrapped at most once.
"""

_PERMISSION_REMEDY = (
    "RAPL counters are readable by root only since Linux 5.10 (CVE-2020-8694). "
    "Until the next reboot: sudo chmod a+r "
    "/sys/class/powercap/intel-rapl:*/energy_uj /sys/class/powercap/intel-rapl:*/*/energy_uj ; "
    "for good, a udev rule: "
    'SUBSYSTEM=="powercap", ACTION=="add", RUN+="/bin/chmod a+r /sys%p/energy_uj" ; in Docker also '
    "-v /sys/devices/virtual/powercap:/sys/devices/virtual/powercap:ro"
)


@dataclass
class _Zone:
    domain: Domain
    file: NumberFile
    range_uj: int
    last_uj: int
    last_s: float
    total_uj: int = 0


class RaplSource:
    """Reads all RAPL zones and unwraps their counters.

    Args:
        host: The machine.
        zones: Directory and name of each zone, and the id of its parent.
    """

    kind: ClassVar[str] = "rapl"

    def __init__(self, host: HostEnv, zones: Sequence[tuple[Path, str, str | None]]) -> None:
        self._clock = host.clock
        self._zones: list[_Zone] = []
        denied, failed = [], []
        for directory, name, parent in zones:
            try:
                self._zones.append(_open(directory, name, parent, host.clock()))
            except PermissionError:
                denied.append(name)
            except (OSError, ValueError, SourceError) as error:
                failed.append(f"{name}: {error}")
        opened = {zone.domain.id for zone in self._zones}
        if not any(
            z.domain.parent not in opened and z.domain.scope is not Scope.DRAM for z in self._zones
        ):
            self.close()
            if denied:
                raise Unavailable(f"no permission to read {', '.join(denied)}", _PERMISSION_REMEDY)
            raise Unavailable("RAPL zones are there but give no energy: " + "; ".join(failed))
        self.domains: Sequence[Domain] = tuple(zone.domain for zone in self._zones)

    @classmethod
    def probe(cls, host: HostEnv) -> RaplSource:
        """Open every zone and read it once."""
        base = host.path(POWERCAP)
        zones = sorted(
            p for p in base.glob("intel-rapl:*") if re.fullmatch(r"intel-rapl:\d+", p.name)
        )
        if not zones:
            raise Unavailable(
                f"no RAPL zones in {POWERCAP}",
                "load the kernel module intel_rapl_msr; virtual machines and ARM have none",
            )
        names = {zone: _name(zone) for zone in zones}
        psys = next((z for z in zones if names[z] == "psys" and _positive(z / "energy_uj")), None)
        platform = None if psys is None else "rapl:psys"
        listed: list[tuple[Path, str, str | None]] = []
        for zone in zones:
            if names[zone] == "psys":
                if zone == psys:
                    listed.append((zone, "psys", None))
                continue
            listed.append((zone, names[zone], platform))
            parts = {
                p.name: p for p in (*zone.glob(f"{zone.name}:*"), *base.glob(f"{zone.name}:*"))
            }
            for _, part in sorted(parts.items()):
                name = _name(part)
                parent = platform if name == "dram" else f"rapl:{names[zone]}"
                listed.append((part, f"{names[zone]}:{name}", parent))
        return cls(host, listed)

    def read(self) -> Reading:
        """Cumulative joules of each zone since the probe."""
        energy_j: dict[str, float] = {}
        broken: set[str] = set()
        problems = []
        now_s = self._clock()
        for zone in self._zones:
            try:
                value_uj = zone.file.read()
            except SourceError as error:
                problems.append(str(error))
                continue
            grown_uj = value_uj - zone.last_uj
            if zone.range_uj > 0 and (now_s - zone.last_s) * PLAUSIBLE_W * 1e6 > zone.range_uj:
                broken.add(zone.domain.id)  # it may have wrapped more than once since
                grown_uj = 0
            elif grown_uj < 0 and zone.range_uj > 0:
                grown_uj += zone.range_uj + 1
            elif grown_uj < 0:
                broken.add(zone.domain.id)
                grown_uj = 0
            zone.total_uj += grown_uj
            zone.last_uj, zone.last_s = value_uj, now_s
            energy_j[zone.domain.id] = zone.total_uj / 1e6
        if not energy_j:
            raise SourceError("; ".join(problems))
        return Reading(now_s, energy_j=energy_j, broken=frozenset(broken))

    def close(self) -> None:
        """Close the counter files."""
        close_all(zone.file for zone in self._zones)


def _open(directory: Path, name: str, parent: str | None, now_s: float) -> _Zone:
    range_uj = int((directory / "max_energy_range_uj").read_text())
    file = NumberFile(directory / "energy_uj")
    try:
        value_uj = file.read()
    except SourceError:
        file.close()
        raise
    last = name.rpartition(":")[2]
    if name == "psys":
        scope = Scope.PLATFORM
    elif last == "dram":
        scope = Scope.DRAM
    elif ":" in name:
        scope = Scope.RAIL
    else:
        scope = Scope.PACKAGE
    domain = Domain(
        f"rapl:{name}",
        {"psys": "platform (psys)"}.get(name, name),
        scope,
        Provenance.COUNTER,
        "rapl",
        update_period_s=0.001,
        parent=parent,
    )
    return _Zone(domain, file, range_uj, value_uj, now_s)


def _name(zone: Path) -> str:
    try:
        return (zone / "name").read_text().strip() or zone.name
    except OSError:
        return zone.name


def _positive(path: Path) -> bool:
    """Whether the counter moves at all: on boards that do not wire psys it stays 0."""
    try:
        return int(path.read_text()) > 0
    except (OSError, ValueError):
        return True  # let the caller meet the error and report it
