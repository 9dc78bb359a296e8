"""What a device draws: a straight line from idle to busy, plus the bytes it moves."""

from __future__ import annotations

from dataclasses import dataclass

__all__: list[str] = []


@dataclass(frozen=True)
class PowerCurve:
    """Watts of a device as a function of how busy it is.

        watts
        busy_w |            ____
               |       ____/
        idle_w |  ____/             + joules_per_byte x bytes per second
               |
               +----------------->  utilisation: CPU time used / CPU time allowed
                 0             1

    A straight line explains 83 % of the variance of a Jetson Xavier NX's input power over its GPU
    load (fitted to the public tegrastats logs of mobicom25paper676/intraDP).

    Args:
        idle_w: Watts when nothing runs.
        busy_w: Watts when the whole CPU quota is used.
        joules_per_byte: Joules for each byte sent or received. The default is what the same Xavier
            NX drew for sending over Wi-Fi (0.03 J/MB, an upper bound: it includes the packing).
        rel_uncertainty: How far the curve may be from a real board, as a fraction.
        source: Where the numbers come from.
    """

    idle_w: float
    busy_w: float
    joules_per_byte: float = 3e-8
    rel_uncertainty: float = 0.3
    source: str = "given by the user"

    def joules(self, utilisation: float, duration_s: float, moved_bytes: float) -> float:
        """Return the joules of `duration_s` seconds at this utilisation (cut to 0..1)."""
        load = min(max(utilisation, 0.0), 1.0)
        power_w = self.idle_w + (self.busy_w - self.idle_w) * load
        return power_w * duration_s + self.joules_per_byte * moved_bytes
