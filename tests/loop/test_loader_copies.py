"""Batches when every device loads its own copy of the data."""

from __future__ import annotations

import random
import re
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.data import _auto_add_worker_init_fn
from torch.utils.data import DataLoader

from lightning_edge.loop.loader import Feed
from tests.loop.feeding import (
    UNEVEN,
    Ids,
    Stream,
    connected,
    everything,
    expected,
    loader,
    noisy,
    rounds,
    rows_by_shares,
    seed,
    until_error,
)

pytestmark = [pytest.mark.thorough, pytest.mark.multiproc]


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
