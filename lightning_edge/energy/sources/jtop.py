"""Jetson boards through jetson-stats' service.

Used when asked for by name, never imported otherwise (AGPL-3.0).

The board's own sysfs files (`jetson_ina`) give the same numbers for a hundredth of the CPU time
and need no service. What jtop adds is its privilege to switch power modes: see
`lightning_edge.energy.power_modes`.

Its total silently becomes the sum of the rails, some of them twice, when the total rail fails. So
the rails are taken and added here, by the same table as in `jetson_ina`. Its values never age:
when its service dies the last one stays for ever. So each update is stamped on arrival, and an old
one is an error.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, ClassVar

from lightning_edge.energy.domain import Domain, Provenance, Reading, Scope
from lightning_edge.energy.host import HostEnv
from lightning_edge.energy.source import SourceError, SourceLost, Unavailable
from lightning_edge.energy.sources.jetson_ina import INSIDE, TOTALS

INTERVAL_S = 0.2
"""Wanted; the first client of the service decides for all.

More often, jtop's own threads take more than 0.5 % of a core.
"""
FIRST_VALUE_TIMEOUT_S = 5.0
STALE_AFTER_S = 3.0
LOST_AFTER_S = 30.0
TOTAL = "jtop:total"


class JtopSource:
    """Listens to a running jtop client.

    Args:
        host: The machine.
        client: A ``jtop()`` that was not started.
    """

    kind: ClassVar[str] = "jtop"
    gap_s = STALE_AFTER_S
    """Values this far apart are neighbours: another client may have asked for fewer."""

    def __init__(self, host: HostEnv, client: Any) -> None:
        self._clock, self._client = host.clock, client
        self._lock = threading.Lock()
        self._power_w: dict[str, float] = {}
        self._stamp_s: float | None = None
        self._period_s = INTERVAL_S
        self._arrived = threading.Event()
        self._closed = False
        client.attach(self._take)
        client.start()
        if not self._arrived.wait(FIRST_VALUE_TIMEOUT_S):
            self.close()
            raise Unavailable(
                f"jtop's service gave no value within {FIRST_VALUE_TIMEOUT_S:.0f} s",
                "sudo systemctl restart jtop",
            )
        names = set(self._power_w)
        total = next((group for group in TOTALS if set(group) <= names), None)
        if total is None:
            self.close()
            raise Unavailable(
                f"jtop knows the rails {', '.join(sorted(names)) or 'none'}, no total"
            )
        self._total = total
        self.domains: Sequence[Domain] = _domains(sorted(names), total)

    @classmethod
    def probe(cls, host: HostEnv) -> JtopSource:
        """Connect to the service and wait for its first value."""
        try:
            jtop = host.jtop()
        except ImportError as error:
            raise Unavailable(
                f"jetson-stats is not installed ({error})", "sudo pip3 install jetson-stats"
            ) from None
        try:
            return cls(host, jtop.jtop(interval=INTERVAL_S))
        except (jtop.JtopException, OSError) as error:
            text = " ".join(str(error).split())
            raise Unavailable(
                f"jtop: {text}",
                "the user must be in the group jtop, and client and service of one version",
            ) from None

    def _take(self, client: Any) -> None:
        """Called by jtop's thread at each update."""
        power = client.power
        rails = {name: rail for name, rail in power["rail"].items() if rail.get("online", True)}
        # jtop moves the total out of the rails and gives it a name; without a name it is jtop's
        # own sum.
        if "name" in power["tot"]:
            rails[power["tot"]["name"]] = power["tot"]
        now_s = self._clock()
        with self._lock:
            if self._stamp_s is not None:
                self._period_s += 0.2 * (now_s - self._stamp_s - self._period_s)
            self._power_w = {name: rail["power"] / 1e3 for name, rail in rails.items()}
            self._stamp_s = now_s
        self._arrived.set()

    def read(self) -> Reading:
        """Watts of the rails and of the module, as of the last update."""
        with self._lock:
            watts, stamp_s, period_s = dict(self._power_w), self._stamp_s, self._period_s
        age_s = self._clock() - (stamp_s or 0.0)
        try:
            self._client.ok(spin=True)  # raises what ended its thread, of whatever type
        except Exception as error:
            raise SourceLost(f"jtop's client stopped: {type(error).__name__}: {error}") from None
        if stamp_s is None or age_s > LOST_AFTER_S:
            raise SourceLost(f"jtop's last value is {age_s:.0f} s old")
        if age_s > max(STALE_AFTER_S, 5 * period_s):
            raise SourceError(f"jtop's last value is {age_s:.1f} s old")
        known = {domain.id for domain in self.domains}
        power_w = {
            f"jtop:{name}": value for name, value in watts.items() if f"jtop:{name}" in known
        }
        if len(self._total) > 1 and set(self._total) <= set(watts):
            power_w[TOTAL] = sum(watts[name] for name in self._total)
        if not power_w:
            raise SourceError("jtop gave no rail that was there at the start")
        return Reading(stamp_s, power_w=power_w)

    def close(self) -> None:
        """Stop listening. The client's thread ends with its next update."""
        if self._closed:
            return
        self._closed = True
        self._client.detach(self._take)
        self._client.close()


def _domains(names: Sequence[str], total: Sequence[str]) -> tuple[Domain, ...]:
    scope = Scope.PLATFORM if tuple(total) == ("VIN",) else Scope.MODULE
    top = f"jtop:{total[0]}" if len(total) == 1 else TOTAL
    found = []
    if len(total) > 1:
        found.append(
            Domain(TOTAL, " + ".join(total), scope, Provenance.SAMPLED, "jtop", INTERVAL_S, 0.05)
        )
    for name in names:
        key = f"jtop:{name}"
        inside = INSIDE.get(name)
        parent = None if key == top else f"jtop:{inside}" if inside in names else top
        found.append(
            Domain(
                key,
                name,
                scope if key == top else Scope.RAIL,
                Provenance.SAMPLED,
                "jtop",
                INTERVAL_S,
                0.05,
                parent,
            )
        )
    return tuple(found)
