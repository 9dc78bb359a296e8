"""What can happen to a device, and when: `kill:pi@12s`, `cut:pi@step30`, `slow:pi=30%@5s`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from lightning_edge.errors import TestbedError
from lightning_edge.testbed import units

__all__: list[str] = []

_FORM = re.compile(r"(?P<action>\w+):(?P<device>[^=@]+)(=(?P<value>[^@]+))?@(?P<when>.+)")


class Action(str, Enum):
    """What happens to a device."""

    KILL = "kill"  #: its processes die at once
    FREEZE = "freeze"  #: its processes stop where they are; its connections stay open
    THAW = "thaw"  #: they go on
    SLOW = "slow"  #: it gets a fraction of its CPU quota (30%), or another link rate (5mbit)
    CUT = "cut"  #: its cable is pulled: packets vanish, nobody is told
    DEAFEN = "deafen"  #: packets to it vanish, its own get through: a link that is half open
    RESTORE = "restore"  #: thawed, connected, with its own CPU quota and link rate


@dataclass(frozen=True)
class Fault:
    """One thing that happens to one device during a run.

    Args:
        action: What happens.
        device: To whom, by name.
        at_s: When, in seconds after the processes were started; or
        at_step: when that device has announced this training step (or a later one) as finished.
        cpu_factor: For `slow`: what is left of its CPU quota.
        link_mbit: For `slow`: its new link rate.
    """

    action: Action
    device: str
    at_s: float | None = None
    at_step: int | None = None
    cpu_factor: float | None = None
    link_mbit: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be carried out.

        Raises:
            TestbedError: If not exactly one time is given, or `slow` has nothing to slow down.
        """
        if (self.at_s is None) == (self.at_step is None):
            raise TestbedError(f"a fault needs a time or a step, one of the two: {self}")
        given = [value for value in (self.cpu_factor, self.link_mbit) if value is not None]
        if len(given) != (self.action is Action.SLOW) or any(value <= 0 for value in given):
            raise TestbedError(
                "slow, and nothing else, takes a CPU fraction or a link rate above 0: "
                f"slow:{self.device}=30%@5s or slow:{self.device}=5mbit@5s; got {self}"
            )

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read `ACTION:DEVICE[=VALUE]@TIME` with a TIME such as `12s` or `step30`.

        Raises:
            TestbedError: If the text is of another form; shows the form.
        """
        found = _FORM.fullmatch(text.strip())
        try:
            if found is None or found["action"] not in {action.value for action in Action}:
                raise ValueError(f"actions are {', '.join(action.value for action in Action)}")
            step = re.fullmatch(r"step\s*=?\s*(\d+)", found["when"].strip())
            value = found["value"]
            is_rate = value is not None and value.strip().lower().endswith("bit")
            return cls(
                Action(found["action"]),
                found["device"].strip(),
                at_s=None if step else units.seconds(found["when"]),
                at_step=int(step[1]) if step else None,
                cpu_factor=units.fraction(value) if value and not is_rate else None,
                link_mbit=units.rate_mbit(value) if value and is_rate else None,
            )
        except ValueError as error:
            raise TestbedError(
                f"the fault {text!r} is not of the form ACTION:DEVICE[=VALUE]@TIME, such as "
                f"kill:pi@12s, cut:pi@step30 or slow:pi=30%@5s ({error})"
            ) from None

    def __str__(self) -> str:
        """Write it in the form that `parse` reads."""
        value = "" if self.cpu_factor is None else f"={100 * self.cpu_factor:g}%"
        value = value if self.link_mbit is None else f"={self.link_mbit:g}mbit"
        when = f"step{self.at_step}" if self.at_s is None else f"{self.at_s:g}s"
        return f"{self.action.value}:{self.device}{value}@{when}"


def check_faults(faults: Sequence[Fault], names: Sequence[str]) -> list[str]:
    """Return what is wrong with faults of devices of these names."""
    return [
        f"the fault {fault} names a device that is not there; there is {', '.join(names)}"
        for fault in faults
        if fault.device not in names
    ]


class Timeline:
    """Carries faults out when they are due.

    Args:
        faults: In any order.
        carry_out: What does it.
    """

    def __init__(self, faults: Sequence[Fault], carry_out: Callable[[Fault], None]) -> None:
        self._waiting = list(faults)
        self._carry_out = carry_out
        #: Seconds after the start at which each fault was carried out, in that order.
        self.fired: list[tuple[Fault, float]] = []

    @property
    def waiting(self) -> tuple[Fault, ...]:
        """Return what has not happened yet."""
        return tuple(self._waiting)

    def advance(self, time_s: float, step_of: Callable[[str], int]) -> None:
        """Carry out what is due `time_s` seconds after the start; times in order, then steps."""
        due = [f for f in self._waiting if f.at_s is not None and f.at_s <= time_s]
        due.sort(key=lambda fault: fault.at_s or 0.0)
        due += [
            f for f in self._waiting if f.at_step is not None and f.at_step <= step_of(f.device)
        ]
        for fault in due:
            self._waiting.remove(fault)
            self._carry_out(fault)
            self.fired.append((fault, time_s))
