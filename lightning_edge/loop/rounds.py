"""One iteration over a loader, seen from the device that loads and from those that receive.

    rank 0 (owner)   next(): hand out rows of batch i, load batch i+1, send it      step i ...
    rank 1           next(): wait for its rows of batch i (sent during step i-1)    step i ...

Loading ahead must not change the order in which random numbers are drawn from the global streams:
on one device batch i+1 is loaded after step i and after any validation in between. So a loader is
loaded ahead only after it has been seen to load without drawing in this process, as loaders with
workers and loaders without random transforms do; the others are loaded when asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning.pytorch.overrides.distributed import _IndexBatchSamplerWrapper

from lightning_edge.errors import DataError, TransportError
from lightning_edge.loop import copies
from lightning_edge.loop.parcels import Parcel
from lightning_edge.loop.streams import Streams
from lightning_edge.train.axes import Axes
from lightning_edge.train.microbatch import BatchRows, joined, take_rows

if TYPE_CHECKING:
    from lightning_edge.loop.loader import Feed
    from lightning_edge.train.transport import Message

__all__: list[str] = []

LONGEST_PROBLEM = 8_000  # characters of a user's error that travel


@dataclass
class Course:
    """What all rounds of one loader have in common.

    Attributes:
        feed: What all loaders of the run have in common.
        loader: The user's loader.
        number: Of the loader.
        rows_for: The rows of a batch of so many rows that a rank computes on.
        what: What the data is for, in messages.
        length: Batches in a round, equal on all ranks; None if unknown.
        ahead: Whether loading ahead is possible at all.
        axes: Where the rows of a batch are, once it is known.
        draws: Whether loading draws from the global streams, once it is known.
        rounds: Number of rounds begun.
        rows: Of the batch that was handed out last.
    """

    feed: Feed
    loader: Any
    number: int
    rows_for: Callable[[int, int], Sequence[tuple[int, int]]]
    what: str
    length: int | None
    ahead: bool
    axes: Axes = None
    draws: bool | None = None
    rounds: int = 0
    rows: int = 0

    def begin(self) -> Iterator[Any]:
        """Begin the next round; every rank does so at the same time."""
        self.rounds += 1
        self.feed.forget(self.number)
        if self.feed.loads:
            if self.feed.compares:
                copies.align(self.feed.transport, self.loader)
            return _LoadedRound(self, self.feed.first_batches.iterator(self.loader))
        return _ReceivedRound(self)

    def hand_out(self, parcel: Parcel) -> Any:
        """Note the rows of a batch and give it to the loop."""
        assert parcel.rows is not None
        self.rows = parcel.rows.rows
        self.feed.handed.append((self.number, parcel.rows))
        return parcel.batch


class _LoadedRound(Iterator[Any]):
    """A round on a device that loads."""

    def __init__(self, course: Course, iterator: Iterator[Any]) -> None:
        self._course, self._iterator = course, iterator
        self._round, self._index = course.rounds, 0
        self._ahead: Parcel | None = None
        self._cause: Exception | None = None
        self._over = False

    def __next__(self) -> Any:
        if self._over:
            raise StopIteration
        parcel = self._ahead or self._load()
        self._ahead = None
        if parcel.rows is None:
            self._over = True
            if parcel.problem is not None:
                raise DataError(parcel.problem) from self._cause
            raise StopIteration
        if self._may_load_ahead():
            self._ahead = self._load()
        return self._course.hand_out(parcel)

    def _may_load_ahead(self) -> bool:
        course = self._course
        more = course.length is None or self._index < course.length
        return course.ahead and course.draws is False and more

    def _load(self) -> Parcel:
        """Load the next batch, tell the other ranks, and keep this rank's rows."""
        course, feed, index = self._course, self._course.feed, self._index
        # The first batch of a round tells nothing about draws: samplers are seeded there.
        before = Streams.capture() if course.ahead and index and not course.draws else None
        own, batch = self._parcel(), None
        messages: list[tuple[int, Message]] = []
        try:
            batch = next(self._iterator)
            own, messages = self._share(batch)
        except StopIteration:
            if feed.compares and course.length is not None and index < course.length:
                own = self._failed(DataError(f"it ended after {index} of {course.length} batches"))
            messages = self._to_all(own)
        except Exception as error:
            own = self._failed(error)
            messages = self._to_all(own)
        if before is not None:
            course.draws = before != Streams.capture()
        if feed.compares and (index == 0 or course.length is None):
            copies.compare(feed.transport, copies.card(batch, own), course.what)
        feed.send(messages, f"batch {index} of the {course.what} data")
        self._index += 1
        return own

    def _failed(self, error: Exception) -> Parcel:
        self._cause = error
        text = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
        where = f"batch {self._index} of the {self._course.what} data"
        problem = f"{self._course.feed.name} could not load {where}: {text}"
        return self._parcel(problem=problem[:LONGEST_PROBLEM])

    def _parcel(self, **content: Any) -> Parcel:
        return Parcel(self._course.number, self._round, self._index, **content)

    def _share(self, batch: Any) -> tuple[Parcel, list[tuple[int, Message]]]:
        course, feed = self._course, self._course.feed
        rows, axes = feed.rows_of(batch, course.axes)
        course.axes = course.axes or axes
        indices = _indices(course.loader, self._index) if feed.peers else None

        def part(intervals: Sequence[tuple[int, int]]) -> Parcel:
            mine = sum(stop - start for start, stop in intervals)
            first = intervals[0][0] if intervals else 0
            taken = take_rows(batch, rows, intervals, axes=axes)
            own = BatchRows(rows, mine, axes, first)
            return self._parcel(batch=taken, rows=own, indices=indices)

        made: dict[tuple[tuple[int, int], ...], Message] = {}
        messages = []
        for rank in feed.peers:  # all are made before any is sent: an error must reach everyone
            intervals = tuple(joined(course.rows_for(rank, rows)))
            if intervals not in made:
                made[intervals] = part(intervals).to_message(feed.session, "batch")
            messages.append((rank, made[intervals]))
        return part(joined(course.rows_for(feed.rank, rows))), messages

    def _to_all(self, parcel: Parcel) -> list[tuple[int, Message]]:
        feed = self._course.feed
        if not feed.peers:
            return []
        message = parcel.to_message(feed.session, "the end of the data")
        return [(rank, message) for rank in feed.peers]


