"""Devices come together: whoever is the host waits for all, then tells each its place.

static    the device that has the address cluster.host is the host, all others go there
lan       devices hear of each other (lan.py); the one with the smallest key is the host. Who
          learns of a smaller one goes there and sends its guests along; a host also invites
          devices that it hears of, as hearing may work one way only
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from lightning_edge import __version__
from lightning_edge.app.agent import Place
from lightning_edge.app.cluster import addresses, visit
from lightning_edge.app.cluster.reception import Guest, Reception
from lightning_edge.app.cluster.wire import WireError
from lightning_edge.app.failure import CommandError
from lightning_edge.app.folder import new_run_id

__all__: list[str] = []

SAY_S = 5.0  # between two lines about who is here
PAUSE_S = 0.1
AWAY_S = 10.0  # until a host that could not be reached is tried again
READY_S = 5.0
MOST_PEERS = 256  # that are remembered, whoever tells of more


@dataclass(frozen=True)
class Settings:
    """What this device wants.

    Attributes:
        run: Name of the run; only devices with the same one meet.
        name: This device's.
        devices: How many are to take part, this one included.
        processes: On this device.
        port: Where the host listens; the one after it is for the ranks' store.
        wait_s: Longest wait for all to come.
        secret: Shared by the devices of a pool.
        rank: This device's place, if somebody else has given the ranks.
    """

    run: str
    name: str
    devices: int
    processes: int
    port: int
    wait_s: float
    secret: str
    rank: int | None = None


@dataclass(frozen=True, order=True)
class Peer:
    """Another device that was heard of.

    Attributes:
        key: Smallest of all: the host.
        name: What it is called.
        ips: Where it may be reached.
        port: There.
    """

    key: str
    name: str
    ips: tuple[str, ...]
    port: int


class Meeting:
    """One device's part in coming together.

    Args:
        settings: What it wants.
        own: Its addresses.
        host: Where the host is, if that is known beforehand.
    """

    def __init__(
        self, settings: Settings, own: list[addresses.Address], host: str | None = None
    ) -> None:
        self.settings, self.own, self._fixed = settings, own, host
        self.key = secrets.token_hex(8)
        self.peers: dict[str, Peer] = {}
        self._away_s: dict[str, float] = {}  # peers that could not be reached, until when
        self._begin_s = self._said_s = time.monotonic()
        self.tried = ""
        self.reception: Reception | None = None
        if host is None:
            self.reception = self._listen(fallback=True)
        elif settings.rank is not None and settings.rank > 0:
            pass
        elif addresses.resolve(host, settings.port) in {address.ip for address in own}:
            self.reception = self._listen(fallback=False)

    def __enter__(self) -> Meeting:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening."""
        if self.reception is not None:
            self.reception.close()
            self.reception = None

    def hear_of(self, peer: Peer) -> None:
        """Take note of another device."""
        full = len(self.peers) >= MOST_PEERS and peer.key not in self.peers
        if peer.key != self.key and not full:
            self.peers[peer.key] = peer

    def hold(self) -> Place:
        """Wait until all have come, and return this device's place.

        Raises:
            CommandError: They have not come in time, or do not fit together.
        """
        try:
            while True:
                host = self._host()
                place = self._receive() if host is None else self._go(host)
                if place is not None:
                    return place
                self._check_patience()
                time.sleep(PAUSE_S)
        finally:
            self.close()

    def say(self, text: str, *, now: bool = False) -> None:
        """Tell the user how far things are, every few seconds."""
        time_s = time.monotonic()
        if now or time_s - self._said_s >= SAY_S:
            self._said_s = time_s
            waited_s = time_s - self._begin_s
            print(f"[{waited_s:3.0f} s] {text}", file=sys.stderr, flush=True)

    def about(self) -> dict[str, Any]:
        """What this device tells a host of itself."""
        settings = self.settings
        return {
            "name": settings.name,
            "processes": settings.processes,
            "devices": settings.devices,
            "version": __version__,
            "rank": settings.rank,
            "peers": [visit.as_mapping(peer) for peer in list(self.peers.values())],
        }

    def left_s(self) -> float:
        """Seconds until this device gives up."""
        return self.settings.wait_s - (time.monotonic() - self._begin_s)

    def _listen(self, fallback: bool) -> Reception | None:
        settings = self.settings
        try:
            return Reception(settings.port, settings.secret, settings.run, fallback)
        except OSError:
            return None  # another device on this machine is the host

    def _host(self) -> Peer | None:
        """Where to go; None if this device is the host."""
        if self._fixed is not None:
            if self.reception is not None:
                return None
            ip = addresses.resolve(self._fixed, self.settings.port)
            return Peer("", self._fixed, (ip,), self.settings.port)
        assert self.reception is not None
        self.read_invitations()
        now_s = time.monotonic()
        heard_of = [p for p in list(self.peers.values()) if self._away_s.get(p.key, 0.0) < now_s]
        best = min(heard_of, default=None)
        return best if best is not None and best.key < self.key else None

    def _receive(self) -> Place | None:
        """The host's part: who is here, who does not fit, and the start."""
        assert self.reception is not None
        fitting: list[Guest] = []
        for guest in self.reception.guests():
            reason = self._unfit(guest, len(fitting))
            if reason is None:
                fitting.append(guest)
            else:
                self.say(f"turned away {guest.name} ({guest.wire.peer}): {reason}", now=True)
                self.reception.dismiss({"refused": reason}, [guest])
        if 1 + len(fitting) == self.settings.devices:
            return self._begin(fitting)
        if time.monotonic() - self._said_s >= SAY_S:
            names = [f"{guest.name} ({guest.wire.peer})" for guest in fitting]
            here = ", ".join([f"{self.settings.name} (this device)", *names])
            self.reception.tell({"here": here, "devices": self.settings.devices})
            self._invite(fitting)
            missing = self.settings.devices - 1 - len(fitting)
            self.say(f"here: {here}; waiting for {missing} more, at {self._where()}")
            for turned_away in self.reception.turned_away:
                self.say(f"turned away {turned_away}", now=True)
            self.reception.turned_away.clear()
        return None

    def _unfit(self, guest: Guest, fitting: int) -> str | None:
        about, wanted = guest.about, self.settings.devices
        if about.get("version") != __version__:
            return f"lightning-edge {about.get('version')} there, {__version__} on the host"
        if about.get("devices") != wanted:
            return f"cluster.devices={about.get('devices')} there, {wanted} on the host"
        if fitting + 2 > wanted:
            return f"all {wanted} devices are here already (cluster.devices={wanted})"
        return None

    def _begin(self, guests: list[Guest]) -> Place:
        """All are here: give each its place."""
        assert self.reception is not None
        settings = self.settings
        run_id, port = new_run_id(), _free_port(settings.port + 1)
        ordered = sorted(guests, key=_order)
        for index, guest in enumerate(ordered, start=1):
            start = {"run_id": run_id, "index": index, "devices": settings.devices, "port": port}
            self.reception.tell({"start": start}, [guest])
        for guest in ordered:  # a connection closed too early may take the last message with it
            with contextlib.suppress(WireError):
                while "ready" not in (guest.wire.receive(READY_S) or {"ready": None}):
                    pass
        reached = [guest.wire.own for guest in ordered]
        own = max(set(reached), key=reached.count) if reached else "127.0.0.1"
        names = ", ".join([settings.name, *(guest.name for guest in ordered)])
        self.say(f"all {settings.devices} are here: {names}; run {run_id}", now=True)
        return Place(run_id, 0, settings.devices, settings.processes, own, port, own)

    def _go(self, host: Peer) -> Place | None:
        """A guest's part: come to the host, and wait there."""
        place = visit.visit(self, host)
        if place is None and self._fixed is None:
            self._away_s[host.key] = time.monotonic() + AWAY_S
        return place

    def read_invitations(self) -> None:
        """Hear of the hosts that asked this device to come."""
        for invitation in self.reception.invitations() if self.reception is not None else ():
            with contextlib.suppress(WireError):
                self.hear_of(visit.peer_of(invitation["invite"]))

    def send_along(self, host: Peer) -> None:
        """Tell guests that came here where the host is."""
        if self.reception is not None and self.reception.guests():
            self.reception.dismiss({"moved": visit.as_mapping(host)})

    def _invite(self, guests: list[Guest]) -> None:
        """Tell devices that do not seem to hear this one where it is."""
        assert self.reception is not None
        here = {guest.name for guest in guests}
        for guest in guests:
            for mapping in list(guest.about.get("peers") or ()):
                with contextlib.suppress(WireError):
                    self.hear_of(visit.peer_of(mapping))
        for peer in list(self.peers.values()):
            if self._fixed is None and peer.name not in here:
                ips = tuple(address.ip for address in addresses.reachable(self.own))
                me = Peer(self.key, self.settings.name, ips, self.reception.port)
                visit.invite(self, peer, me)

    def _where(self) -> str:
        assert self.reception is not None
        if self._fixed is not None:
            return f"{self._fixed}:{self.reception.port}"
        found = addresses.reachable(self.own)
        return ", ".join(f"{a.ip}:{self.reception.port} ({a.interface})" for a in found)

    def _check_patience(self) -> None:
        if self.left_s() > 0:
            return
        settings = self.settings
        waited = f"waited {settings.wait_s:.0f} s (cluster.wait_s)"
        if self.reception is None or self._host() is not None:
            tried = f": {self.tried}" if self.tried else ""
            raise CommandError(f"{waited} for the host{tried}")
        here = ", ".join([settings.name, *(guest.name for guest in self.reception.guests())])
        raise CommandError(
            f"{waited} for {settings.devices} devices, and only these came: {here}. Does each run"
            f" the same command with run.name={settings.run}? `lightning-edge doctor` on both says"
            f" what is in the way; with cluster=static cluster.host={self._where().split(':')[0]}"
            " they need not find each other by themselves"
        )


def _order(guest: Guest) -> tuple[int, str, str]:
    return int(guest.about.get("rank") or 0), guest.name, guest.wire.peer


def _free_port(wanted: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", wanted))
        except OSError:
            probe.bind(("", 0))
        return int(probe.getsockname()[1])
