"""The loader that a Trainer sees: that of the user in all but its batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.fabric.utilities.data import _auto_add_worker_init_fn, _set_sampler_epoch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import DistributedSampler

from lightning_edge.errors import DataError
from lightning_edge.loop.loader import Feed
from tests.loop.feeding import (
    Ids,
    connected,
    everything,
    loader,
    record,
)

pytestmark = pytest.mark.multiproc


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
