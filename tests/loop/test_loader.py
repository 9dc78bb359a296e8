from __future__ import annotations

import random
import re
import time
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.data import _auto_add_worker_init_fn, _set_sampler_epoch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import DataLoader, DistributedSampler

from lightning_edge.errors import DataError
from lightning_edge.loop.loader import Feed
from lightning_edge.replicate.randomness import kept
from tests.loop.feeding import (
    Elsewhere,
    Ids,
    Stream,
    connected,
    everything,
    expected,
    loader,
    record,
    rows_by_shares,
)

pytestmark = pytest.mark.multiproc

UNEVEN = (0.7, 0.0, 0.3)  # rank 1 has no rows


def seed() -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)


def between() -> None:
    """What other code draws between two batches: on the owner this must come at the same place."""
    torch.rand(2)
    np.random.rand()
    random.random()


def step() -> None:
    with kept(5):
        torch.rand(100)


def rounds(loader_: Any, epochs: int, draw_between: bool = False) -> list[Any]:
    seen = []
    for _ in range(epochs):
        iterator = loader_.begin_round() if hasattr(loader_, "begin_round") else iter(loader_)
        for batch in iterator:
            step()
            if draw_between:
                between()
            seen.append(record(batch))
    return seen


# the owner loads


def owner_rank(
    rank: int, world_size: int, make: Any, options: dict, owner: int, extra: bool
) -> Any:
    with connected() as transport:
        feed = Feed(transport, {"owner": owner})
        data = make() if rank == owner else Elsewhere()
        seed() if rank == owner else torch.manual_seed(rank)
        wrapped = feed.wrap(loader(data, **options), rows_by_shares(UNEVEN, 2))
        seen = rounds(wrapped, 3, extra)
        return seen, len(wrapped), wrapped.rows


def ids() -> Ids:
    return Ids(11)


def noisy() -> Ids:
    return Ids(11, noise="torch numpy python")


@pytest.mark.parametrize("owner", [0, 2])
@pytest.mark.parametrize(
    ("make", "options", "extra"),
    [
        (ids, {"shuffle": True}, False),
        (noisy, {"shuffle": True}, False),
        (noisy, {"shuffle": True, "drop_last": True}, True),
        (noisy, {"shuffle": True, "num_workers": 2, "persistent_workers": True}, True),
    ],
    ids=["shuffled", "transforms", "draws-between", "workers"],
)
def test_every_rank_gets_its_rows_of_what_one_device_draws(pool, make, options, extra, owner):
    seed()
    alone = rounds(loader(make(), **options), 3, extra)
    results = pool.run(owner_rank, 3, make, options, owner, extra)
    rows_for = rows_by_shares(UNEVEN, 2)
    for rank, (seen, length, rows) in enumerate(results):
        assert seen == expected(alone, rank, rows_for)
        assert length == len(alone) / 3
        assert rows == len(alone[-1][0])  # of the whole batch, also where there are none
    assert [len(batch[0]) for batch in results[1][0]] == [0] * len(alone)


def streamed_rank(rank: int, world_size: int) -> Any:
    with connected() as transport:
        feed = Feed(transport)
        data = [] if rank else loader(Stream(10))
        wrapped = feed.wrap(data, everything)
        with pytest.raises(TypeError, match="the training loader has no length"):
            len(wrapped)
        return rounds(wrapped, 2)


def test_a_loader_without_length_and_ranks_with_nothing_but_an_empty_list(pool):
    alone = rounds(loader(Stream(10)), 2)
    assert pool.run(streamed_rank, 2) == [alone, alone]


def early_rank(rank: int, world_size: int) -> Any:
    """Rounds left at once, after one, after three batches and at the end; two loaders in turns."""
    with connected() as transport:
        feed = Feed(transport)
        train = feed.wrap(loader(Ids(20)) if rank == 0 else [], everything)
        val = feed.wrap(loader(Ids(40)) if rank == 0 else [], everything, what="validation")
        seen = []
        for left_after in (0, 1, 3, 3, 9):
            batches = train.begin_round()
            for number, batch in enumerate(batches):
                if number == left_after:
                    break
                seen.append(record(batch)[0])
                if number == 1:
                    looked_at = val.begin_round()
                    seen += [record(next(looked_at))[0] for _ in range(4)]
        return seen


