"""Signs of life: who stands still is found soon, and nobody else is blamed."""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed import HashStore

from lightning_edge.errors import TransportError
from lightning_edge.train import heartbeat
from lightning_edge.train.heartbeat import Heartbeat, join, silent_s
from lightning_edge.train.transport import Channel, Message
from tests.train.link import link

pytestmark = pytest.mark.thorough

SOON_S = 10.0  # what is 4 s on an idle machine, and no timeout of 30 s


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> HashStore:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    return HashStore()


@pytest.fixture
def lost() -> list[tuple[int, int, float | None]]:
    return []


@pytest.fixture
def ranks(store: HashStore, lost: list[tuple[int, int, float | None]]) -> Iterator[list[Heartbeat]]:
    """Three ranks in this process; `lost` gets (who says so, who is lost, seconds of silence)."""
    made = [join(store, rank, 3) for rank in range(3)]
    for rank, one in enumerate(made):
        one.start(lambda peer, age_s, rank=rank: lost.append((rank, peer, age_s)))
    yield made
    for one in made:
        one.close()


def eventually(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline_s, "it never happened"
        time.sleep(0.01)


def test_all_hear_of_all(ranks: list[Heartbeat], lost: list[object]) -> None:
    for me, one in enumerate(ranks):
        for other in {0, 1, 2} - {me}:
            eventually(lambda one=one, other=other: one.age_s(other) is not None)
    assert lost == []


def test_who_takes_leave_is_not_lost(ranks: list[Heartbeat], lost: list[object]) -> None:
    eventually(lambda: ranks[0].age_s(2) is not None and ranks[2].age_s(0) is not None)
    ranks[2].close()
    eventually(lambda: ranks[0].age_s(2) is None)
    ranks[0].close()
    eventually(lambda: ranks[1].age_s(0) is None)
    assert lost == []


def test_a_connection_that_ends_without_farewell_is_a_loss(
    ranks: list[Heartbeat], lost: list[object]
) -> None:
    eventually(lambda: ranks[0].age_s(2) is not None)
    ranks[2]._hub.shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined]
    eventually(lambda: {(0, 2, None), (1, 2, None), (2, 0, None)} <= set(lost))