class _ReceivedRound(Iterator[Any]):
    """A round on a device that gets its rows from the owner."""

    def __init__(self, course: Course) -> None:
        self._course = course
        self._round, self._index = course.rounds, 0
        self._over = False
        _start_indices(course.loader)

    def __next__(self) -> Any:
        if self._over:
            raise StopIteration
        course = self._course
        parcel = course.feed.take(course.number, self._round, course.what)
        if parcel.index != self._index:
            raise TransportError(
                f"batch {parcel.index} of the {course.what} data came instead of {self._index}"
            )
        self._index += 1
        if parcel.rows is None:
            self._over = True
            if parcel.problem is not None:
                raise DataError(parcel.problem)
            raise StopIteration
        _add_indices(course.loader, parcel.indices)
        return course.hand_out(parcel)


def _tracker(loader: Any) -> _IndexBatchSamplerWrapper | None:
    """Lightning's list of the samples in each batch of a prediction, which writers ask for."""
    sampler = getattr(loader, "batch_sampler", None)
    return sampler if isinstance(sampler, _IndexBatchSamplerWrapper) else None


def _indices(loader: Any, index: int) -> list[Any] | None:
    tracker = _tracker(loader)
    return tracker.seen_batch_indices[index] if tracker is not None else None


def _start_indices(loader: Any) -> None:
    tracker = _tracker(loader)
    if tracker is not None:
        tracker.seen_batch_indices = []


def _add_indices(loader: Any, indices: list[Any] | None) -> None:
    tracker = _tracker(loader)
    if tracker is not None and indices is not None:
        tracker.seen_batch_indices.append(indices)
