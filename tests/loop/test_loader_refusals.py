"""What fails on the device that loads, or cannot be shared, is said on all of them."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from lightning_edge.errors import DataError
from lightning_edge.loop.loader import Feed
from tests.loop.feeding import (
    Ids,
    connected,
    everything,
    loader,
    rows_by_shares,
    until_error,
)

pytestmark = pytest.mark.multiproc


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
