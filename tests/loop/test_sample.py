from __future__ import annotations

import random
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.connectors.data_connector import _DataLoaderSource
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    Subset,
    get_worker_info,
)

from lightning_edge.errors import DataError
from lightning_edge.loop.loader import Feed
from lightning_edge.loop.sample import learn
from lightning_edge.loop.streams import Streams
from lightning_edge.train.axes import Axis
from lightning_edge.train.microbatch import BatchRows
from tests.loop.feeding import Elsewhere, Ids, Stream, connected, everything, loader, record


def sample(source: Any, sequential: bool = False) -> Any:
    return Feed(None).sample(source, sequential=sequential)


def ids_of(batch: Any) -> list[int]:
    return batch["id"].tolist()


class TestMapStyle:
    def test_gives_the_first_batch_and_its_rows(self):
        batch, rows = sample(loader(Ids(10)))
        assert ids_of(batch) == [0, 1, 2, 3]
        assert rows == BatchRows(4, 4, {"id": Axis(0), "noise": Axis(0)})

    def test_no_stream_and_no_generator_moves(self):
        own = torch.Generator().manual_seed(1)
        collate = Collate()
        data = Ids(50, noise="torch numpy python")
        data.generator = np.random.default_rng(1)
        shuffled = loader(data, shuffle=True, generator=own, collate_fn=collate)
        before = Streams.capture(shuffled)
        assert len(before._owned) == 3  # the loader's (and sampler's), the dataset's, the collate's
        sample(shuffled)
        learn(shuffled)
        assert Streams.capture(shuffled) == before
        assert data.asked.count(0) > 0

    def test_the_samplers_first_batch_where_it_is_not_torchs_own(self):
        odd = BatchSampler([1, 3, 5, 7, 9], batch_size=3, drop_last=False)
        assert ids_of(sample(DataLoader(Ids(10), batch_sampler=odd))[0]) == [1, 3, 5]
        assert ids_of(sample(loader(Ids(10), sampler=[8, 2, 1]))[0]) == [8, 2, 1]
        whole = DataLoader(Batches(), sampler=odd, batch_size=None)
        assert ids_of(sample(whole)[0]) == [1, 3, 5]

    def test_no_worker_is_started_and_nothing_is_left_open(self):
        lazy = Lazy(8)
        nested = ConcatDataset([Subset(lazy, range(8)), Ids(2)])
        data = loader(nested, num_workers=2)
        batch, _ = sample(data)
        learn(data)
        assert ids_of(batch) == [0, 1, 2, 3]
        assert data._iterator is None
        assert lazy.file is None  # or workers would inherit the open file

    def test_a_dataset_that_works_in_workers_only(self):
        data = loader(WorkersOnly(8), num_workers=1)
        feed = Feed(None)
        assert ids_of(feed.sample(data, sequential=False)[0]) == [0, 1, 2, 3]
        assert learn(data) is None
        rounds = list(feed.wrap(data, everything).begin_round())
        assert [ids_of(batch) for batch in rounds] == [[0, 1, 2, 3], [4, 5, 6, 7]]
        feed.close()

    @pytest.mark.parametrize("options", [{}, {"drop_last": True}])
    def test_an_empty_loader_is_refused(self, options):
        data = Ids(3 if options else 0)
        with pytest.raises(DataError, match="the DataLoader has no batch"):
            sample(loader(data, **options))

    def test_what_the_dataset_raises_is_told(self):
        with pytest.raises(DataError, match="first batch: ValueError: sample 2 is corrupt"):
            sample(loader(Ids(8, breaks_at=2)))


class TestOthers:
    def test_a_stream_goes_on_where_the_sample_was_taken(self):
        once = Once(10)
        feed = Feed(None)
        before = Streams.capture()
        batch, _ = feed.sample(loader(once), sequential=False)
        assert ids_of(batch) == [0, 1, 2, 3]
        assert Streams.capture() == before
        wrapped = feed.wrap(loader(once), everything)  # another loader of the same data
        assert [ids_of(b) for b in wrapped.begin_round()] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        assert list(wrapped.begin_round()) == []

    def test_the_stream_of_random_numbers_is_where_it_would_be_without_a_sample(self):
        def after(look: bool) -> Any:
            torch.manual_seed(1)
            feed, data = Feed(None), loader(Stream(10))
            if look:
                feed.sample(data, sequential=False)
            batches = feed.wrap(data, everything).begin_round()
            next(batches)
            return torch.rand(3).tolist()

        assert after(look=True) == after(look=False)

    def test_any_iterable(self):
        batches = [{"id": torch.tensor([i])} for i in range(3)]
        feed = Feed(None)
        generator = iter(batches)
        assert ids_of(feed.sample(Wrapped(generator), sequential=False)[0]) == [0]
        again = Wrapped(batches)
        assert ids_of(feed.sample(again, sequential=True)[0]) == [0]
        assert [ids_of(b) for b in feed.wrap(again, everything).begin_round()] == [[0], [1], [2]]

    def test_several_loaders_feed_one_batch(self):
        loaders = {"a": loader(Ids(8)), "b": [loader(Ids(6), batch_size=2)]}
        batch, rows = sample(loaders)
        assert (ids_of(batch["a"]), ids_of(batch["b"][0])) == ([0, 1, 2, 3], [0, 1])
        assert (rows["a"].rows, rows["b"][0].rows) == (4, 2)
        batch, _ = sample(CombinedLoader(loaders, "min_size"))
        assert ids_of(batch["b"][0]) == [0, 1]

    def test_loaders_in_sequence_begin_with_the_first_that_has_any(self):
        batch, rows = sample([loader(Ids(0)), loader(Ids(3)), loader(Ids(9))], sequential=True)
        assert (ids_of(batch), rows.rows) == ([0, 1, 2], 3)

    def test_a_wrapped_loader_of_an_earlier_fit(self):
        wrapped = Feed(None).wrap(loader(Ids(8)), everything)
        assert ids_of(sample(CombinedLoader([wrapped], "sequential"))[0]) == [0, 1, 2, 3]


