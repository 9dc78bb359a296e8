"""Batches when one device loads: each rank gets its rows of what one device would draw."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from lightning_edge.loop.loader import Feed
from tests.loop.feeding import (
    UNEVEN,
    Elsewhere,
    Ids,
    Stream,
    connected,
    everything,
    expected,
    ids,
    loader,
    noisy,
    record,
    rounds,
    rows_by_shares,
    seed,
)

pytestmark = pytest.mark.multiproc


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
