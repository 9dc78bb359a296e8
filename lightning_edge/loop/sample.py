"""The first batch of a loader before training starts, and what its rows are.

The set-up needs a real batch to find out what the model does. Taking one must leave no trace:

    data            the first batch comes from                      left behind
    map-style       dataset[i] and collate_fn, in this process      nothing
    anything else   a real iterator                                 it; the first round continues it

Random streams are put back behind it in both cases, and no worker is started for map-style data.
What the real iterator drew for its first batch is drawn again when the first round hands that batch
out, so that the second one finds the streams as they are in one process.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from lightning.fabric.utilities.data import _auto_add_worker_init_fn, sized_len
from lightning.pytorch.trainer.connectors.data_connector import (
    _DataLoaderSource,
    _request_dataloader,
)
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils._pytree import tree_unflatten
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from lightning_edge.errors import DataError
from lightning_edge.loop.streams import Streams
from lightning_edge.train.axes import Axes, has_rows, learn_axes

__all__: list[str] = []

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Begun:
    """A round that was begun to see its first batch, and the random streams around that."""

    loader: Any
    batch: Any
    rest: Iterator[Any]
    before: Streams
    after: Streams

    def go_on(self) -> Iterator[Any]:
        """The whole round, as if it began now."""
        same = Streams.capture(self.loader) == self.before
        if isinstance(self.loader, DataLoader):
            # What iter(loader) would draw now for the seeds of its workers.
            torch.empty((), dtype=torch.int64).random_(generator=self.loader.generator)
        return self._batches(Streams.capture(self.loader) if same else None)

    def _batches(self, begun: Streams | None) -> Iterator[Any]:
        if begun is not None and Streams.capture(self.loader) == begun:
            self.after.restore()  # else someone has drawn since: the first batch is another one
        yield self.batch
        yield from self.rest


class FirstBatches:
    """Takes first batches, and keeps the iterators that they were taken from."""

    def __init__(self) -> None:
        self._kept: list[_Begun] = []
        self._stashed: list[Any] = []

    def sample(
        self, source: Any, sequential: bool
    ) -> tuple[list[tuple[Any, Any]], Callable[[list[Any]], Any]]:
        """Return the parts of the first batch that a loop would get from its loaders.

        Args:
            source: A loop's data source, a loader, or a collection of loaders.
            sequential: The loop goes through its loaders one after the other.

        Returns:
            (loader, its part) for each loader that feeds the batch, and a function that arranges
            one value per loader as they stand in the batch.

        Raises:
            DataError: There is no batch.
        """
        hooked = isinstance(source, _DataLoaderSource)
        before = Streams.capture()
        loaders = _request_dataloader(source) if hooked else source
        after = Streams.capture()
        kept = len(self._kept)
        combined: Any = loaders
        if not isinstance(loaders, CombinedLoader):
            combined = CombinedLoader(loaders, "sequential" if sequential else "max_size_cycle")
        flat = [getattr(loader, "unwrapped", loader) for loader in combined.flattened]
        if not flat:
            raise DataError("there is no DataLoader to take a first batch from")
        arrange: Callable[[list[Any]], Any] = partial(tree_unflatten, treespec=combined._spec)
        if combined._mode == "sequential":
            flat, arrange = [_first_filled(flat)], itemgetter(0)
        parts = [(loader, self._first(loader)) for loader in flat]
        if hooked and source.is_module():
            self._stash(source, loaders, before, after, begun=len(self._kept) > kept)
        return parts, arrange

    def _first(self, loader: Any) -> Any:
        if is_map_style(loader):
            before = Streams.capture(loader)
            try:
                return _fetch(loader, _own(loader.dataset), _first_index(loader))
            except StopIteration:
                raise DataError(f"the {type(loader).__name__} has no batch") from None
            except Exception as error:  # a dataset that works in its workers only, for instance
                _log.debug("building a batch in this process failed: %r", error)
            finally:
                before.restore()
        if isinstance(loader, (list, tuple)) and loader:
            return loader[0]
        return self._from_iterator(loader)

    def _from_iterator(self, loader: Any) -> Any:
        before = Streams.capture(loader)
        try:
            _auto_add_worker_init_fn(loader, 0)  # as Lightning will, but its workers start now
            rest = iter(loader)
            batch = next(rest)
            after = Streams.capture(loader)
        except StopIteration:
            raise DataError(f"the {type(loader).__name__} has no batch") from None
        finally:
            before.restore()
        self._kept.append(_Begun(loader, batch, rest, before, after))
        return batch

    def _stash(
        self, source: Any, loaders: Any, before: Streams, after: Streams, *, begun: bool
    ) -> None:
        """Give the loop these very loaders, as if the hook that made them was called there.

        One that was begun cannot be made again; others are made again when someone has drawn random
        numbers since, as the hook may draw too (random_split).
        """
        instance, original = source.instance, type(source).dataloader

        def once() -> Any:
            source.__dict__.pop("dataloader", None)
            if source.instance is not instance:
                return original(source)
            if Streams.capture() == before:
                after.restore()
            elif not begun:
                return original(source)
            return loaders

        source.dataloader = once
        self._stashed.append(source)

    def iterator(self, loader: Any) -> Iterator[Any]:
        """Begin a round over a loader; goes on with the iterator that was kept, if there is one."""
        for begun in self._kept:
            dataset = getattr(begun.loader, "dataset", self)
            if begun.loader is loader or dataset is getattr(loader, "dataset", None):
                self._kept.remove(begun)
                return begun.go_on()
        return iter(loader)

    def forget(self, loader: Any) -> None:
        """Let go of what was kept of a loader, which begins elsewhere."""
        self._kept = [begun for begun in self._kept if begun.loader is not loader]

    def close(self) -> None:
        """Let go of all iterators."""
        for source in self._stashed:
            source.__dict__.pop("dataloader", None)
        self._kept, self._stashed = [], []


def _first_filled(loaders: list[Any]) -> Any:
    return next((loader for loader in loaders if sized_len(loader) != 0), loaders[0])


def is_map_style(loader: Any) -> bool:
    """Return whether a loader's batches are nothing but `collate_fn` of items of its dataset."""
    return (
        isinstance(loader, DataLoader)
        and not isinstance(loader.dataset, IterableDataset)
        and type(loader).__iter__ is DataLoader.__iter__
        and type(loader)._get_iterator is DataLoader._get_iterator
    )


