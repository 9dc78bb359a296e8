"""A guest's side of a meeting: reach the host, be greeted, wait for the start."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning_edge.app.agent import Place
from lightning_edge.app.cluster.wire import Wire, WireError, greet
from lightning_edge.app.failure import CommandError

if TYPE_CHECKING:
    from lightning_edge.app.cluster.meeting import Meeting, Peer

__all__: list[str] = []

REACH_S = 3.0  # for one address to answer
MOST_ADDRESSES = 16
SILENT_S = 20.0  # until a host that says nothing counts as gone


def visit(meeting: Meeting, host: Peer) -> Place | None:
    """Go to the host and stay until the start; None if it has to be tried again.

    Raises:
        CommandError: The host has turned this device away.
    """
    wire = _reach(meeting, host)
    if wire is None:
        return None
    settings = meeting.settings
    try:
        greet(wire, settings.secret, settings.run, meeting.about())
        return _stay(meeting, host, wire)
    except WireError as error:
        meeting.tried = f"{wire.peer}:{host.port}: {error}"
        meeting.say(f"the host {host.name} at {meeting.tried}; trying again")
        return None
    finally:
        wire.close()


def invite(meeting: Meeting, peer: Peer, me: Peer) -> None:
    """Tell a device where this host is; it need not work."""
    for ip in peer.ips:
        with contextlib.suppress(OSError, WireError):
            wire = Wire(socket.create_connection((ip, peer.port), REACH_S))
            try:
                settings = meeting.settings
                greet(wire, settings.secret, settings.run, {"invite": as_mapping(me)})
                return
            finally:
                wire.close()


def as_mapping(peer: Peer) -> dict[str, Any]:
    """A peer, for a message."""
    return {"key": peer.key, "name": peer.name, "ips": list(peer.ips), "port": peer.port}


def peer_of(mapping: Mapping[str, Any]) -> Peer:
    """The inverse of `as_mapping`.

    Raises:
        WireError: It is none.
    """
    from lightning_edge.app.cluster.meeting import Peer

    try:
        ips = tuple(str(ipaddress.ip_address(ip)) for ip in mapping["ips"][:MOST_ADDRESSES])
        port = _port(mapping["port"])
        return Peer(str(mapping["key"]), str(mapping["name"]), ips, port)
    except (KeyError, TypeError, ValueError):
        raise WireError("it speaks something else") from None


def _reach(meeting: Meeting, host: Peer) -> Wire | None:
    tried = []
    for ip in host.ips:
        try:
            return Wire(socket.create_connection((ip, host.port), REACH_S))
        except ConnectionRefusedError:
            tried.append(f"{ip}:{host.port} is there and refuses: nothing listens, or a firewall")
        except TimeoutError:
            tried.append(f"{ip}:{host.port} does not answer: off, wrong address, or a firewall")
        except OSError as error:
            tried.append(f"{ip}:{host.port} cannot be reached ({error.strerror})")
    meeting.tried = "; ".join(tried)
    meeting.say(f"waiting for the host {host.name}: {meeting.tried}")
    return None


def _stay(meeting: Meeting, host: Peer, wire: Wire) -> Place | None:
    settings = meeting.settings
    meeting.say(f"with the host {host.name} ({wire.peer}:{host.port})", now=True)
    heard_s = time.monotonic()
    while meeting.left_s() > 0:
        meeting.send_along(host)
        meeting.read_invitations()
        message = wire.receive(0.2)
        if message is None:
            if time.monotonic() - heard_s > SILENT_S:
                raise WireError(f"it said nothing for {SILENT_S:.0f} s")
            continue
        heard_s = time.monotonic()
        if "here" in message:
            wire.send({"peers": [as_mapping(peer) for peer in list(meeting.peers.values())]})
            meeting.say(f"here: {message['here']}; {message.get('devices')} are wanted")
        elif "refused" in message:
            reason = message["refused"]
            raise CommandError(f"the host {host.name} turned this device away: {reason}")
        elif "moved" in message:
            meeting.hear_of(peer_of(message["moved"]))
            return None
        elif "start" in message:
            place = _place(message["start"], settings.processes, wire)
            wire.send({"ready": True})
            return place
    return None


def _place(start: Mapping[str, Any], processes: int, wire: Wire) -> Place:
    try:
        index, devices = start["index"], start["devices"]
        if type(index) is not int or type(devices) is not int or not 0 < index < devices:
            raise ValueError("no place")
        return Place(
            run_id=str(start["run_id"]),
            index=index,
            devices=devices,
            processes=processes,
            host=wire.peer,
            port=_port(start["port"]),
            own=wire.own,
        )
    except (KeyError, TypeError, ValueError):
        raise WireError("it speaks something else") from None


def _port(said: object) -> int:
    if type(said) is not int or not 0 < said < 1 << 16:
        raise ValueError(f"no port: {said}")
    return said
