"""Raspberry Pi 5 and Compute Module 5.

The power-management chip, through ``vcgencmd pmic_read_adc``.

It prints a current and a voltage for each of 12 rails behind the regulators. What flows into the
board follows a fit that the community made against wall meters: ``1.1451 x sum + 0.5879 W``. A Pi
4 tells voltages only.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from typing import ClassVar

from lightning_edge.energy.domain import Domain, Provenance, Reading, Scope
from lightning_edge.energy.host import HostEnv
from lightning_edge.energy.source import SourceError, Unavailable

COMMAND = ("vcgencmd", "pmic_read_adc")
TIMEOUT_S = 2.0
BOARD_GAIN, BOARD_OFFSET_W = 1.1451, 0.5879
BOARD = "rpi:board"
RAILS = "rpi:rails"

_LINE = re.compile(r"(\w+)_([AV])\s+(?:current|volt)\(\d+\)=([\d.]+)[AV]")


class RaspberryPiSource:
    """Reads the board's input power.

    Args:
        host: The machine.
    """

    kind: ClassVar[str] = "raspberry_pi"
    spawns = True
    """A process per reading: its cost is wall time, not this thread's CPU time."""

    def __init__(self, host: HostEnv) -> None:
        self._host = host
        self.domains: Sequence[Domain] = (
            Domain(BOARD, "board input", Scope.PLATFORM, Provenance.SAMPLED, self.kind, 0.1, 0.10),
            Domain(
                RAILS, "12 PMIC rails", Scope.RAIL, Provenance.SAMPLED, self.kind, 0.1, 0.05, BOARD
            ),
        )

    @classmethod
    def probe(cls, host: HostEnv) -> RaspberryPiSource:
        """Ask the chip once."""
        board = host.board or ""
        if "Raspberry Pi" not in board:
            raise Unavailable("not a Raspberry Pi")
        source = cls(host)
        try:
            source.read()
        except SourceError as error:
            remedy = (
                "install it (apt install libraspberrypi-bin) and be in the group video"
                if re.search(r"Pi 5|Pi 500|Compute Module 5", board)
                else "only the Pi 5 family has a power chip that tells currents"
            )
            raise Unavailable(f"{board}: {error}", remedy) from None
        return source

    def read(self) -> Reading:
        """Watts of the board and of the rails behind its regulators."""
        now_s = self._host.clock()
        try:
            text = self._host.run(COMMAND, TIMEOUT_S)
        except (OSError, subprocess.SubprocessError) as error:
            raise SourceError(f"{' '.join(COMMAND)}: {error}") from None
        rails_w = parse_rails(text)
        if not rails_w:
            raise SourceError(f"{' '.join(COMMAND)} gave no rail with current and voltage")
        sum_w = sum(rails_w.values())
        return Reading(now_s, power_w={BOARD: BOARD_GAIN * sum_w + BOARD_OFFSET_W, RAILS: sum_w})

    def close(self) -> None:
        """Nothing is held open."""


def parse_rails(text: str) -> dict[str, float]:
    """Watts per rail from the command's output; rails without both values are left out."""
    found: dict[str, dict[str, float]] = {}
    for name, unit, value in _LINE.findall(text):
        found.setdefault(name, {})[unit] = float(value)
    return {name: pair["A"] * pair["V"] for name, pair in found.items() if len(pair) == 2}
