"""NVIDIA Jetson boards: the INA3221 and INA238 power monitors, straight from sysfs.

No service and no root is needed, and a sweep costs microseconds. Which rails make up the module
differs by board; other rails are inside one of those and are never added:

    board                    total                                      inside
    Thor                     VIN (INA238, carrier input)                 all others
    TX1, TX2                 VDD_IN (+ VDD_MUX, the carrier)             VDD_SYS_*, ...
    TX2 NX, Xavier NX,
    Orin Nano, Orin NX       VDD_IN                                      VDD_CPU_GPU_CV, VDD_SOC
    Nano                     POM_5V_IN                                   POM_5V_GPU, POM_5V_CPU
    AGX Xavier               GPU + CPU + SOC + CV + VDDRQ + SYS5V
    AGX Orin, IGX Orin       VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0      VDDQ_VDD2_1V8AO in
    VIN_SYS_5V0 Thor without VIN         VDD_GPU + VDD_CPU_SOC_MSS + VIN_SYS_5V0

jtop adds VDDQ_VDD2_1V8AO to its feeding rail: 4.9 % too much on an AGX Orin.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from lightning_edge.energy.domain import Domain, Provenance, Reading, Scope
from lightning_edge.energy.host import HostEnv
from lightning_edge.energy.source import SourceError, Unavailable
from lightning_edge.energy.sources.sysfs import NumberFile, close_all

DEVICES = "/sys/bus/i2c/devices"
TOTAL_VARIABLE = "LIGHTNING_EDGE_JETSON_TOTAL"
TOTAL_ID = "ina:total"

TOTALS: tuple[tuple[str, ...], ...] = (
    ("VIN",),
    ("VDD_IN", "VDD_MUX"),
    ("VDD_IN",),
    ("POM_5V_IN",),
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
)
"""The first group whose rails are all there is the total."""

INSIDE: Mapping[str, str] = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}
"""Rails fed by another rail."""

_CARRIER_INPUT = ("VIN",)
_NO_RAIL = ("", "NC")


@dataclass
class Rail:
    """One channel of a power monitor.

    Args:
        name: Its label on the board, such as ``"VDD_IN"``.
        device: The chip's address on its bus, such as ``"1-0040"``.
        files: Voltage in mV and current in mA, or power in uW alone.
        update_period_s: How often the chip renews the value, in seconds.
    """

    name: str
    device: str
    files: tuple[NumberFile, ...]
    update_period_s: float

    def power_w(self) -> float:
        """Watts now; a current that flows backwards or rounds below zero counts as 0."""
        values = [file.read() for file in self.files]
        microwatts = values[0] if len(values) == 1 else values[0] * values[1]
        return max(microwatts, 0) / 1e6


class JetsonSource:
    """Reads the rails of a Jetson and their total.

    Args:
        host: The machine.
        rails: Its channels.
        total: Names of the rails that make up the module.
    """

    kind: ClassVar[str] = "jetson"

    def __init__(self, host: HostEnv, rails: Sequence[Rail], total: Sequence[str]) -> None:
        self._clock = host.clock
        self._rails = {f"ina:{rail.device}:{rail.name}": rail for rail in rails}
        self._total = tuple(key for key, rail in self._rails.items() if rail.name in total)
        scope = Scope.PLATFORM if tuple(total) == _CARRIER_INPUT else Scope.MODULE
        top = self._total[0] if len(self._total) == 1 else TOTAL_ID
        by_name = {rail.name: key for key, rail in self._rails.items()}
        domains = []
        for key, rail in self._rails.items():
            parent = None if key == top else by_name.get(INSIDE.get(rail.name, ""), top)
            domains.append(
                Domain(
                    key,
                    rail.name,
                    scope if key == top else Scope.RAIL,
                    Provenance.SAMPLED,
                    "jetson",
                    update_period_s=rail.update_period_s,
                    rel_uncertainty=0.05,
                    parent=parent,
                )
            )
        if top == TOTAL_ID:
            period_s = max(self._rails[key].update_period_s for key in self._total)
            whole = replace(
                domains[0], id=TOTAL_ID, name=" + ".join(total), scope=scope, parent=None
            )
            domains.insert(0, replace(whole, update_period_s=period_s))
        self.domains: Sequence[Domain] = tuple(domains)

    @classmethod
    def probe(cls, host: HostEnv) -> JetsonSource:
        """Find the monitors, read each channel once, and choose the total."""
        if not host.path(DEVICES).is_dir():
            raise Unavailable(f"there is no {DEVICES}: not a Jetson")
        rails, dead = _find(host)
        names = [rail.name for rail in rails]
        given = host.environ.get(TOTAL_VARIABLE, "")
        groups = (tuple(given.split("+")),) if given else TOTALS
        total = next((group for group in groups if set(group) <= set(names)), None)
        if total is None:
            for rail in rails:
                close_all(rail.files)
            if not rails:
                found = f"unreadable: {', '.join(dead)}" if dead else "none has a named channel"
                raise Unavailable(
                    f"no INA power monitor in {DEVICES} can be read ({found})",
                    "Jetson Nano 2GB and some carriers have none" if host.is_tegra else "",
                )
            raise Unavailable(
                f"rails {', '.join(names)} are there"
                + (f", but not all of {given}" if given else ", but no known total among them"),
                f'name the rails that make up the module: {TOTAL_VARIABLE}="{"+".join(names[:2])}"',
            )
        return cls(host, rails, total)

    def read(self) -> Reading:
        """Watts of every rail, and of the total if all its rails could be read."""
        now_s = self._clock()
        power_w: dict[str, float] = {}
        problems = []
        for key, rail in self._rails.items():
            try:
                power_w[key] = rail.power_w()
            except SourceError as error:
                problems.append(str(error))
        if not power_w:
            raise SourceError("; ".join(problems))
        if len(self._total) > 1 and all(key in power_w for key in self._total):
            power_w[TOTAL_ID] = sum(power_w[key] for key in self._total)
        return Reading(now_s, power_w=power_w)

    def close(self) -> None:
        """Close the files."""
        for rail in self._rails.values():
            close_all(rail.files)


def _find(host: HostEnv) -> tuple[list[Rail], list[str]]:
    """All readable channels.

    And the names of those that give an error (a disabled channel gives EIO).
    """
    rails: list[Rail] = []
    dead: list[str] = []
    for device in sorted(host.path(DEVICES).iterdir()):
        chip = _text(device / "name")
        if not chip.startswith("ina"):
            continue
        # The number in hwmonX differs from boot to boot.
        for folder in sorted((*device.glob("hwmon/hwmon*"), *device.glob("iio:device*"))):
            period_s = _update_period_s(folder)
            for name, paths in _channels(folder, chip):
                files: list[NumberFile] = []
                try:
                    files = [NumberFile(path) for path in paths]
                    rail = Rail(name, device.name, tuple(files), period_s)
                    rail.power_w()
                except (OSError, SourceError):
                    close_all(files)
                    dead.append(f"{device.name}:{name}")
                    continue
                rails.append(rail)
    return rails, dead


def _channels(folder: Path, chip: str) -> Iterator[tuple[str, tuple[Path, ...]]]:
    """Name and files of each channel of a chip."""
    if chip.startswith("ina238") and (folder / "power1_input").exists():
        label = _text(folder / "power1_label") or _text(folder / "in1_label")
        yield label or "VIN", (folder / "power1_input",)
        return
    labels = (*folder.glob("in*_label"), *folder.glob("rail_name_*"))
    for path in sorted(labels):
        name = _text(path)
        if name in _NO_RAIL or name.startswith("sum of"):
            continue
        number = re.sub(r"\D", "", path.name)
        if path.name.startswith("rail_name_"):
            yield name, (folder / f"in_voltage{number}_input", folder / f"in_current{number}_input")
        else:
            yield name, (folder / f"in{number}_input", folder / f"curr{number}_input")


def _update_period_s(folder: Path) -> float:
    """The chip's own averaging time: `update_interval` is in ms."""
    try:
        return max(int(_text(folder / "update_interval")) / 1e3, 1e-3)
    except ValueError:
        return 0.1


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
