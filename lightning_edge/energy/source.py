"""What a source of energy readings is, and how it says that it is not there.

A source of one's own is a class with this shape, named in the entry-point group
``lightning_edge.energy_sources`` or handed to ``EnergyMeter(sources=[...])``::

    class ShellyPlug:
        kind = "shelly"

        @classmethod
        def probe(cls, host):
            watts = ask_the_plug()  # a real reading, not "the library imports"
            if watts is None:
                raise Unavailable("the plug at 192.168.1.20 does not answer", "switch it on")
            return cls(host)

        def __init__(self, host):
            self._host = host
            plug = Domain("shelly:desk", "desk plug", Scope.PLATFORM, Provenance.EXTERNAL, "shelly")
            self.domains = (plug,)

        def read(self):
            return Reading(self._host.clock(), power_w={"shelly:desk": ask_the_plug()})

        def close(self): ...
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

from lightning_edge.energy.domain import Domain, Reading
from lightning_edge.energy.host import HostEnv
from lightning_edge.errors import EnergyError

__all__: list[str] = []


class Unavailable(EnergyError):  # noqa: N818 - reads as what it is
    """A source cannot be used on this machine.

    Args:
        reason: What was tried and what was found.
        remedy: What the user can do about it; empty when nothing can be done.
    """

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(f"{reason}. {remedy}" if remedy else reason)
        self.reason = reason
        self.remedy = remedy


class SourceError(EnergyError):
    """A reading failed; the next one may succeed."""


class SourceLost(EnergyError):  # noqa: N818 - reads as what it is
    """The source is gone and will not come back in this run."""


@runtime_checkable
class PowerSource(Protocol):
    """Reads the energy or power of some domains of this host.

    Only one thread reads a source at a time.
    """

    kind: ClassVar[str]
    """Short name, by which users ask for the source."""

    @property
    def domains(self) -> Sequence[Domain]:
        """The domains that `read` may return; an attribute will do."""
        ...

    @classmethod
    def probe(cls, host: HostEnv) -> PowerSource:
        """Take one real reading and return the source.

        Raises:
            Unavailable: If this machine has nothing to read, with the reason and the remedy.
        """
        ...

    def read(self) -> Reading:
        """Read all domains now.

        Raises:
            SourceError: If nothing could be read this time.
            SourceLost: If nothing will be read any more.
        """
        ...

    def close(self) -> None:
        """Give back files and handles. May be called twice."""
        ...
