"""Devices come together: here threads on loopback, each with a port of its own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from lightning_edge.app.agent import Place
from lightning_edge.app.cluster import meeting as meeting_module
from lightning_edge.app.cluster.addresses import Address
from lightning_edge.app.cluster.meeting import Meeting, Peer, Settings
from lightning_edge.app.cluster.wire import Wire, WireError, greet, receive_guest, tag
from lightning_edge.app.failure import CommandError

OWN = [Address("127.0.0.1", "lo", "loopback")]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def settings(name: str, **changes) -> Settings:
    base = Settings("run", name, devices=3, processes=1, port=0, wait_s=30, secret="s")
    return replace(base, **changes)


def together(*holds: Callable[[], Place]) -> list[Place | CommandError]:
    """Hold meetings at the same time."""
    found: list[Place | CommandError] = [CommandError("no end")] * len(holds)

    def hold(index: int) -> None:
        try:
            found[index] = holds[index]()
        except CommandError as error:
            found[index] = error

    threads = [threading.Thread(target=hold, args=(i,)) for i in range(len(holds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def static(name: str, port: int, **changes) -> Callable[[], Place]:
    return lambda: Meeting(settings(name, port=port, **changes), OWN, host="127.0.0.1").hold()


def test_devices_meet_at_a_known_address():
    port = free_port()
    places = together(*(static(name, port) for name in "abc"))
    assert len({place.run_id for place in places}) == 1
    assert sorted(place.index for place in places) == [0, 1, 2]
    assert {(place.devices, place.host, place.own) for place in places} == {
        (3, "127.0.0.1", "127.0.0.1")
    }
    assert len({place.port for place in places}) == 1


def test_ranks_that_somebody_gave_are_kept():
    port = free_port()
    places = together(*(static("same", port, rank=rank) for rank in range(3)))
    assert [place.index for place in places] == [0, 1, 2]


@pytest.mark.parametrize("knows", [{0: [1, 2], 1: [0], 2: []}, {0: [], 1: [0], 2: [1]}])
def test_devices_that_hear_of_each_other_one_way_only_meet(knows, monkeypatch):
    """Of a pair only one has heard of the other; of three, one has only heard of a guest."""
    monkeypatch.setattr(meeting_module, "SAY_S", 0.3)
    meetings = [Meeting(settings(name), OWN) for name in "abc"]
    peers = [Peer(m.key, m.settings.name, ("127.0.0.1",), m.reception.port) for m in meetings]
    for index, heard_of in knows.items():
        for other in heard_of:
            meetings[index].hear_of(peers[other])
    places = together(*(meeting.hold for meeting in meetings))
    assert sorted(place.index for place in places) == [0, 1, 2], places
    assert len({place.run_id for place in places}) == 1
    host = min(range(3), key=lambda index: peers[index].key)
    assert places[host].index == 0


def test_a_device_with_another_number_is_turned_away_in_one_sentence(capsys):
    port = free_port()
    right, wrong = together(static("a", port, wait_s=2), static("b", port, devices=2, wait_s=2))
    texts = {str(right), str(wrong)}
    assert any(
        text.startswith("the host 127.0.0.1 turned this device away: cluster.devices=")
        for text in texts
    )
    assert any("and only these came: " in text for text in texts)
    assert "turned away" in capsys.readouterr().err


def test_who_has_another_secret_never_gets_in():
    port = free_port()
    host, guest = together(
        lambda: Meeting(settings("a", port=port, devices=2, wait_s=4), OWN, "127.0.0.1").hold(),
        static("b", port, devices=2, secret="t", rank=1, wait_s=2),
    )
    assert "waited 4 s (cluster.wait_s) for 2 devices, and only these came: a" in str(host)
    assert "waited 2 s (cluster.wait_s) for the host: 127.0.0.1:" in str(guest)
    assert "another run: run.name or the secret (LIGHTNING_EDGE_SECRET) differs" in str(guest)


def test_a_host_that_is_not_there_is_named_with_what_was_tried():
    port = free_port()
    (error,) = together(static("b", port, rank=1, wait_s=1))
    assert str(error) == (
        f"waited 1 s (cluster.wait_s) for the host: 127.0.0.1:{port} is there and refuses:"
        " nothing listens, or a firewall"
    )


def pair() -> tuple[Wire, Wire]:
    left, right = socket.socketpair(socket.AF_UNIX)
    listener = socket.create_server(("127.0.0.1", 0))
    left.close(), right.close()
    one = socket.create_connection(listener.getsockname())
    other, _ = listener.accept()
    listener.close()
    return Wire(one), Wire(other)


def test_a_host_that_does_not_know_the_secret_is_not_believed():
    """It answers the greeting with the tag it has overheard, but cannot prove anything."""
    guest, host = pair()

    def pretend() -> None:
        host.expect()
        host.send({"nonce": "n", "proof": "0" * 64})

    thread = threading.Thread(target=pretend)
    thread.start()
    with pytest.raises(WireError, match="does not know this device's secret"):
        greet(guest, "secret", "run", {})
    thread.join()
    guest.close(), host.close()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"hello\n", "speaks something else"),
        (b"[]\n", "speaks something else"),
        (b"x" * 70_000, "too long a message"),
        (b"", "closed the connection"),
    ],
)
def test_a_host_survives_whatever_it_is_sent(said, reason):
    guest, host = pair()
    guest._socket.sendall(said)
    guest.close()
    with pytest.raises(WireError, match=reason):
        receive_guest(host, "secret", "run")
    host.close()


def test_announcements_of_runs_differ_by_name_and_by_secret():
    tags = {tag(secret, run) for secret in ("", "a") for run in ("x", "y")}
    assert len(tags) == 4