def learn(loader: Any) -> Axes:
    """Find out where the rows of a loader's batches are, by collating two and three samples.

    Returns:
        The axes; None if the loader does not work in this way, so that batches have to tell.
    """
    if not is_map_style(loader):
        return None
    before = Streams.capture(loader)
    try:
        dataset = _own(loader.dataset)
        indices = [0, min(1, len(dataset) - 1)]
        if loader.batch_sampler is None:
            small, larger = (loader.collate_fn(dataset[i]) for i in (indices, [*indices, 0]))
        else:
            samples = _samples(dataset, indices)
            copied = copy.deepcopy([*samples, samples[0]])  # collating may take samples apart
            small, larger = loader.collate_fn(samples), loader.collate_fn(copied)
        axes = learn_axes(small, 2, larger, 3)
        return axes if has_rows(axes) else None
    except Exception as error:  # whatever the user's dataset does when it is asked like this
        _log.debug("the rows of a loader have to be guessed: %r", error)
        return None
    finally:
        before.restore()


def _first_index(loader: DataLoader[Any]) -> Any:
    plain = type(loader.sampler) in (SequentialSampler, RandomSampler)
    if plain and type(loader.batch_sampler) is BatchSampler and loader.batch_size:
        number = min(loader.batch_size, len(loader.sampler))  # type: ignore[arg-type]
        if number == 0 or (loader.drop_last and number < loader.batch_size):
            raise StopIteration
        return list(range(number))
    batched = loader.batch_sampler is not None
    return next(iter(loader.batch_sampler if batched else loader.sampler))  # type: ignore[arg-type]


def _fetch(loader: DataLoader[Any], dataset: Any, index: Any) -> Any:
    samples = dataset[index] if loader.batch_sampler is None else _samples(dataset, index)
    return loader.collate_fn(samples)


def _samples(dataset: Any, index: Any) -> Any:
    if getattr(dataset, "__getitems__", None):
        return dataset.__getitems__(index)
    return [dataset[i] for i in index]


def _own(dataset: Any) -> Any:
    """Return a shallow copy, so that what is opened lazily is not inherited by workers later."""
    if not isinstance(dataset, Dataset):
        return dataset
    own = copy.copy(dataset)
    for name, value in list(getattr(own, "__dict__", {}).items()):
        if isinstance(value, Dataset):
            own.__dict__[name] = _own(value)
        elif isinstance(value, list) and value and all(isinstance(v, Dataset) for v in value):
            own.__dict__[name] = [_own(v) for v in value]
    return own
