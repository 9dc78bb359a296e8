"""The transport between real processes: exact values, order, posting ahead, nothing that grows."""

import logging
import threading
import time
from datetime import timedelta

import psutil
import pytest
import torch
from torch.distributed import HashStore

from lightning_edge.errors import DataError, TransportError
from lightning_edge.train.rendezvous import connect
from lightning_edge.train.transport import Channel, Message, Transport
from tests.pool import WorkerError
from tests.train.link import link

pytestmark = pytest.mark.multiproc

SIZES = [1, 30_000, 200_000, 3, 1_000_000, 500, 0, 16_000, 300_000, 2]


def values(sender, index, size):
    return torch.randn(size, generator=torch.Generator().manual_seed(1000 * sender + index))


def swap(transport, peer, channel, index, size):
    """Send one message, receive one, and compare it."""
    message = Message({"index": index}, {"x": values(transport.rank, index, size)})
    transport.send(peer, channel, message)
    message = transport.receive(peer, channel)
    assert message.meta == {"index": index}
    assert torch.equal(message.tensors["x"], values(peer, index, size))


# ---- messages ----


def exchange(rank, world_size, window):
    with link() as transport:
        for peer in transport.peers:
            transport.open(peer, Channel.FORWARD, window)
        for index, size in enumerate(SIZES):
            for peer in transport.peers:
                message = Message({"index": index}, {"x": values(rank, index, size)})
                transport.send(peer, Channel.FORWARD, message)
            for peer in transport.peers:
                message = transport.receive(peer, Channel.FORWARD)
                assert message.meta == {"index": index}
                assert torch.equal(message.tensors["x"], values(peer, index, size))
        assert not torch.distributed.is_initialized()
        peers = transport.counters.peers
        return {p: (peers[p].bytes_sent, peers[p].bytes_received) for p in transport.peers}


@pytest.mark.parametrize(("world_size", "window"), [(2, 1), (3, 3)])
def test_messages_of_changing_sizes_arrive_exactly(pool, world_size, window):
    counted = pool.run(exchange, world_size, window)
    for rank, peers in enumerate(counted):
        for peer, (sent, _) in peers.items():
            assert sent == counted[peer][rank][1]
            assert sent > 4 * sum(SIZES)


def run_ahead(rank, world_size, window):
    with link() as transport:
        transport.open(1 - rank, Channel.FORWARD, window)
        sizes = [10, 500_000, 20, 700_000, 30][: window + 1]
        if rank == 0:
            for index, size in enumerate(sizes):
                transport.send(1, Channel.FORWARD, Message({}, {"x": values(0, index, size)}))
            transport.barrier("all sent, none asked for")
        else:
            transport.barrier("all sent, none asked for")
            for index, size in enumerate(sizes):
                received = transport.receive(0, Channel.FORWARD).tensors["x"]
                assert torch.equal(received, values(0, index, size))


@pytest.mark.parametrize("window", [1, 4])
def test_window_plus_one_sends_never_wait_for_the_receiver(pool, window):
    pool.run(run_ahead, 2, window)


def have_it_before_asking(rank, world_size):
    with link() as transport:
        transport.open(1 - rank, Channel.FORWARD, 1)
        for index in range(5):
            if rank == 0:
                message = Message({}, {"x": values(0, index, 500_000)})
                transport.send(1, Channel.FORWARD, message)
            # The first message is longer than the first buffer, and comes when it is asked for.
            if rank == 1 and index == 0:
                transport.receive(0, Channel.FORWARD)
            if rank == 0:
                transport.flush()  # returns once gloo has moved the bytes into a posted buffer
            transport.barrier("it has arrived")
            if rank == 1 and index > 0:
                received = transport.receive(0, Channel.FORWARD).tensors["x"]
                assert torch.equal(received, values(0, index, 500_000))


def test_large_messages_arrive_before_they_are_asked_for(pool):
    pool.run(have_it_before_asking, 2)


