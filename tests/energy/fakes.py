"""Sources whose truth the test knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from lightning_edge.energy import Domain, HostEnv, Provenance, Reading, Scope


class FakeSource:
    """Gives what a function says, or raises it.

    Args:
        clock: Monotonic seconds.
        domains: Its domains.
        answer: Returns joules (counters) or watts (others) per domain id, or an error to raise.
    """

    kind: ClassVar[str] = "fake"

    def __init__(
        self,
        clock: Callable[[], float],
        domains: Sequence[Domain],
        answer: Callable[[], Mapping[str, float] | Exception],
    ) -> None:
        self.domains = tuple(domains)
        self.closed = False
        self.reads = 0
        self.now_s = 0.0
        self._clock, self._answer = clock, answer

    @classmethod
    def probe(cls, host: HostEnv) -> FakeSource:
        constant = domain("fake:all", scope=Scope.PLATFORM)
        return cls(host.clock, [constant], lambda: {"fake:all": 10.0 * host.clock()})

    def read(self) -> Reading:
        self.reads += 1
        self.now_s = self._clock()
        values = self._answer()
        if isinstance(values, Exception):
            raise values
        counters = {d.id for d in self.domains if d.provenance is Provenance.COUNTER}
        return Reading(
            self.now_s,
            energy_j={k: v for k, v in values.items() if k in counters},
            power_w={k: v for k, v in values.items() if k not in counters},
        )

    def close(self) -> None:
        self.closed = True


def domain(
    key: str,
    *,
    scope: Scope = Scope.PACKAGE,
    provenance: Provenance = Provenance.COUNTER,
    parent: str | None = None,
    update_period_s: float = 0.001,
) -> Domain:
    return Domain(
        key, key, scope, provenance, "fake", update_period_s=update_period_s, parent=parent
    )


def steady(clock: Callable[[], float], watts: Mapping[str, float]) -> FakeSource:
    """Counters that grow by so many watts."""

    def answer() -> Mapping[str, float]:
        return {key: value * source.now_s for key, value in watts.items()}

    source = FakeSource(clock, [domain(key) for key in watts], answer)
    return source