def test_rounds_may_be_left_early_and_mixed(pool):
    first, second = pool.run(early_rank, 2)
    assert first == second
    batches = [list(range(i, i + 4)) for i in range(0, 40, 4)]
    once = [batches[0], batches[1], *batches[:4]]
    assert first == [batches[0], *once, batches[2], *once, batches[2], *once, *batches[2:5]]


def ahead_rank(rank: int, world_size: int) -> Any:
    with connected() as transport:
        feed = Feed(transport)
        data = Ids(40)
        wrapped = feed.wrap(loader(data) if rank == 0 else [], everything)
        batches = wrapped.begin_round()
        for _ in range(3):
            next(batches)
        transport.barrier()
        data.asked.clear() if rank else None
        if rank == 0:
            time.sleep(0.3)  # asks for nothing while the others go on
            asked = max(data.asked)
            next(batches)
        else:
            asked = record(next(batches))[0]
        transport.barrier()
        return asked


def test_the_next_batch_is_there_before_anyone_asks_for_it(pool):
    asked, received = pool.run(ahead_rank, 2)
    assert asked == 15  # three batches handed out, the fourth one loaded
    assert received == [12, 13, 14, 15]


def many_rank(rank: int, world_size: int) -> Any:
    """Six loaders feed each step; the owner takes all its batches before the other takes any."""
    with connected() as transport:
        feed = Feed(transport)
        wrapped = [feed.wrap(loader(Large(40)) if rank == 0 else [], everything) for _ in range(6)]
        batches = [each.begin_round() for each in wrapped]
        seen = []
        for step_number in range(6):
            ahead = step_number > 1  # in its second step the owner sends the third one's too
            if rank == 1 and ahead:
                transport.barrier("the owner is a whole step ahead")
            seen.append([next(each)["x"][:, 0].tolist() for each in batches])
            if rank == 0 and ahead:
                transport.barrier("the owner is a whole step ahead")
        return seen


class Large(Ids):
    def __getitem__(self, i: int) -> Any:
        return {"x": torch.full((9_000,), i)}  # a batch is larger than any buffer posted at first


def test_the_owner_never_waits_for_ranks_that_are_a_step_behind(pool):
    first, second = pool.run(many_rank, 2)
    assert first == second == [[[4 * s + i for i in range(4)]] * 6 for s in range(6)]


def session_rank(rank: int, world_size: int, orderly: bool) -> Any:
    """Several runs over one connection, each leaves parcels behind that were sent ahead."""
    with connected() as transport:
        seen = []
        for length in (20, 24, 28):
            feed = Feed(transport)
            wrapped = feed.wrap(loader(Large(length)) if rank == 0 else [], everything)
            batches = wrapped.begin_round()
            seen.append([next(batches)["x"][0, 0].item() for _ in range(4)])
            seen.append(len(wrapped))
            feed.close(orderly=orderly)
        return seen


@pytest.mark.parametrize("orderly", [False, True])
def test_runs_over_one_connection_do_not_meet(pool, orderly):
    first, second = pool.run(session_rank, 2, orderly)
    assert first == second == [[0, 4, 8, 12], 5, [0, 4, 8, 12], 6, [0, 4, 8, 12], 7]


def drawing_rank(rank: int, world_size: int) -> Any:
    with connected() as transport:
        feed = Feed(transport)
        data = noisy()
        wrapped = feed.wrap(loader(data) if rank == 0 else [], everything)
        for batch in wrapped.begin_round():
            assert not data.asked or data.asked[-1] == record(batch)[0][-1]
        return len(data.asked)


def test_a_loader_that_draws_in_this_process_is_not_loaded_ahead(pool):
    assert pool.run(drawing_rank, 2) == [11 + 2, 0]  # and two to learn where its rows are


