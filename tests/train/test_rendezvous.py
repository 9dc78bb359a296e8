"""Finding each other: what the environment must say, and what is said when it does not."""

from datetime import timedelta

import pytest
from torch.distributed import HashStore

from lightning_edge.errors import TransportError, TransportTimeout
from lightning_edge.train.rendezvous import bounded, connect, meet, poll
from tests.pool import free_port

NAMES = ("rank 0 (orin)", "rank 1 (laptop)", "rank 2 (pi)")
COMPLETE = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
AT_ONCE = timedelta(milliseconds=50)


@pytest.fixture
def environment(monkeypatch):
    for name in ("TORCHELASTIC_USE_AGENT_STORE", *COMPLETE):
        monkeypatch.delenv(name, raising=False)

    def put(**changes):
        for name, value in (COMPLETE | changes).items():
            if value is not None:
                monkeypatch.setenv(name, value)

    return put


def test_one_device_connects_to_itself(environment):
    environment(MASTER_PORT=str(free_port()))
    store, rank, world_size = connect(timedelta(seconds=20))
    store.set("key", "value")
    assert (store.get("key"), rank, world_size) == (b"value", 0, 1)


def ranks_connect(rank, world_size):
    store, found_rank, found_size = connect(timedelta(seconds=20))
    assert (found_rank, found_size) == (rank, world_size)
    meet(store, "hello", rank, range(world_size), NAMES, timedelta(seconds=20))
    if rank == 0:
        return poll(store, ["done"], 20.0)  # its process hosts the store
    store.set("done", "")
    return True


@pytest.mark.multiproc
def test_ranks_share_a_store(pool):
    assert pool.run(ranks_connect, 2) == [True, True]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"RANK": None, "MASTER_ADDR": None}, "^RANK, MASTER_ADDR not set: start every device"),
        ({"RANK": "one"}, "RANK='one' is not a number"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK=2 must be less than WORLD_SIZE=2"),
        ({"RANK": "x", "WORLD_SIZE": "-1"}, "RANK='x' is not a number; WORLD_SIZE='-1' is not"),
        ({"MASTER_PORT": "99999999"}, "failed hosting the store at 127.0.0.1:99999999"),
    ],
)
def test_a_wrong_environment_is_explained(environment, changes, words):
    environment(**changes)
    with pytest.raises(TransportError, match=words):
        connect(AT_ONCE)


def test_nobody_there_names_the_address(environment):
    port = str(free_port())
    environment(RANK="1", WORLD_SIZE="2", MASTER_PORT=port)
    words = rf"rank 1 of 2 gave up reaching the store of rank 0 at 127\.0\.0\.1:{port}.*firewall"
    with pytest.raises(TransportTimeout, match=words):
        connect(timedelta(seconds=1))


def test_meeting_names_who_is_missing():
    store = HashStore()
    meet(store, "early", 0, [0], NAMES, AT_ONCE)
    store.set("the start/1", "")
    words = r"rank 0 \(orin\) waited 0.05 s for the start; missing: rank 2 \(pi\)$"
    with pytest.raises(TransportTimeout, match=words):
        meet(store, "the start", 0, range(3), NAMES, AT_ONCE)


def test_a_failure_elsewhere_ends_the_meeting():
    def check():
        raise TransportError("rank 2 failed first")

    with pytest.raises(TransportError, match="rank 2 failed first"):
        meet(HashStore(), "the start", 0, range(2), NAMES, timedelta(seconds=20), check)


def test_a_lost_store_is_no_endless_wait():
    class Lost(HashStore):
        def check(self, keys):
            raise RuntimeError("Connection reset by peer")

    assert poll(Lost(), ["key"], 20.0) is False
    with pytest.raises(TransportError, match="lost the store on rank 0's device, at the start"):
        meet(Lost(), "the start", 1, range(2), NAMES, timedelta(seconds=20))


def test_bounded_gives_up():
    import threading

    never = threading.Event()
    assert bounded(lambda: never.wait(20), 0.01) is None
    never.set()
    assert bounded(lambda: 3, 20) == 3
