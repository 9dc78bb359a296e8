"""Batteries of laptops and handhelds, while they discharge: the whole device, slowly and roughly.

Gauges renew their values every 1 to 60 s. `power_now` (uW), or `current_now` x `voltage_now`, is
used where it
exists: one step of `energy_now` is commonly 10 mWh = 36 J. On the mains a battery tells nothing
    about consumption.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from lightning_edge.energy.domain import Domain, Provenance, Reading, Scope
from lightning_edge.energy.host import HostEnv
from lightning_edge.energy.source import SourceError, Unavailable

SUPPLIES = "/sys/class/power_supply"
TYPICAL_UPDATE_S = 10.0


class BatterySource:
    """Reads the batteries that feed this machine.

    Args:
        host: The machine.
        batteries: Their directories.
    """

    kind: ClassVar[str] = "battery"

    def __init__(self, host: HostEnv, batteries: Sequence[Path]) -> None:
        self._clock = host.clock
        self._batteries = batteries
        self._full_j = dict.fromkeys(batteries, 0.0)
        self._by_power = all(_power_w(battery) is not None for battery in batteries)
        if not self._by_power:
            self._full_j = {battery: _stored_j(battery) for battery in batteries}
        self.domains: Sequence[Domain] = (
            Domain(
                "battery",
                " + ".join(battery.name for battery in batteries),
                Scope.PLATFORM,
                Provenance.BATTERY,
                "battery",
                update_period_s=TYPICAL_UPDATE_S,
            ),
        )

    @classmethod
    def probe(cls, host: HostEnv) -> BatterySource:
        """Read each battery once; all that are present must discharge."""
        batteries = find_batteries(host)
        if not batteries:
            raise Unavailable(f"no battery in {SUPPLIES}")
        source = cls(host, batteries)
        try:
            source.read()
        except SourceError as error:
            raise Unavailable(str(error), "unplug the charger to measure by the battery") from None
        return source

    def read(self) -> Reading:
        """Watts drawn, or joules taken since the probe."""
        states = {battery.name: _text(battery / "status") for battery in self._batteries}
        if "Discharging" not in states.values():
            said = ", ".join(f"{name} is {state or 'unknown'}" for name, state in states.items())
            raise SourceError(f"only a discharging battery tells consumption: {said}")
        now_s = self._clock()
        if self._by_power:
            drawn = [_power_w(b) or 0.0 for b in self._batteries if states[b.name] == "Discharging"]
            return Reading(now_s, power_w={"battery": sum(drawn)})
        taken_j = sum(self._full_j[battery] - _stored_j(battery) for battery in self._batteries)
        return Reading(now_s, energy_j={"battery": max(taken_j, 0.0)})

    def close(self) -> None:
        """Nothing is held open."""


def find_batteries(host: HostEnv) -> list[Path]:
    """Batteries that feed the machine; those of mice and headsets have the scope "Device"."""
    return [
        path
        for path in sorted(host.path(SUPPLIES).glob("*"))
        if _text(path / "type") == "Battery"
        and _text(path / "scope") != "Device"
        and _text(path / "present") != "0"
    ]


def battery_pct(host: HostEnv) -> float | None:
    """Charge of the machine's batteries in per cent; None without one."""
    values = [_number(path / "capacity") for path in find_batteries(host)]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _power_w(battery: Path) -> float | None:
    power_uw = _number(battery / "power_now")
    if power_uw is not None:
        return abs(power_uw) / 1e6
    current_ua, voltage_uv = _number(battery / "current_now"), _number(battery / "voltage_now")
    if current_ua is not None and voltage_uv is not None:
        return abs(current_ua) * voltage_uv / 1e12
    return None


def _stored_j(battery: Path) -> float:
    energy_uwh = _number(battery / "energy_now")
    if energy_uwh is not None:
        return energy_uwh * 3600 / 1e6
    charge_uah, voltage_uv = _number(battery / "charge_now"), _number(battery / "voltage_now")
    if charge_uah is not None and voltage_uv is not None:
        return charge_uah * voltage_uv * 3600 / 1e12
    raise SourceError(f"{battery.name} tells neither power nor energy nor charge")


def _number(path: Path) -> float | None:
    try:
        return float(_text(path))
    except ValueError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