def broken_rank(rank: int, world_size: int, make: Any) -> Any:
    transport = connected()
    feed = Feed(transport)
    wrapped = feed.wrap(make() if rank == 0 else [], rows_by_shares((0.5, 0.5)))
    batches = wrapped.begin_round()
    got, error = until_error(batches)
    with pytest.raises(StopIteration):
        next(batches)
    transport.close()
    return got, str(error), type(error.__cause__).__name__


def until_error(batches: Any) -> tuple[int, DataError]:
    got = 0
    try:
        for _ in batches:
            got += 1
    except DataError as error:
        return got, error
    raise AssertionError("there was no error")


def corrupt() -> DataLoader:
    return loader(Ids(20, breaks_at=13))


def of_objects() -> DataLoader:
    return loader([{"x": torch.ones(2), "tag": object()}] * 20, collate_fn=collate_tags)


def collate_tags(samples: list[Any]) -> Any:
    return {"x": torch.stack([s["x"] for s in samples]), "tag": [s["tag"] for s in samples]}


def without_rows() -> DataLoader:
    return loader(Ids(20), collate_fn=lambda samples: {"sum": 3.0})


@pytest.mark.parametrize(
    ("make", "batches", "text", "cause"),
    [
        (
            corrupt,
            3,
            "batch 3 of the training data: ValueError: sample 13 is corrupt",
            "ValueError",
        ),
        (of_objects, 0, "batch['tag'][0] is a builtins.object", "DataError"),
        (without_rows, 0, "cannot see how many rows a batch has", "DataError"),
    ],
)
def test_what_fails_on_the_owner_is_raised_by_all_at_the_same_batch(
    pool, make, batches, text, cause
):
    first, second = pool.run(broken_rank, 2, make)
    assert first[:2] == second[:2]
    assert first[0] == batches
    assert "rank 0 could not load batch" in first[1]
    assert text in first[1]
    assert (first[2], second[2]) == (cause, "NoneType")


def refused_rank(rank: int, world_size: int, make: Any, data: Any) -> str:
    transport = connected()
    with pytest.raises(DataError) as error:
        Feed(transport, data).wrap(make(rank), everything)
    transport.close()
    return str(error.value)


def distributed(rank: int) -> Any:
    data = Ids(8)
    return [] if rank else loader(data, sampler=DistributedSampler(data, num_replicas=2, rank=0))


class Gone(list):
    def __len__(self) -> int:
        raise OSError("the disk is gone")


def unmeasurable(rank: int) -> Any:
    return [] if rank else Gone()


def longer(rank: int) -> Any:
    return loader(Ids(8 + 4 * rank))


@pytest.mark.parametrize(
    ("make", "data", "text"),
    [
        (distributed, "owner", "a DistributedSampler for 2 replicas.*Remove the sampler"),
        (
            unmeasurable,
            "owner",
            r"len\(\) of the loader failed on rank 0: OSError: the disk is gone",
        ),
        (longer, "every", "rank 0 has 2 training batches, rank 1 has 3 training batches"),
    ],
)
def test_a_loader_that_cannot_be_shared_is_refused_on_all_ranks(pool, make, data, text):
    first, second = pool.run(refused_rank, 2, make, data)
    assert first == second
    assert re.search(text, first), first


def other_structure_rank(rank: int, world_size: int, owns: int, others: int) -> str:
    """Three ranks, which give the Trainer different numbers of loaders."""
    transport = connected()
    feed = Feed(transport)
    error: Any = None
    try:
        train = feed.wrap(loader(Ids(20)) if rank == 0 else [], everything)
        batches = train.begin_round()
        for _ in range(3):  # so that one was sent ahead
            next(batches)
        val = [
            feed.wrap(loader(Ids(4)) if rank == 0 else [], everything, what="validation")
            for _ in range(others if rank else owns)
        ]
        for each in (batches, batches, *(each.begin_round() for each in val)):
            next(each)
    except DataError as raised:
        error = raised
    transport.barrier()
    transport.close()
    return str(error)


@pytest.mark.parametrize(("owns", "others"), [(2, 1), (1, 0)])
def test_other_loaders_on_other_ranks_are_refused_at_once(pool, owns, others):
    first, *texts = pool.run(other_structure_rank, 3, owns, others)
    assert first == "None"
    for text in texts:
        assert re.search(r"rank 0 has other loaders.*with \[\] in the place of each", text), text


