"""When a device fails everybody stops soon, and knows which one it was and why."""

import os
import re
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch.distributed import TCPStore

from lightning_edge.errors import PeerError, TransportError, TransportTimeout
from lightning_edge.train.transport import Channel, Message, Transport
from tests.pool import Died, free_port
from tests.train.link import NAMES, link

pytestmark = [pytest.mark.thorough, pytest.mark.multiproc]

# Noticing takes milliseconds on an idle machine; the limit only tells it from the 20 s timeout.
SOON_S = 10.0


def wait_somehow(transport, how):
    """One of the ways of standing still for the others."""
    if how == "receive":
        return transport.receive(transport.peers[0], Channel.FORWARD, "micro-batch 3's activations")
    if how == "send":
        for _ in range(5):
            message = Message({}, {"x": torch.ones(1_000_000)})
            transport.send(
                transport.peers[0], Channel.FORWARD, message, "micro-batch 3's gradients"
            )
        return transport.flush()
    if how == "sum":
        return transport.all_reduce(range(transport.world_size), torch.ones(3)).wait()
    if how == "new group":
        return transport.all_reduce([transport.rank, transport.peers[0]], torch.ones(3)).wait()
    return transport.barrier("the end of epoch 3")


def fail(rank, world_size, ending, ways):
    """The last rank ends in some way while the others wait; tell what they saw and when."""
    error, start_s = None, time.monotonic()
    try:
        with link() as transport:
            for peer in transport.peers:
                transport.open(peer, Channel.FORWARD, 1)
            transport.all_reduce(range(world_size), torch.ones(3)).wait()
            transport.barrier("start")
            start_s = time.monotonic()
            if rank < world_size - 1:
                try:
                    wait_somehow(transport, ways[rank])
                except TransportError as first:
                    with pytest.raises(TransportError, match=re.escape(str(first))):
                        transport.barrier("after the failure")
                    raise
            time.sleep(0.3)
            if ending == "raises":
                raise ValueError("row 7 of the data is missing")
            if ending == "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if ending == "leaves":
                transport.close()
    except (TransportError, ValueError) as caught:
        error = caught
    return type(error).__name__, str(error), time.monotonic() - start_s


def check(results, words):
    for kind, text, seconds in results:
        assert kind == "PeerError"
        assert re.search(words, text), text
        assert seconds < SOON_S


@pytest.mark.parametrize(
    "ways", [("receive", "sum"), ("send", "new group"), ("barrier", "receive")], ids="-".join
)
def test_a_device_that_raises_ends_all_waits_with_its_words(pool, ways):
    *others, last = pool.run(fail, 3, "raises", ways)
    assert last[:2] == ("ValueError", "row 7 of the data is missing")
    words = r"^rank 2 \(pi\) failed first: ValueError: row 7 of the data is missing$"
    check(others, words)


@pytest.mark.parametrize("ways", [("receive", "sum"), ("send", "barrier")], ids="-".join)
def test_a_killed_process_ends_all_waits(pool, ways):
    *others, last = pool.run(fail, 3, "is killed", ways, may_die=[2])
    assert last == Died(-signal.SIGKILL)
    check(others, r"^rank 2 \(pi\) failed first: its connection to .* closed without a word")


def wait_in_vain(rank, world_size, how):
    try:
        with link(timeout_s=1.0) as transport:
            for peer in transport.peers:
                transport.open(peer, Channel.FORWARD, 1)
            transport.all_reduce(range(world_size), torch.ones(3)).wait()
            if rank == 0:
                wait_somehow(transport, how)
            time.sleep(3)
            transport.barrier("never reached by rank 0")
    except (TransportTimeout, PeerError) as error:
        return type(error).__name__, str(error)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("receive", "waiting for micro-batch 3's activations from rank 1 (laptop) for 1 s"),
        ("send", "waiting for room to send micro-batch 3's gradients from rank 1 (laptop) for 1 s"),
        ("sum", "waiting for the sum of 3 numbers from rank 1 (laptop) for 1 s"),
        ("barrier", "waiting for barrier 'the end of epoch 3' from rank 1 (laptop) for 1 s"),
    ],
)
def test_a_timeout_names_who_and_what_here_and_there(pool, how, words):
    here, there = pool.run(wait_in_vain, 2, how)
    alive = r"; the last sign of life of rank 1 \(laptop\) was [0-9.]+ s ago, so it runs: .*"
    for found, kind, start in (
        (here, "TransportTimeout", "rank 0 (orin) gave up"),
        (there, "PeerError", "rank 0 (orin) failed first: it gave up"),
    ):
        assert found[0] == kind
        assert re.fullmatch(re.escape(f"{start} {words}") + alive, found[1]), found[1]


def stop(rank, world_size):
    """A process that stands still (SIGSTOP, a machine asleep) keeps its connections."""
    try:
        with link(timeout_s=1.0) as transport:
            transport.open(1 - rank, Channel.FORWARD, 1)
            pid = transport.broadcast(os.getpid(), src=1)
            if rank == 1:
                transport.receive(0, Channel.FORWARD, timeout=timedelta(seconds=20))
            os.kill(pid, signal.SIGSTOP)
            try:
                transport.barrier("epoch 1")
            finally:
                os.kill(pid, signal.SIGCONT)
    except TransportError as error:
        return type(error).__name__, str(error)


def test_a_device_that_stands_still_is_a_timeout(pool):
    here, there = pool.run(stop, 2)
    assert here[0] == "TransportTimeout"
    assert "'epoch 1' from rank 1 (laptop) for 1 s" in here[1]
    assert there[0] == "PeerError"
    assert "rank 0 (orin) failed first: it gave up waiting for barrier 'epoch 1'" in there[1]