class TestSources:
    """Loaders that a hook of the user's makes."""

    def source(self, make: Any) -> tuple[Any, Any]:
        module = Hooked(make)
        module.trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
        return module, _DataLoaderSource(module, "train_dataloader")

    def test_the_hook_draws_at_its_time(self):
        module, source = self.source(lambda: loader(Ids(int(torch.randint(4, 9, ())))))
        torch.manual_seed(1)
        first = len(source.dataloader().dataset)
        torch.manual_seed(1)
        sample(source)
        assert len(source.dataloader().dataset) == first
        assert module.calls == 2  # the loop gets what the hook made for the sample
        sample(source)
        drawn = int(torch.randint(4, 9, ()))  # by someone else, in between
        assert len(source.dataloader().dataset) in range(4, 9)
        assert (module.calls, drawn >= 4) == (4, True)

    def test_a_stream_that_the_hook_opens_is_opened_once(self):
        module, source = self.source(lambda: loader(Once(10)))
        feed = Feed(None)
        feed.sample(source, sequential=False)
        wrapped = feed.wrap(source.dataloader(), everything)
        assert [ids_of(b) for b in wrapped.begin_round()][0] == [0, 1, 2, 3]
        assert module.calls == 1
        source.dataloader()
        assert module.calls == 2

    def test_what_was_kept_is_not_given_to_another_run(self):
        module, source = self.source(lambda: loader(Once(10)))
        feed = Feed(None)
        feed.sample(source, sequential=False)
        feed.close()
        assert isinstance(source.dataloader(), DataLoader)
        assert module.calls == 2
        feed.sample(source, sequential=False)
        other = [{"id": torch.ones(1)}]
        source.instance = other
        assert source.dataloader() is other


@pytest.mark.multiproc
@pytest.mark.parametrize("data", ["owner", {"owner": 1}, "every"])
def test_all_ranks_get_the_same_sample(pool, data):
    owner = 1 if isinstance(data, dict) else 0
    results = pool.run(sample_rank, 2, data, owner)
    assert results[0] == results[1]
    assert results[0][0] == [0, 1, 2, 3]
    assert results[0][2] == 4


def sample_rank(rank: int, world_size: int, data: Any, owner: int) -> Any:
    with connected() as transport:
        torch.manual_seed(rank)
        own = rank == owner or data == "every"
        before = Streams.capture()
        feed = Feed(transport, data)
        batch, rows = feed.sample(loader(Ids(9, "torch") if own else Elsewhere()), sequential=False)
        assert Streams.capture() == before
        return [*record(batch), rows.rows]


@pytest.mark.multiproc
@pytest.mark.parametrize("data", ["owner", "every"])
def test_a_sample_that_fails_fails_on_all_ranks(pool, data):
    first, second = pool.run(broken_sample_rank, 2, data)
    assert first == second
    assert first == "rank 0 could not load a first batch: ValueError: sample 1 is corrupt"


def broken_sample_rank(rank: int, world_size: int, data: Any) -> str:
    with connected() as transport:
        own = loader(Ids(9, breaks_at=1)) if rank == 0 or data == "every" else []
        with pytest.raises(DataError) as error:
            Feed(transport, data).sample(own, sequential=True)
        return str(error.value)


class Collate:
    def __init__(self) -> None:
        self.random = random.Random(1)

    def __call__(self, samples: list[Any]) -> Any:
        self.random.random()
        return torch.utils.data.default_collate(samples)


class Batches(Dataset):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: list[int]) -> Any:
        return {"id": torch.tensor(index)}


class Lazy(Ids):
    """Opens its file when first asked, in each worker, as users of HDF5 do."""

    file = None

    def __getitem__(self, i: int) -> Any:
        self.file = self.file or "open"
        return super().__getitem__(i)


class WorkersOnly(Ids):
    def __getitem__(self, i: int) -> Any:
        assert get_worker_info() is not None
        return super().__getitem__(i)


class Once(Stream):
    """A stream that cannot be read again."""

    def __iter__(self) -> Any:
        if not hasattr(self, "iterator"):
            self.iterator = super().__iter__()
        return self.iterator


class Wrapped:
    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


class Hooked(L.LightningModule):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make, self.calls = make, 0

    def train_dataloader(self) -> Any:
        self.calls += 1
        return self.make()
