"""The devices that could take part, and the links between them, as a profile knows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lightning_edge.plan.frozen import FrozenMap

__all__: list[str] = []

Provenance = Literal["measured", "prior", "declared"]
"""Measured here; from the shipped table of boards; or written down by somebody."""
PROVENANCES: tuple[Provenance, ...] = ("measured", "prior", "declared")
ALL = "all"
"""Key under which the provenance of every number not named by itself is kept."""


@dataclass(frozen=True)
class Known:
    """Numbers that say where they come from.

    Attributes:
        provenance: Field name (or "all") -> "measured", "prior" or "declared".
    """

    provenance: Mapping[str, str] = field(default_factory=FrozenMap, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "provenance", FrozenMap(self.provenance))

    def provenance_of(self, name: str) -> str:
        """Where a number comes from; "declared" if nothing else was said."""
        return self.provenance.get(name, self.provenance.get(ALL, "declared"))


@dataclass(frozen=True)
class PowerMode(Known):
    """One setting of a device's clocks.

    Attributes:
        name: As the device calls it, such as "15W".
        speed: How many times as fast as the device's timings say; they belong to speed 1.
        timing: Key of this mode's own timings in the model's blocks, instead of the device's.
        idle_w: Watts while nothing happens; `None` if unknown, like the two below.
        compute_w: Watts while computing.
        communication_w: Watts while sending or receiving and not computing.
    """

    name: str
    speed: float = 1.0
    timing: str | None = None
    idle_w: float | None = None
    compute_w: float | None = None
    communication_w: float | None = None

    @property
    def has_power(self) -> bool:
        """Whether all watts are known."""
        return None not in (self.idle_w, self.compute_w, self.communication_w)


@dataclass(frozen=True)
class Device(Known):
    """One participant.

    Attributes:
        name: As the user calls it; unique.
        kind: Kind of board or machine, such as "jetson-orin-nano".
        timing: Key of its timings in the model's blocks; the kind if nothing else was said.
        memory_bytes: What training may use: free memory, not the size of the chips; `None` if
            unknown, which limits nothing.
        cores: Number of processor cores.
        accelerator: Name of what computes, if it is not the processor.
        modes: Power modes it can be in, at least one.
        mode: The mode it is in now.
        battery_j: Joules left in the battery; `None` for mains.
        power_cap_w: The most watts it may draw on average over a step.
        instruction_s: Fixed seconds of each forward and each backward, whatever the rows.
        step_s: Fixed seconds of each step: the loop around it, logging, the optimizer's calls.
        copy_s_per_byte: Seconds to pack or unpack a byte of a message.
        holes_bytes: Memory that training takes besides its tensors, whatever the plan: holes that
            the allocator leaves.
        holes_ratio: More of them, per byte that a micro-batch keeps, once several micro-batches
            have followed each other.
    """

    name: str
    kind: str = "cpu"
    timing: str = ""
    memory_bytes: int | None = None
    cores: int | None = None
    accelerator: str | None = None
    modes: tuple[PowerMode, ...] = (PowerMode("default"),)
    mode: str = ""
    battery_j: float | None = None
    power_cap_w: float | None = None
    instruction_s: float = 0.0
    step_s: float = 0.0
    copy_s_per_byte: float = 0.0
    holes_bytes: float = 0.0
    holes_ratio: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "modes", tuple(self.modes))
        if not self.timing:
            object.__setattr__(self, "timing", self.kind)
        if not self.mode and self.modes:
            object.__setattr__(self, "mode", self.modes[0].name)

    def power_mode(self, name: str | None = None) -> PowerMode:
        """The mode of that name, the current one for `None`.

        Raises:
            KeyError: If there is none.
        """
        wanted = self.mode if name is None else name
        for mode in self.modes:
            if mode.name == wanted:
                return mode
        raise KeyError(f"{self.name} has no power mode {wanted}")


@dataclass(frozen=True)
class Link(Known):
    """What a message costs from one device to another.

    Attributes:
        source: Name of the sender.
        target: Name of the receiver.
        seconds_per_byte: Inverse of the bandwidth that one message gets when nothing else is sent.
        latency_s: Seconds until the first byte arrives.
        media: Names of what the message shares with others, such as a Wi-Fi channel: of all
            messages on one medium only one advances at full speed. Both directions of a half-duplex
            link share a medium. That messages of one sender share its output, and messages to one
            receiver its input, is understood.
    """

    source: str
    target: str
    seconds_per_byte: float
    latency_s: float = 0.0
    media: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "media", tuple(self.media))

    @property
    def mbit_per_s(self) -> float:
        """The bandwidth in megabits per second."""
        return 8e-6 / self.seconds_per_byte if self.seconds_per_byte else float("inf")