def widen(rank, world_size):
    with link() as transport:
        for step, window in enumerate([1, 3, 2, 5]):
            transport.open(1 - rank, Channel.FORWARD, window)
            for index in range(6):
                swap(transport, 1 - rank, Channel.FORWARD, index, 40_000 * (step + 1) * (index % 3))


def test_windows_may_grow_between_steps(pool):
    pool.run(widen, 2)


def disagree_about_windows(rank, world_size):
    with link(timeout_s=5) as transport:
        transport.open(1 - rank, Channel.FORWARD, 3 if rank == 0 else 2)
        if rank == 0:
            transport.send(1, Channel.FORWARD, Message())
            transport.barrier("the end")
        else:
            with pytest.raises(TransportError, match="orin.*window 3, here it is 2: .*alike"):
                transport.receive(0, Channel.FORWARD)
            transport.barrier("the end")


def test_windows_that_differ_are_refused(pool):
    pool.run(disagree_about_windows, 2)


def use_all_channels(rank, world_size):
    with link() as transport:
        channels = (Channel.DATA, Channel.FORWARD, Channel.RECORD, Channel.BACKWARD)
        for channel in channels:
            transport.open(1 - rank, channel, 2)
        if rank == 0:
            for channel in channels:
                size = 100_000 if channel is Channel.DATA else 10
                transport.send(1, channel, Message({"from": channel.name}, {"x": torch.ones(size)}))
            return None
        return [transport.receive(0, channel).meta["from"] for channel in reversed(channels)]


def test_channels_do_not_wait_for_each_other(pool):
    assert pool.run(use_all_channels, 2)[1] == ["BACKWARD", "RECORD", "FORWARD", "DATA"]


def send_narrow(rank, world_size):
    with link() as transport:
        transport.open(1 - rank, Channel.FORWARD, 1)
        x, ids = torch.tensor([1.0, 1.001]), torch.tensor([2**40 + 1])
        message = Message({}, {"x": x, "ids": ids})
        transport.send(1 - rank, Channel.FORWARD, message, wire_dtype=torch.bfloat16)
        x.zero_()  # it was copied
        received = transport.receive(1 - rank, Channel.FORWARD).tensors
        return received["x"], received["ids"].item()


def test_floating_tensors_may_travel_narrow(pool):
    for x, ids in pool.run(send_narrow, 2):
        assert torch.equal(x, torch.tensor([1.0, 1.001]).bfloat16().float())
        assert ids == 2**40 + 1


def send_garbage(rank, world_size):
    with link() as transport:
        transport.open(1 - rank, Channel.DATA, 1)
        if rank == 0:
            garbage = torch.full((1000,), 65, dtype=torch.uint8)
            transport._mesh.send(garbage, 1, Channel.DATA.tag).wait()
        else:
            with pytest.raises(TransportError, match="not a message"):
                transport.receive(0, Channel.DATA)


def test_garbage_from_the_network_is_refused(pool):
    pool.run(send_garbage, 2)


# ---- nothing grows ----


def run_many_steps(rank, world_size, steps, window):
    process, resident, held = psutil.Process(), [], []
    with link() as transport:
        for channel in (Channel.FORWARD, Channel.BACKWARD):
            transport.open(1 - rank, channel, window)
        for step in range(steps):
            size = 20_000 + 37_000 * (step * 7 % 11)
            for channel in (Channel.FORWARD, Channel.BACKWARD):
                swap(transport, 1 - rank, channel, step, size)
            outboxes, inboxes = transport._outboxes.values(), transport._inboxes.values()
            assert all(len(box._posted) <= window for box in inboxes)
            assert all(len(box._underway) <= window + 1 for box in outboxes)
            resident.append(process.memory_info().rss)
            held.append(transport._buffers.bytes_held)
    return resident, held


def test_memory_stays_the_same_over_steps(pool):
    for resident, held in pool.run(run_many_steps, 2, 200, 3):
        assert max(held[100:]) <= max(held[20:100])
        assert max(resident[150:]) <= max(resident[50:100]) + (8 << 20)


