"""Whatever comes from the network when devices meet: our errors, and nothing else."""

from __future__ import annotations

import json
import socket
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lightning_edge.app.cluster import visit
from lightning_edge.app.cluster.meeting import MOST_PEERS, Meeting, Peer
from lightning_edge.app.cluster.reception import Reception
from lightning_edge.app.cluster.wire import Wire, WireError, greet, receive_guest
from tests.app.test_meeting import OWN, free_port, pair
from tests.app.test_meeting import settings as wanted

KEYS = st.sampled_from(
    ["run", "nonce", "proof", "about", "invite", "name", "version", "devices", "processes", "rank"]
    + ["peers", "key", "ips", "port", "here", "moved", "start", "index", "run_id", "refused"]
)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    PLAIN | st.sampled_from(["127.0.0.1", "\x1b[2J", "\ud800", 1 << 70, 29610, float("inf")]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(KEYS, VALUES, max_size=8)
LINES = st.binary(max_size=80) | VALUES.map(lambda value: json.dumps(value).encode())


@settings(max_examples=60)
@given(st.lists(LINES, min_size=1, max_size=3))
@example([b"[" * 60_000])
@example([b'{"run": "\\u00e9"}'])
def test_any_bytes_are_no_guest(lines: list[bytes]) -> None:
    stranger, host = pair()
    try:
        stranger._socket.sendall(b"\n".join(lines) + b"\n")
        stranger._socket.shutdown(socket.SHUT_WR)
        with pytest.raises(WireError):
            receive_guest(host, "secret", "run")
    finally:
        stranger.close(), host.close()


@settings(max_examples=100)
@given(MAPPINGS)
@example({"key": "a", "name": "b", "ips": ["127.0.0.1"], "port": 1 << 17})
@example({"key": "a", "name": "b", "ips": ["x" * 70 + ".y"], "port": 80})
def test_any_mapping_is_a_peer_that_can_be_tried_or_none(mapping: dict[str, object]) -> None:
    try:
        peer = visit.peer_of(mapping)
    except WireError:
        return
    assert 0 < peer.port < 1 << 16
    assert all(socket.getaddrinfo(ip, peer.port, flags=socket.AI_NUMERICHOST) for ip in peer.ips)


@settings(max_examples=100)
@given(MAPPINGS | PLAIN)
def test_any_start_is_a_place_or_none(start: dict[str, object]) -> None:
    guest, host = pair()
    try:
        place = visit._place(start, 1, guest)
        assert 0 < place.index < place.devices
    except WireError:
        pass
    finally:
        guest.close(), host.close()


def _greeted(reception: Reception) -> int:
    with reception._lock:
        came = len(reception._guests) + len(reception._invitations)
    return came + len(reception.turned_away)


@settings(max_examples=25)
@given(st.lists(MAPPINGS, min_size=1, max_size=3), MAPPINGS)
@example([{"name": 3, "devices": "x", "rank": "y", "peers": 5}], {"peers": 5})
@example([{"name": "a", "version": "1", "devices": 3, "processes": 1, "peers": [5]}], {})
def test_a_host_goes_on_whatever_its_guests_say(abouts: list[dict], later: dict) -> None:
    """They know the secret; it is empty unless somebody has set one."""
    with Meeting(wanted("host", port=free_port()), OWN) as meeting:
        assert meeting.reception is not None
        wires = []
        for about in abouts:
            address = ("127.0.0.1", meeting.reception.port)
            wire = Wire(socket.create_connection(address))
            wires.append(wire)
            greet(wire, "s", "run", about)
            wire.send(later)
        reception, deadline_s = meeting.reception, time.monotonic() + 20.0
        while _greeted(reception) < len(abouts):
            assert time.monotonic() < deadline_s, "a guest was forgotten"
            time.sleep(0.002)
        for _ in range(2):
            assert meeting._receive() is None
            meeting.read_invitations()
        for wire in wires:
            wire.close()


def test_peers_do_not_pile_up() -> None:
    with Meeting(wanted("a", port=free_port()), OWN) as meeting:
        for number in range(2 * MOST_PEERS):
            meeting.hear_of(Peer(f"{number:x}", "pi", ("127.0.0.1",), 80))
        assert len(meeting.peers) == MOST_PEERS


def test_what_a_stranger_is_called_does_not_reach_the_terminal_as_it_is() -> None:
    guest, host = pair()
    guest.send({"name": "\x1b[2Jpi\ud800"})
    assert host.expect() == {"name": "?[2Jpi?"}
    guest.close(), host.close()