# every device its own copy


def noisy_stream() -> Stream:
    return Stream(9, noise=True)


def every_rank(rank: int, world_size: int, make: Any, options: dict) -> Any:
    with connected() as transport:
        feed = Feed(transport, "every")
        torch.manual_seed(rank)
        np.random.seed(rank)
        random.seed(rank)
        if rank == 0:
            seed()
        wrapped = feed.wrap(loader(make(), **options), rows_by_shares(UNEVEN, 2))
        _auto_add_worker_init_fn(wrapped, rank)
        return rounds(wrapped, 3)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (noisy, {"shuffle": True}),
        (noisy, {"shuffle": True, "num_workers": 2}),
        (noisy_stream, {}),
    ],
    ids=["transforms", "workers", "stream"],
)
def test_copies_draw_the_same_batches(pool, make, options, monkeypatch):
    monkeypatch.setenv("PL_SEED_WORKERS", "1")
    seed()
    own = loader(make(), **options)
    _auto_add_worker_init_fn(own, 0)
    alone = rounds(own, 3)
    results = pool.run(every_rank, 3, make, options, env={"PL_SEED_WORKERS": "1"})
    rows_for = rows_by_shares(UNEVEN, 2)
    assert results == [expected(alone, rank, rows_for) for rank in range(3)]


def unlike_rank(rank: int, world_size: int, make: Any) -> Any:
    transport = connected()
    wrapped = Feed(transport, "every").wrap(make(rank), everything)
    got, error = until_error(wrapped.begin_round())
    transport.barrier()
    transport.close()
    return got, str(error)


def unseeded(rank: int) -> DataLoader:
    data = Ids(8)
    data.noise = "" if rank != 1 else "torch"
    return loader(data)


def of_another_length(rank: int) -> DataLoader:
    return loader(Stream(8 if rank != 1 else 12))


def of_another_shape(rank: int) -> DataLoader:
    return loader(Ids(8), collate_fn=None if rank else doubled)


def doubled(samples: list[Any]) -> Any:
    batch = torch.utils.data.default_collate(samples)
    return {**batch, "noise": batch["noise"].float()}


def failing(rank: int) -> DataLoader:
    return loader(Ids(8, breaks_at=2 if rank == 1 else None))


@pytest.mark.parametrize(
    ("make", "batches", "text"),
    [
        (unseeded, 0, r"rank 0, rank 2: batch\['noise'\] with checksum \w+; rank 1: batch"),
        (of_another_length, 2, r"rank 0, rank 2: no batch 2; rank 1: 4 rows"),
        (of_another_shape, 0, r"rank 0: batch\['noise'\], .* of torch.float32; rank 1, rank 2: "),
        (failing, 0, "^rank 1 could not load batch 0 of the training data: ValueError"),
    ],
)
def test_copies_that_differ_are_refused_on_all_ranks(pool, make, batches, text):
    results = pool.run(unlike_rank, 3, make)
    assert {got for got, _ in results} == {batches}
    assert len({said for _, said in results}) == 1
    assert re.search(text, results[0][1]), results[0][1]


def shorter_rank(rank: int, world_size: int) -> str:
    transport = connected()
    sampler = Shrinking(8 if rank == 1 else 12)
    wrapped = Feed(transport, "every").wrap(loader(Ids(12), sampler=sampler), everything)
    if rank == 0:
        text = f"{len(list(wrapped.begin_round()))} batches"
    else:
        text = str(until_error(wrapped.begin_round())[1])
    transport.barrier()
    transport.close()
    return text


