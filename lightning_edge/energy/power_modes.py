"""Power modes of a board: which there are, which is on, and how to switch without a reboot.

Reading needs no privilege: ``/etc/nvpmodel.conf`` lists a Jetson's modes and
``/var/lib/nvpmodel/status`` holds the number of the current one. Switching goes through jtop's
service. Names are used throughout: mode 0 is the strongest on some boards and the weakest on
others (an Orin Nano Super counts 15W, 25W, MAXN_SUPER, 7W).
"""

from __future__ import annotations

import re
import time
from types import TracebackType
from typing import Any, Protocol

from lightning_edge.energy.host import HostEnv
from lightning_edge.energy.source import Unavailable
from lightning_edge.errors import EnergyError

CONFIGURATION = "/etc/nvpmodel.conf"
STATUS = "/var/lib/nvpmodel/status"
POLL_S = 0.05

_MODEL = re.compile(r"POWER_MODEL\s+ID=(\d+)\s+NAME=(\w+)")
_CURRENT = re.compile(r"pmode:(\d+)")


class PowerControl(Protocol):
    """Something that can switch the power mode of this machine."""

    def modes(self) -> tuple[str, ...]:
        """Names of the modes."""
        ...

    def current(self) -> str:
        """Name of the mode that is on."""
        ...

    def set(self, mode: str, timeout_s: float = 10.0) -> None:
        """Switch, and return once the mode is on.

        Raises:
            EnergyError: If the mode is unknown or was not on after `timeout_s` seconds.
        """
        ...

    def restore(self, timeout_s: float = 10.0) -> None:
        """Go back to the mode that was on at the beginning."""
        ...


def listed_modes(host: HostEnv) -> dict[int, str]:
    """Number and name of the modes of a Jetson's configuration file; empty on other machines."""
    text = host.text(CONFIGURATION) or ""
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return {int(number): name for number, name in _MODEL.findall("\n".join(lines))}


def current_mode(host: HostEnv) -> str | None:
    """Name of the mode that is on, by the files alone; None where that is unknown."""
    match = _CURRENT.search(host.text(STATUS) or "")
    return listed_modes(host).get(int(match.group(1))) if match else None


class JtopPowerControl:
    """Switches a Jetson's mode through jtop's service.

    Also a context manager, which restores the mode of the beginning.

    Args:
        host: The machine.
        timeout_s: How long to wait for the service's first answer, in seconds.

    Raises:
        Unavailable: If there is no service, or the board has no modes.
    """

    def __init__(self, host: HostEnv, timeout_s: float = 5.0) -> None:
        try:
            jtop = host.jtop()
        except ImportError as error:
            raise Unavailable(
                f"jetson-stats is not installed ({error})", "sudo pip3 install jetson-stats"
            ) from None
        self._client: Any = jtop.jtop(interval=0.5)
        try:
            self._client.start()
        except (jtop.JtopException, OSError) as error:
            raise Unavailable("jtop: " + " ".join(str(error).split())) from None
        if self._client.nvpmodel is None:
            self.close()
            raise Unavailable("this board has no power modes (nvpmodel is missing)")
        self._wait(lambda: bool(self._current()), timeout_s, "jtop's service told no power mode")
        self._first = self.current()

    def modes(self) -> tuple[str, ...]:
        """Names of the modes."""
        return tuple(self._client.nvpmodel.models)

    def current(self) -> str:
        """Name of the mode that is on."""
        return str(self._client.nvpmodel.name)

    def set(self, mode: str, timeout_s: float = 10.0) -> None:
        """Switch, and return once the mode is on. See `PowerControl`."""
        if mode not in self.modes():
            raise EnergyError(f"no power mode {mode!r}; there are {', '.join(self.modes())}")
        self._client.nvpmodel = mode  # never with force=True, which reboots without asking
        self._wait(
            lambda: self.current() == mode and not self._client.nvpmodel.is_running(),
            timeout_s,
            f"the board is in {self.current()}, not in {mode}; a mode with another set of GPU "
            f"cores needs a reboot: sudo nvpmodel -m {self.modes().index(mode)}",
        )

    def restore(self, timeout_s: float = 10.0) -> None:
        """Go back to the mode that was on at the beginning."""
        if self.current() != self._first:
            self.set(self._first, timeout_s)

    def close(self) -> None:
        """Leave the service."""
        self._client.close()

    def __enter__(self) -> JtopPowerControl:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.restore()
        finally:
            self.close()

    def _current(self) -> str:
        try:
            return self.current()
        except (KeyError, AttributeError):  # before the first update
            return ""

    def _wait(self, done: Any, timeout_s: float, problem: str) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not done():
            try:
                self._client.ok(spin=True)
            except Exception as error:
                raise EnergyError(f"jtop's client stopped: {error}") from None
            if time.monotonic() > deadline_s:
                raise EnergyError(f"after {timeout_s:g} s {problem}")
            time.sleep(POLL_S)
