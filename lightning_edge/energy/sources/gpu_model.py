"""Graphics cards that tell how busy they are but not what they draw: an estimate, by their limit.

::

    P = limit x (IDLE_SHARE + (1 - IDLE_SHARE) x u)    u: share of time in which something ran on it

NVIDIA cards tell u through NVML, also where power is "not supported" (many laptops, small and old
cards); AMD cards in ``gpu_busy_percent``. The limit is the driver's own where it knows one, else
the maker's (`TDP_W`), else a guess.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

from lightning_edge.energy.domain import Domain, Provenance, Reading, Scope
from lightning_edge.energy.host import HostEnv
from lightning_edge.energy.source import SourceError, Unavailable
from lightning_edge.energy.sources import hwmon
from lightning_edge.energy.sources.model import PowerModel
from lightning_edge.energy.sources.nvml import NVML, text_of, visible_gpus, ways_to_read

IDLE_SHARE = 0.1
"""Watts of an idle card as a share of its limit; a rule of thumb."""
GUESS_W = 75.0
"""What a slot gives without a cable: most cards that tell no power draw no more."""
CARDS = "/sys/class/drm"

TDP_W: Mapping[str, float] = {
    "GT 710": 19, "GT 1030": 30, "GTX 750 Ti": 60, "GTX 750": 55, "GTX 950": 90, "GTX 960": 120,
    "GTX 970": 145, "GTX 980": 165, "GTX 1050 Ti": 75, "GTX 1050": 75, "GTX 1060": 120,
    "GTX 1070": 150, "GTX 1080": 180, "GTX 1650": 75, "GTX 1660": 120, "MX150": 25, "MX250": 25,
    "MX350": 20, "MX450": 25, "Quadro K620": 45, "Quadro P400": 30, "Quadro P620": 40,
    "Quadro P1000": 47, "T400": 30, "T600": 40, "T1000": 50,
}  # fmt: skip
"""Cards known to come without power readings in part of their variants, by the maker's data sheets.

The longest name that is found in the card's counts."""


@dataclass
class _Card:
    domain: Domain
    power: PowerModel
    load: Callable[[], float]
    energy_j: float = 0.0


class GpuModelSource:
    """Estimates the joules of graphics cards that have no reading.

    Args:
        host: The machine.
        cards: The cards.
        close: Gives back what their loads are read with.
    """

    kind: ClassVar[str] = "gpu_model"

    def __init__(self, host: HostEnv, cards: Sequence[_Card], close: Callable[[], None]) -> None:
        self._clock, self._cards, self._close = host.clock, cards, close
        self._last_s = host.clock()
        self.domains: Sequence[Domain] = tuple(card.domain for card in cards)

    @classmethod
    def probe(cls, host: HostEnv) -> GpuModelSource:
        """Find the cards without a reading, and ask each how busy it is."""
        if host.is_tegra:
            raise Unavailable("the GPU of a Jetson is part of its module")
        nvml = _started(host)
        cards = _amd(host)
        try:
            cards += _nvidia(host, nvml) if nvml is not None else []
        finally:
            if nvml is not None and not cards:
                nvml.nvmlShutdown()
        if not cards:
            raise Unavailable("no graphics card here tells its load and not its power")
        return cls(host, cards, nvml.nvmlShutdown if nvml is not None else lambda: None)

    def read(self) -> Reading:
        """Joules since the probe, at the load of this moment."""
        now_s = self._clock()
        passed_s = max(now_s - self._last_s, 0.0)
        found: dict[str, float] = {}
        problems = []
        for card in self._cards:
            try:
                load = card.load()
            except Exception as error:  # NVML's errors are of a class that is known at run time
                problems.append(f"{card.domain.name}: {error}")
                continue
            card.energy_j += card.power.power_w(load) * passed_s
            found[card.domain.id] = card.energy_j
        if not found:
            raise SourceError("; ".join(problems))
        self._last_s = now_s
        return Reading(now_s, energy_j=found)

    def close(self) -> None:
        """Leave NVML. May be called twice."""
        close, self._close = self._close, lambda: None
        with suppress(Exception):
            close()


def model_of(name: str, limit_w: float | None) -> PowerModel:
    """The power of a card by the driver's limit, else the table, else a guess."""
    known = [part for part in TDP_W if re.search(rf"\b{re.escape(part)}\b", name)]
    if limit_w:
        full_w, sure, origin = limit_w, 0.4, f"the driver's limit of {limit_w:.0f} W"
    elif known:
        full_w = TDP_W[max(known, key=len)]
        sure, origin = 0.5, f"its maker's limit of {full_w:.0f} W"
    else:
        full_w, sure, origin = GUESS_W, 0.6, f"a guess of {GUESS_W:.0f} W"
    return PowerModel(IDLE_SHARE * full_w, full_w, rel_uncertainty=sure, origin=origin)


def _card(key: str, name: str, limit_w: float | None, load: Callable[[], float]) -> _Card:
    power = model_of(name, limit_w)
    domain = Domain(
        f"model:gpu:{key}",
        f"{name}, estimate from {power.origin}",
        Scope.GPU,
        Provenance.MODEL,
        GpuModelSource.kind,
        rel_uncertainty=power.rel_uncertainty,
    )
    return _Card(domain, power, load)


def _started(host: HostEnv) -> NVML | None:
    try:
        nvml = host.nvml()
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml


def _nvidia(host: HostEnv, nvml: NVML) -> list[_Card]:
    cards = []
    for _, uuid, handle in visible_gpus(nvml, host.environ.get("CUDA_VISIBLE_DEVICES")):
        if any(_answers(nvml, read) for _, _, read in ways_to_read(nvml, handle)):
            continue

        def load(handle: Any = handle) -> float:
            return float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100.0

        if _answers(nvml, load):
            limit_w = None
            for ask in (
                nvml.nvmlDeviceGetEnforcedPowerLimit,
                nvml.nvmlDeviceGetPowerManagementLimit,
            ):
                with suppress(nvml.NVMLError):
                    limit_w = limit_w or ask(handle) / 1e3
            cards.append(_card(uuid, text_of(nvml.nvmlDeviceGetName(handle)), limit_w, load))
    return cards


def _answers(nvml: NVML, read: Callable[[], float]) -> bool:
    try:
        read()
    except nvml.NVMLError:
        return False
    return True


def _amd(host: HostEnv) -> list[_Card]:
    measured = {channel.device for channel in hwmon.best(list(hwmon.channels(host)))}
    hidden = any(host.environ.get(name) in ("", "-1") for name in hwmon.VISIBLE_VARIABLES)
    cards = []
    for folder in sorted(host.path(CARDS).glob("card[0-9]*/device")):
        device, path = folder.resolve().name, folder / "gpu_busy_percent"
        chips = list(folder.glob("hwmon/hwmon*"))
        is_apu = any(hwmon.is_apu(chip) for chip in chips)

        def load(path: Any = path) -> float:
            return int(path.read_text()) / 100.0

        try:
            load()
        except (OSError, ValueError):
            continue
        if device not in measured and not is_apu and not hidden:
            cards.append(_card(device, f"AMD card {device}", _cap_w(chips), load))
    return cards


def _cap_w(chips: Sequence[Any]) -> float | None:
    for chip in chips:
        with suppress(OSError, ValueError):
            return int((chip / "power1_cap").read_text()) / 1e6
    return None