def come_alone(rank, world_size, group):
    if rank == 0 and not group:
        store = TCPStore("127.0.0.1", free_port(), is_master=True)
        with pytest.raises(TransportTimeout, match=r"rank 0 \(orin\) waited 0.5 s for all devices"):
            Transport(store, 0, world_size, timeout=timedelta(seconds=0.5), names=NAMES)
    elif group:
        with link(timeout_s=1.0) as transport:
            if rank == 0:
                words = r"waited 1 s for the group of ranks 0, 1; missing: rank 1 \(laptop\)$"
                with pytest.raises(TransportTimeout, match=words):
                    transport.all_reduce([1, 0], torch.ones(3))
            transport.barrier("together again", timeout=timedelta(seconds=10))


@pytest.mark.parametrize("group", [False, True])
def test_devices_that_do_not_come_are_named(pool, group):
    pool.run(come_alone, 2, group)


def kill_during_large_send(rank, world_size):
    try:
        with link() as transport:
            transport.open(1 - rank, Channel.FORWARD, 2)
            transport.barrier("start")
            if rank == 1:
                transport.receive(0, Channel.FORWARD)
                os.kill(os.getpid(), signal.SIGKILL)
            for _ in range(6):
                message = Message({}, {"x": torch.zeros(8_000_000)})
                transport.send(1, Channel.FORWARD, message)
            transport.flush()
    except TransportError as error:
        return type(error).__name__, str(error), 0.0


def test_a_receiver_killed_during_a_large_message_is_noticed(pool):
    other, last = pool.run(kill_during_large_send, 2, may_die=[1])
    assert last == Died(-signal.SIGKILL)
    check([other], r"^rank 1 \(laptop\) failed first")


def die_in_the_middle(rank, world_size, how):
    """The last rank dies when a part of a message has been read; gloo itself would not wake up."""
    try:
        with link(timeout_s=60.0) as transport:
            transport.open(1 - rank, Channel.FORWARD, 2)
            large = Message({}, {"x": torch.zeros(10_000_000)})
            for _ in range(3):  # then large messages begin to travel before anybody asks for them
                if rank == (1 if how == "receive" else 0):
                    transport.send(1 - rank, Channel.FORWARD, large)
                else:
                    transport.receive(1 - rank, Channel.FORWARD)
            transport.barrier("start")
            if rank == 1 and how == "receive":
                transport.send(0, Channel.FORWARD, large)
                os.kill(os.getpid(), signal.SIGKILL)
            if rank == 1:  # what comes is not read for a second
                later = f"sleep 1; kill -9 {os.getpid()}"
                subprocess.Popen(["sh", "-c", later], start_new_session=True)
                os.kill(os.getpid(), signal.SIGSTOP)
            if how == "receive":
                transport.receive(1, Channel.FORWARD, "what comes in part only")
            if how == "sum":
                transport.all_reduce([0, 1], torch.ones(60_000_000)).wait()
            for _ in range(6):
                transport.send(1, Channel.FORWARD, large, "what leaves in part only")
            transport.flush()
    except TransportError as error:
        return type(error).__name__, str(error), 0.0


@pytest.mark.parametrize("how", ["receive", "send", "sum"])
def test_a_death_in_the_middle_of_a_message_is_noticed(pool, how):
    start_s = time.monotonic()
    other, last = pool.run(die_in_the_middle, 2, how, may_die=[1], timeout=40)
    assert last == Died(-signal.SIGKILL)
    check([other], r"^rank 1 \(laptop\) failed first")
    assert time.monotonic() - start_s < 30.0, "only its timeout has ended the wait"


# ---- the end of the interpreter ----

OTHERS = ("raise", "abort", "nothing")
SCRIPT = """
import sys, types
package = sys.modules["lightning_edge"] = types.ModuleType("lightning_edge")
package.__path__ = ["lightning_edge"]  # importing Lightning would take most of the time
from datetime import timedelta
import torch
from lightning_edge.train.rendezvous import connect
from lightning_edge.train.transport import Channel, Message, Transport

store, rank, world_size = connect(timedelta(seconds=20))
transport = Transport(store, rank, world_size, timeout=timedelta(seconds=20))
transport.open(1 - rank, Channel.FORWARD, 3)
transport.send(1 - rank, Channel.FORWARD, Message({}, {"x": torch.ones(100)}))
reduction = transport.all_reduce([0, 1], torch.ones(10))
ending = sys.argv[1]
if ending != "nothing":
    reduction.wait()
if ending == "close":
    transport.close()
if ending == "raise" and rank == 1:
    raise ValueError("row 7 is missing")
if ending in ("raise", "abort"):
    try:
        if ending == "abort" and rank == 1:
            transport.abort("row 7 is missing")
        else:
            transport.receive(1 - rank, Channel.FORWARD)
            transport.receive(1 - rank, Channel.FORWARD)
    except Exception as error:
        transport.abort(error)
        print(error)
"""


@pytest.mark.parametrize(
    "ending", ["close", *(pytest.param(e, marks=pytest.mark.slow) for e in OTHERS)]
)
def test_the_interpreter_ends_cleanly(ending):
    port, processes = str(free_port()), []
    for rank in range(2):
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT, ending],
                env={**os.environ, **place, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
                cwd=Path(__file__).parents[2],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        (out, err), (_, other_err) = [process.communicate(timeout=50) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if ending == "raise":
        assert "rank 1 failed first: ValueError: row 7 is missing" in out
        assert other_err.rstrip().endswith("ValueError: row 7 is missing")
        assert [process.returncode for process in processes] == [0, 1]
    else:
        assert [process.returncode for process in processes] == [0, 0]
        assert other_err == ""
    assert err == ""
    if ending == "abort":
        assert "rank 1 failed first: row 7 is missing" in out