class Shrinking:
    """Says that it has 12 samples."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return 12

    def __iter__(self) -> Any:
        return iter(range(self.number))


def test_a_copy_that_ends_early_says_so(pool):
    first, second = pool.run(shorter_rank, 2)
    assert first == "3 batches"
    assert "rank 1 could not load batch 2 of the training data: it ended after 2 of 3" in second


# the wrapper


def alone(data: Any, **options: Any) -> Any:
    return Feed(None).wrap(loader(data, **options), everything)


def test_what_is_asked_of_the_wrapper_is_the_users():
    data = Ids(8)
    sampler = DistributedSampler(data, num_replicas=1, rank=0)
    own = loader(data, sampler=sampler, num_workers=2, pin_memory=False)
    wrapped = Feed(None).wrap(own, everything)
    assert wrapped.dataset is data
    assert wrapped.sampler is sampler
    assert wrapped.batch_sampler is own.batch_sampler
    assert (wrapped.batch_size, wrapped.num_workers, len(wrapped)) == (4, 2, 2)
    _set_sampler_epoch(wrapped, 5)
    assert sampler.epoch == 5
    wrapped.worker_init_fn = print
    assert own.worker_init_fn is print
    with pytest.raises(AttributeError, match="'DataLoader' object has no attribute 'colour'"):
        _ = wrapped.colour
    assert Feed(None).wrap(wrapped, everything).unwrapped is own


def test_workers_are_seeded_as_on_one_device(monkeypatch):
    monkeypatch.setenv("PL_SEED_WORKERS", "1")
    wrapped = alone(Ids(8))
    _auto_add_worker_init_fn(wrapped, 3)
    assert wrapped.worker_init_fn.keywords == {"rank": 0}


def test_only_the_loops_iteration_is_shared():
    wrapped = alone(Ids(8))
    assert record(next(iter(wrapped)))[0] == [0, 1, 2, 3]
    assert wrapped.rows == 0  # nothing was handed out to a loop
    combined = CombinedLoader([wrapped], "sequential")
    batch, _, _ = next(iter(combined))
    assert (record(batch)[0], wrapped.rows) == ([0, 1, 2, 3], 4)


def test_lightning_can_end_persistent_workers():
    wrapped = alone(Ids(8), num_workers=1, persistent_workers=True)
    combined = CombinedLoader([wrapped], "sequential")
    next(iter(combined))
    workers = list(wrapped.unwrapped._iterator._workers)
    assert all(worker.is_alive() for worker in workers)
    combined.reset()
    assert wrapped.unwrapped._iterator is None
    assert not any(worker.is_alive() for worker in workers)


def test_one_device_takes_batches_without_rows():
    wrapped = Feed(None).wrap([{"a": 1}, None, 2.5], everything)
    assert list(wrapped.begin_round()) == [{"a": 1}, None, 2.5]


@pytest.mark.parametrize("data", ["nobody", {"owner": "0"}, {"rank": 0}, {"owner": True}, 1])
def test_data_must_name_who_loads(data):
    with pytest.raises(DataError, match="is not"):
        Feed(None, data)
    with pytest.raises(DataError, match=r"names rank 1, but the ranks are 0 to 0"):
        Feed(None, {"owner": 1})


class Stateful:
    """A loader that knows its place, as torchdata's does."""

    def __init__(self) -> None:
        self.position = 0

    def __len__(self) -> int:
        return 6

    def __iter__(self) -> Any:
        while self.position < 6:
            self.position += 1
            yield {"id": torch.full((2,), self.position), "noise": torch.zeros(2)}
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def stateful_rank(rank: int, world_size: int, owner: int) -> Any:
    with connected() as transport:
        feed = Feed(transport, {"owner": owner})
        wrapped = feed.wrap(Stateful() if rank == owner else [], everything)
        batches = wrapped.begin_round()
        for _ in range(4):
            next(batches)
        combined = CombinedLoader([wrapped], "min_size")
        states = combined._state_dicts()
        again = Feed(transport, {"owner": owner})
        other = again.wrap(Stateful() if rank == owner else [], everything)
        CombinedLoader([other], "min_size")._load_state_dicts(states)
        return states, [record(batch)[0][0] for batch in other.begin_round()]


@pytest.mark.parametrize("owner", [0, 1])
def test_a_loader_that_keeps_its_place_goes_on_behind_the_last_batch_used(pool, owner):
    results = pool.run(stateful_rank, 2, owner)
    assert results[0][0] == [{"position": 4}]  # not one ahead
    assert [rest for _, rest in results] == [[5, 6], [5, 6]]