# ---- sums ----


def reduce_everywhere(rank, world_size):
    with link() as transport:
        underway = []
        for index in range(3):
            for ranks in ((0, 1, 2), (0, 2), (1, 2), (1, 0), (rank,)):
                if rank in ranks:
                    flat = torch.arange(5.0) * (rank + 1) + index
                    expected = sum(torch.arange(5.0) * (r + 1) + index for r in ranks)
                    underway.append((transport.all_reduce(ranks, flat), flat, expected))
        for reduction, flat, expected in reversed(underway):
            reduction.wait()
            reduction.wait()
            assert torch.equal(flat, expected)
        for dtype in (torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.complex64):
            flat = torch.full((3,), rank + 1, dtype=dtype)
            transport.all_reduce(range(world_size), flat).wait()
            assert flat.tolist() == [6, 6, 6]
        with pytest.raises(TransportError, match="cannot take part"):
            transport.all_reduce([r for r in range(world_size) if r != rank], torch.ones(1))
        for tensor in (torch.ones(4, 4).t()[:2], torch.ones(3, dtype=torch.bool)):
            with pytest.raises(TransportError, match="cannot sum a tensor of dtype"):
                transport.all_reduce(range(world_size), tensor)
        transport.all_reduce(range(world_size), torch.empty(0)).wait()
        assert transport.counters.reductions > 0
        large = torch.randn(300_000, generator=torch.Generator().manual_seed(rank))
        transport.all_reduce(range(world_size), large).wait()
        return large


def test_sums_of_several_groups_underway_at_once(pool):
    results = pool.run(reduce_everywhere, 3)
    parts = [torch.randn(300_000, generator=torch.Generator().manual_seed(r)) for r in range(3)]
    assert torch.allclose(results[0], sum(parts), atol=1e-5)
    assert torch.equal(results[0], results[1])  # to the last bit: replicas must not drift
    assert torch.equal(results[0], results[2])


# ---- objects ----


def gather_objects(rank, world_size):
    with link() as transport:
        mine = {"rank": rank, "x": torch.full((2,), rank)}
        everyone = transport.all_gather(mine)
        assert [entry["rank"] for entry in everyone] == list(range(world_size))
        assert everyone[2]["x"].tolist() == [2, 2]
        assert transport.broadcast(("from", rank), src=1) == ("from", 1)
        large = transport.broadcast(torch.arange(1_000_000) if rank == 0 else None)
        assert large.sum() == 499999500000
        gathered = transport.gather(rank * 10, dst=2)
        assert gathered == ([0, 10, 20] if rank == 2 else None)
        transport.barrier("after the objects")
        with pytest.raises(DataError, match="the object to gather is a builtins.function"):
            transport.all_gather(lambda: 1)
        transport.barrier("still in step")


def test_objects(pool):
    pool.run(gather_objects, 3)


def part_ways(rank, world_size):
    with link() as transport:
        if rank == 0:
            transport.barrier("end of epoch 3")
        else:
            transport.all_gather(rank)


def test_devices_at_different_places_are_told_so(pool):
    words = (
        r"rank 0 \(orin\) is at barrier 'end of epoch 3', but rank 1 \(laptop\) is at all_gather"
    )
    with pytest.raises(WorkerError, match=words):
        pool.run(part_ways, 2)


# ---- counters and latency ----