def test_silence_is_a_loss_told_once_and_to_all(
    ranks: list[Heartbeat],
    lost: list[tuple[int, int, float | None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    eventually(lambda: ranks[0].age_s(2) is not None)
    ranks[0]._silent_s = ranks[1]._silent_s = 0.7
    monkeypatch.setattr(ranks[2], "_beat", lambda sign: None)
    eventually(lambda: {entry[:2] for entry in lost} >= {(0, 2), (1, 2)})
    time.sleep(3 * heartbeat.PERIOD_S)
    assert len([entry for entry in lost if entry[1] == 2]) == 2
    assert all(age_s is not None and age_s > 0.7 for _, rank, age_s in lost if rank == 2)


def test_who_stood_still_itself_blames_nobody(
    ranks: list[Heartbeat], lost: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after SIGCONT, or when a laptop wakes up: all the others seem silent then."""
    eventually(lambda: all(ranks[0].age_s(rank) is not None for rank in (1, 2)))
    for one in ranks:
        one._silent_s = 2.0
    seen = []

    def stand_still(sign: bytes) -> None:
        if not seen:
            seen.append(sign)
            time.sleep(3.0)

    monkeypatch.setattr(ranks[0], "_beat", stand_still)
    eventually(lambda: seen)
    monkeypatch.undo()
    eventually(lambda: ranks[0].stood_still_s > 2.0)
    assert all((ranks[0].age_s(rank) or 9.0) < 2.0 for rank in (1, 2))
    assert [entry for entry in lost if entry[0] == 0] == []


def test_rank_0_cannot_be_reached(store: HashStore, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    store.set("heartbeat", f"{port} {'00' * 16}")
    one = join(store, 1, 2)
    one.start(lambda *_: None)
    assert one.age_s(0) is None
    one.close()
    assert "No signs of life will be exchanged" in caplog.text


@settings(max_examples=30)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4))
def test_rubbish_is_not_let_in(rubbish: list[bytes]) -> None:
    store = HashStore()
    hub = join(store, 0, 2)
    lost: list[object] = []
    hub.start(lambda *entry: lost.append(entry))
    port = int(store.get("heartbeat").split()[0])
    strangers = [socket.create_connection(("127.0.0.1", port)) for _ in rubbish]
    try:
        for stranger, data in zip(strangers, rubbish, strict=True):
            stranger.sendall(data)
            if len(data) >= 20:
                stranger.settimeout(20.0)
                with suppress(ConnectionResetError):
                    assert stranger.recv(1) == b""  # hung up
        assert hub.age_s(1) is None
        assert lost == []
    finally:
        hub.close()
        for stranger in strangers:
            stranger.close()


def test_strangers_do_not_pile_up(store: HashStore) -> None:
    hub = join(store, 0, 2)
    hub.start(lambda *_: None)
    port, token = store.get("heartbeat").decode().split()
    strangers = [socket.create_connection(("127.0.0.1", int(port))) for _ in range(40)]
    known = socket.create_connection(("127.0.0.1", int(port)))
    known.sendall(struct.pack("!16sI", bytes.fromhex(token), 1))
    eventually(lambda: hub.age_s(1) is not None)
    assert len(hub._strangers) <= heartbeat.STRANGERS  # type: ignore[attr-defined]
    hub.close()
    for stranger in (*strangers, known):
        stranger.close()


@pytest.mark.parametrize("text", ["soon", "-3", "0.5", "nan"])
def test_patience_has_to_be_possible(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(heartbeat.VARIABLE, text)
    with pytest.raises(TransportError, match=f"{heartbeat.VARIABLE}='{text}' must be a number"):
        silent_s()
    monkeypatch.setenv(heartbeat.VARIABLE, "inf")
    assert silent_s() == float("inf")


def stop_one(rank: int, world_size: int, stopped: int, how: str) -> tuple[str, str, float]:
    """One rank is stopped while the others wait for it, in one way or another."""
    seconds = 0.0
    try:
        with link(timeout_s=30.0) as transport:
            for peer in transport.peers:
                transport.open(peer, Channel.FORWARD, 1)
            pids = transport.all_gather(os.getpid())
            killer = (stopped + 1) % world_size
            # Nobody may be stopped while somebody else still waits for it here.
            if rank == killer:
                for peer in transport.peers:
                    transport.receive(peer, Channel.FORWARD, "its word that it is ready")
            else:
                transport.send(killer, Channel.FORWARD, Message({}, {}), "a word")
            start_s = time.monotonic()
            try:
                if rank == killer:
                    os.kill(pids[stopped], signal.SIGSTOP)
                if rank == stopped:
                    transport.receive(killer, Channel.FORWARD, "what never comes")
                if how == "receive":
                    transport.receive(stopped, Channel.FORWARD, "micro-batch 3's activations")
                transport.barrier("epoch 1", timeout=timedelta(seconds=30))
            finally:
                seconds = time.monotonic() - start_s
                if rank == killer:
                    time.sleep(3.0)  # the third one is to find it out by itself
                    os.kill(pids[stopped], signal.SIGCONT)
    except TransportError as error:
        return type(error).__name__, str(error), seconds
    return "", "", 0.0


@pytest.mark.multiproc
@pytest.mark.parametrize(("stopped", "how"), [(2, "receive"), (0, "barrier")])
def test_a_stopped_device_is_known_long_before_the_timeout(pool, stopped: int, how: str) -> None:
    found = pool.run(stop_one, 3, stopped, how, timeout=60)
    name = ("rank 0 (orin)", "", "rank 2 (pi)")[stopped]
    for rank, (kind, text, seconds) in enumerate(found):
        assert kind == "PeerError", text
        if rank == stopped:
            assert re.match(
                rf"{re.escape(name)} (stood still for|failed first: no sign of life)", text
            ), text
        else:
            assert text.startswith(f"{name} failed first: no sign of life for ")
            assert 0.0 < seconds < SOON_S
    if how == "receive":
        assert any("waited for micro-batch 3's activations" in text for _, text, _ in found)
