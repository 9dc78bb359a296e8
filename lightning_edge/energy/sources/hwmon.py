"""What drivers show in /sys/class/hwmon: AMD and Intel graphics, and a channel that the user names.

::

    driver     file                            energy of
    amdgpu     power1_average, power1_input    the card with its memory; of an APU the whole package
    nouveau    power1_input                    the card
    i915, xe   energy1_input                   the card (these drivers show discrete cards only)
    any other  LIGHTNING_EDGE_HWMON_TOTAL      the whole machine, as its owner says:
                                               "ina226:power1", "power_meter:power1_average"

What another chip measures is a matter of wiring that no file tells. So nothing is made of it unless
the user names the channel that feeds the machine; it then contains everything else on it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lightning_edge.energy.domain import Domain, Provenance, Reading, Scope
from lightning_edge.energy.host import HostEnv
from lightning_edge.energy.source import SourceError, Unavailable
from lightning_edge.energy.sources.sysfs import NumberFile, close_all

HWMON = "/sys/class/hwmon"
TOTAL_VARIABLE = "LIGHTNING_EDGE_HWMON_TOTAL"
VISIBLE_VARIABLES = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")

GRAPHICS = ("amdgpu", "nouveau", "i915", "xe")
_FILE = re.compile(r"(energy|power)(\d+)_(input|average)")
_MICRO = 1e6


@dataclass(frozen=True)
class Channel:
    """One file of a chip with microjoules or microwatts in it.

    Args:
        chip: The driver's name for it.
        path: The file.
        device: Name of the device behind it, such as a PCI address.
        is_apu: Whether it is the graphics part of an AMD processor.
    """

    chip: str
    path: Path
    device: str
    is_apu: bool

    @property
    def counts(self) -> bool:
        """Whether it shows energy, not power."""
        return self.path.name.startswith("energy")

    @property
    def names(self) -> tuple[str, str]:
        """By what a user may name it: with its whole file name, or up to the underscore."""
        file = self.path.name.removesuffix("_input")
        return f"{self.chip}:{file}", f"{self.chip}:{file.removesuffix('_average')}"

    def domain(self) -> Domain:
        """What its joules are of, where the driver tells."""
        provenance = Provenance.COUNTER if self.counts else Provenance.SAMPLED
        if self.is_apu:
            return Domain(
                f"hwmon:{self.device}",
                f"{self.chip} {self.device}, processor included",
                Scope.PACKAGE,
                provenance,
                "hwmon",
                parent="rapl:package-0",  # the same package, if its own counter can be read
            )
        name = f"{self.chip} {self.device}"
        return Domain(f"gpu:{self.device}", name, Scope.GPU, provenance, "hwmon")

    def total(self) -> Domain:
        """The same as the input of the whole machine."""
        key = f"hwmon:{self.device}:{self.names[1]}"
        kind = Provenance.EXTERNAL
        return Domain(key, f"{self.names[0]}, named as input", Scope.PLATFORM, kind, "hwmon")


class HwmonSource:
    """Reads graphics cards, or the input that the user named.

    Args:
        host: The machine.
        channels: What to read, each with its domain.
    """

    kind: ClassVar[str] = "hwmon"

    def __init__(self, host: HostEnv, channels: Sequence[tuple[Channel, Domain]]) -> None:
        self._clock = host.clock
        self.domains: Sequence[Domain] = tuple(domain for _, domain in channels)
        self._files: dict[str, NumberFile] = {}
        self._counters = {domain.id for channel, domain in channels if channel.counts}
        try:
            for channel, domain in channels:
                self._files[domain.id] = NumberFile(channel.path)
        except OSError:
            self.close()
            raise

    @classmethod
    def probe(cls, host: HostEnv) -> HwmonSource:
        """Find the channels and read each once."""
        found = list(channels(host))
        named = host.environ.get(TOTAL_VARIABLE, "")
        if named:
            chosen = [(c, c.total()) for c in found if named in c.names]
            if len(chosen) != 1:
                there = ", ".join(sorted(c.names[1] for c in found)) or "none"
                raise Unavailable(
                    f"{TOTAL_VARIABLE}={named!r} names {len(chosen)} channels; there are {there}"
                )
        else:
            cards = [c for c in best(found) if c.chip in GRAPHICS]
            chosen = [(c, c.domain()) for c in cards if c.is_apu or c in _visible(cards, host)]
        if not chosen:
            raise _nothing(host, found)
        try:
            source = cls(host, chosen)
            source.read()
        except (OSError, SourceError) as error:
            raise Unavailable(f"{HWMON}: {error}") from None
        return source

    def read(self) -> Reading:
        """Cumulative joules or watts of each channel."""
        now_s = self._clock()
        energy_j: dict[str, float] = {}
        power_w: dict[str, float] = {}
        problems = []
        for key, file in self._files.items():
            try:
                (energy_j if key in self._counters else power_w)[key] = file.read() / _MICRO
            except SourceError as error:  # a card that sleeps answers EPERM
                problems.append(str(error))
        if not energy_j and not power_w:
            raise SourceError("; ".join(problems))
        return Reading(now_s, energy_j=energy_j, power_w=power_w)

    def close(self) -> None:
        """Close the files."""
        close_all(self._files.values())


def channels(host: HostEnv) -> Iterator[Channel]:
    """Every file of hwmon that shows energy or power."""
    for folder in sorted(host.path(HWMON).glob("hwmon*")):
        chip = _text(folder / "name")
        link = folder / "device"
        # The number in hwmonX differs from boot to boot: it names only what has no device.
        device = link.resolve().name if link.is_symlink() else folder.name
        for path in sorted(folder.iterdir()):
            if chip and _FILE.fullmatch(path.name):
                yield Channel(chip, path, device, is_apu(folder))


def is_apu(folder: Path) -> bool:
    """Whether a chip is the graphics part of an AMD processor: only those show this voltage."""
    return _text(folder / "name") == "amdgpu" and _text(folder / "in1_label") == "vddnb"


def best(found: Sequence[Channel]) -> list[Channel]:
    """The first channel of each device, counters before means before momentary values."""
    order = ("energy1_input", "power1_average", "power1_input")
    chosen: dict[str, Channel] = {}
    for name in order:
        for channel in found:
            if channel.path.name == name:
                chosen.setdefault(channel.device, channel)
    return list(chosen.values())


def _visible(cards: Sequence[Channel], host: HostEnv) -> list[Channel]:
    """The discrete cards that this process may use, by their number in the order of the bus."""
    discrete = sorted((card for card in cards if not card.is_apu), key=lambda card: card.device)
    for variable in VISIBLE_VARIABLES:
        value = host.environ.get(variable)
        if value is not None and re.fullmatch(r"[\d, ]*|-1", value):
            numbers = [int(part) for part in value.split(",") if part.strip().isdigit()]
            return [card for number, card in enumerate(discrete) if number in numbers]
    return discrete


def _nothing(host: HostEnv, found: Sequence[Channel]) -> Unavailable:
    others = sorted({c.names[1] for c in found if c.chip not in GRAPHICS})
    if host.is_tegra:
        return Unavailable("a Jetson's monitors are read by the source jetson")
    if others:
        return Unavailable(
            f"{', '.join(others)} in {HWMON} do not say what they are the power of",
            f'if one of them feeds this machine: {TOTAL_VARIABLE}="{others[0]}"',
        )
    if found:
        return Unavailable("the graphics cards here are hidden from this process")
    return Unavailable(f"no chip in {HWMON} shows power or energy")


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