def wait_for_a_late_peer(rank, world_size, latency_s):
    with link(latency_s=latency_s) as transport:
        transport.open(1 - rank, Channel.FORWARD, 1)
        transport.barrier("start")
        transport.reset_counters()
        if rank == 0:
            start_s = time.perf_counter()
            message = transport.receive(1, Channel.FORWARD)
            took_s = time.perf_counter() - start_s
            counted = transport.reset_counters()
            assert counted.bytes_received == counted.peers[1].bytes_received > 4000
            assert counted.peers[1].messages_received == 1
            assert counted.receive_wait_s <= took_s
            assert counted.unpack_s > 0
            assert transport.counters.bytes_received == 0
            assert message.tensors["x"].sum() == 1000
            flat = torch.ones(3)
            transport.all_reduce([0, 1], flat).wait()
            return counted.receive_wait_s, transport.counters.reduce_wait_s
        time.sleep(0.3)
        transport.send(0, Channel.FORWARD, Message({}, {"x": torch.ones(1000)}))
        assert transport.counters.pack_s > 0
        time.sleep(0.3)
        transport.all_reduce([0, 1], torch.ones(3)).wait()
        return transport.counters.bytes_sent, transport.counters.peers[0].messages_sent


def test_waiting_is_counted(pool):
    (receive_wait_s, reduce_wait_s), (bytes_sent, messages_sent) = pool.run(
        wait_for_a_late_peer, 2, 0.0
    )
    assert receive_wait_s > 0.25
    assert reduce_wait_s > 0.2
    assert messages_sent == 1
    assert bytes_sent > 4000


def ping_pong(rank, world_size, latency_s):
    with link(latency_s=latency_s) as transport:
        transport.open(1 - rank, Channel.FORWARD, 1)
        transport.barrier("start")
        start_s = time.monotonic()
        for _ in range(3):
            if rank == 0:
                transport.send(1, Channel.FORWARD, Message())
            transport.receive(1 - rank, Channel.FORWARD)
            if rank == 1:
                transport.send(0, Channel.FORWARD, Message())
        middle_s = time.monotonic()
        transport.all_reduce([0, 1], torch.ones(3)).wait()
        return middle_s - start_s, time.monotonic() - middle_s


def test_latency_can_be_added(pool):
    trips_s, sum_s = pool.run(ping_pong, 2, 0.05)[0]
    assert trips_s >= 6 * 0.05
    assert sum_s >= 2 * 0.05  # of a ring of two: one message to add up, one to pass the sum on


# ---- life ----


def connect_again_and_again(rank, world_size, times):
    warnings = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = warnings.append
    logging.getLogger("lightning_edge").addHandler(handler)
    store, _, _ = connect(timedelta(seconds=20))
    sockets = []
    for index in range(times):
        with Transport(store, rank, world_size, timeout=timedelta(seconds=20)) as transport:
            assert transport.broadcast(index) == index
            flat = torch.ones(1)
            transport.all_reduce(range(world_size), flat).wait()
            assert flat.item() == world_size
        transport.close()  # again does nothing
        transport.abort("likewise")
        with pytest.raises(TransportError, match="no open CONTROL stream"):
            transport.barrier("over")
        own = [thread for thread in threading.enumerate() if thread.name.startswith("edge-")]
        for thread in own:
            thread.join(5.0)  # gloo lets a wait go when the other devices have closed too
        left = [thread.name for thread in own if thread.is_alive()]
        assert not left, (left, [warning.getMessage() for warning in warnings])
        sockets.append(len(psutil.Process().net_connections()))
    logging.getLogger("lightning_edge").removeHandler(handler)
    assert not warnings, warnings[0].getMessage()
    return sockets


def test_transports_may_follow_each_other_on_one_store(pool):
    for sockets in pool.run(connect_again_and_again, 3, 8):
        assert min(sockets[4:]) <= max(sockets[:2])  # each transport has four of its own


def test_one_device_needs_nobody():
    with Transport(HashStore(), 0, 1, timeout=timedelta(seconds=1)) as transport:
        assert transport.broadcast({"a": 1}) == {"a": 1}
        assert transport.all_gather(3) == [3]
        assert transport.gather(3, 0) == [3]
        transport.barrier("nobody else")
        transport.all_reduce([0], torch.ones(1)).wait()
        transport.flush()
        with pytest.raises(TransportError, match="cannot open a stream to rank 1"):
            transport.open(1, Channel.FORWARD, 1)
        with pytest.raises(TransportError, match="no open FORWARD stream with rank 1"):
            transport.send(1, Channel.FORWARD, Message())
