"""DataLoaders whose batches are those of the whole run, while every device sees only its rows.

`DataLoader(batch_size=64)` means 64 rows for all devices together, so that losses, schedules and
step counts are those of one device. Who reads the data is the strategy's `data=`:

    "owner"       rank 0 loads and sends each device the rows it computes on, one batch ahead
    {"owner": 2}  the same, by rank 2
    "every"       each device loads the whole batch from its own copy, and keeps its rows
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from torch.utils.data.distributed import DistributedSampler

from lightning_edge.errors import DataError
from lightning_edge.loop import copies
from lightning_edge.loop.parcels import Parcel, Post
from lightning_edge.loop.rounds import Course
from lightning_edge.loop.sample import FirstBatches, learn
from lightning_edge.loop.streams import Streams
from lightning_edge.loop.wrapped import EdgeLoader, StatefulEdgeLoader
from lightning_edge.train.axes import Axes
from lightning_edge.train.codec import encode
from lightning_edge.train.microbatch import (
    BatchRows,
    RowDims,
    RowsTree,
    as_tree,
    find_rows,
    tree_from_plain,
    tree_to_plain,
)
from lightning_edge.train.transport import Message, Transport

__all__ = ["EdgeLoader", "Feed"]

RowsFor: TypeAlias = "Callable[[int, int], Sequence[tuple[int, int]]]"
"""rows_for(rank, rows): the rows [start, stop) of a batch that a rank computes on."""


class Feed:
    """What all loaders of one run have in common.

    Args:
        transport: Connects the devices; None if there is only one process.
        data: "owner", `{"owner": rank}` or "every".
        row_dims: The module's `edge_row_dims`, if it has one.

    Attributes:
        handed: (loader, rows) of the batches that were handed to the loops and not yet used.

    Raises:
        DataError: `data` names no rank.
    """

    def __init__(
        self,
        transport: Transport | None,
        data: str | Mapping[str, int] = "owner",
        *,
        row_dims: RowDims | None = None,
    ) -> None:
        world_size = transport.world_size if transport is not None else 1
        self.rank = transport.rank if transport is not None else 0
        self.every = data == "every"
        self.owner = _owner(data, world_size)
        self.alone = world_size == 1
        self.row_dims = row_dims
        self.handed: list[tuple[int, BatchRows]] = []
        self.first_batches = FirstBatches()
        self._transport = transport
        self._post = None if transport is None or self.alone else Post(transport, self.owner)
        self._count = 0

    @property
    def transport(self) -> Transport:
        """The connection between the devices."""
        assert self._transport is not None, "one process has no transport"
        return self._transport

    @property
    def name(self) -> str:
        """What the user calls this device."""
        return self._transport.names[self.rank] if self._transport is not None else "rank 0"

    @property
    def loads(self) -> bool:
        """Whether this device loads batches."""
        return self.every or self.rank == self.owner

    @property
    def compares(self) -> bool:
        """Whether several devices load, and have to see that it is the same."""
        return self.every and not self.alone

    @property
    def peers(self) -> Sequence[int]:
        """The ranks that this device sends batches to."""
        return () if self.every or self._post is None or not self.loads else self._post.peers

    @property
    def session(self) -> int:
        """Tells the parcels of this run from those of an earlier one on the same connection."""
        return self._post.session if self._post is not None else 0

    def send(self, messages: Sequence[tuple[int, Message]], what: str) -> None:
        """Send parcels to other ranks."""
        if self._post is not None and messages:
            self._post.send(messages, what)

    def take(self, number: int, round_: int, what: str) -> Parcel:
        """Wait for a parcel from the owner."""
        assert self._post is not None, "one process receives nothing"
        return self._post.take(number, round_, what)

    def forget(self, number: int) -> None:
        """Drop what was handed out of a loader and never used."""
        self.handed = [(other, rows) for other, rows in self.handed if other != number]

    def wrap(self, loader: Any, rows_for: RowsFor, *, what: str = "training") -> EdgeLoader:
        """Share a loader among all devices; all of them have to call it in the same order.

        Args:
            loader: The user's.
            rows_for: Which rows are whose.
            what: What the data is for, in messages.

        Raises:
            DataError: The loader cannot be shared; on all devices.
        """
        loader = getattr(loader, "unwrapped", loader) if isinstance(loader, EdgeLoader) else loader
        number, self._count = self._count, self._count + 1
        card = self._agree(number, _card(loader, self.name) if self.loads else {}, what)
        stateful = bool(card["stateful"])
        course = Course(
            feed=self,
            loader=loader,
            number=number,
            rows_for=rows_for,
            what=what,
            length=card["length"],
            ahead=bool(self.peers) and not stateful,
        )
        if self.loads and self.row_dims is None and not self.alone:
            course.axes = learn(loader)
        edge_loader = StatefulEdgeLoader(course) if stateful else EdgeLoader(course)
        if self._post is not None and not self.every:
            self._post.expect(number, edge_loader)
        return edge_loader

    def _agree(self, number: int, card: dict[str, Any], what: str) -> dict[str, Any]:
        """Return what all ranks know of a loader from then on."""
        cards = [card]
        if self._post is not None and self.every:
            cards = self.transport.all_gather(card)
        elif self._post is not None:
            cards = [self._post.share(number, card, what)]
        problems = [other["problem"] for other in cards if other["problem"]]
        lengths = [other["length"] for other in cards]
        if not problems and len(set(lengths)) > 1:
            said = zip(self.transport.names, lengths, strict=True)
            text = ", ".join(f"{name} has {count} {what} batches" for name, count in said)
            problems = [f'with data="every" all need the same, but {text}']
        if problems:
            raise DataError("; ".join(dict.fromkeys(problems)))
        return cards[0]

    def sample(self, source: Any, *, sequential: bool) -> tuple[Any, RowsTree]:
        """Return the first batch of a loop, whole and the same on all ranks.

        Nothing that random numbers or workers depend on is disturbed. All ranks have to call it.

        Args:
            source: The loop's data source, a loader, or a collection of loaders.
            sequential: The loop goes through its loaders one after the other, as all but fit do.

        Returns:
            The batch and its rows.

        Raises:
            DataError: There is no batch, or it cannot be shared; on all ranks.
        """
        found: list[Any] = [None, None, None]
        cause = None
        before = Streams.capture()
        try:
            if self.compares:
                copies.align(self.transport, None)
            if self.loads:
                parts, arrange = self.first_batches.sample(source, sequential)
                batch = arrange([part for _, part in parts])
                tree = as_tree(arrange([self._whole(*part) for part in parts]))
                found = [None, batch, tree_to_plain(tree)]
                if not self.alone:
                    encode(batch, "batch")
        except Exception as error:
            cause = error
            text = (
                str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
            )
            found = [f"{self.name} could not load a first batch: {text}", None, None]
        finally:
            before.restore()
        if not self.alone:
            found = self.transport.broadcast(found, src=self.owner)
        if found[0] is not None or cause is not None:
            raise DataError(found[0] or str(cause)) from cause
        return found[1], tree_from_plain(found[2])

    def _whole(self, loader: Any, batch: Any) -> BatchRows:
        known = learn(loader) if self.row_dims is None else None
        rows, axes = self.rows_of(batch, known)
        return BatchRows(rows, rows, axes)

    def rows_of(self, batch: Any, known: Axes) -> tuple[int, Axes]:
        """Return the number of rows of a whole batch and where they are.

        Raises:
            DataError: There are none, and there is more than one device.
        """
        if batch is None:  # Lightning skips it
            return 0, None
        try:
            return find_rows(batch, self.row_dims, known)
        except DataError:
            if self.alone and self.row_dims is None:
                return 1, None  # one device takes anything, whole
            raise

    def close(self, *, orderly: bool = False) -> None:
        """Let go of what was kept for the run.

        Args:
            orderly: Take what was sent ahead off the connection; all ranks have to do so.
        """
        self.first_batches.close()
        self.handed = []
        if orderly and self._post is not None and not self.every:
            self._post.clear()


def _owner(data: str | Mapping[str, int], world_size: int) -> int:
    owner = data.get("owner") if isinstance(data, Mapping) else 0
    known = isinstance(data, Mapping) and set(data) == {"owner"} or data in ("owner", "every")
    if not known or isinstance(owner, bool) or not isinstance(owner, int):
        raise DataError(f'data={data!r} is not "owner", {{"owner": rank}} or "every"')
    if not 0 <= owner < world_size:
        raise DataError(
            f"data={data!r} names rank {owner}, but the ranks are 0 to {world_size - 1}"
        )
    return owner


def _card(loader: Any, name: str) -> dict[str, Any]:
    """What has to be known of a loader on all ranks."""
    stateful = hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
    card: dict[str, Any] = {"length": None, "stateful": stateful, "problem": None}
    batch_sampler = getattr(loader, "batch_sampler", None)
    inner = getattr(batch_sampler, "sampler", None)
    for sampler in (getattr(loader, "sampler", None), batch_sampler, inner):
        replicas = getattr(sampler, "num_replicas", 1)
        if isinstance(sampler, DistributedSampler) and replicas > 1:
            card["problem"] = (
                f"the DataLoader has a DistributedSampler for {replicas} replicas, which would"
                f" leave out samples: here batch_size is that of all devices together. Remove the"
                f" sampler"
            )
    try:
        card["length"] = len(loader)
    except (TypeError, NotImplementedError):
        pass
    except Exception as error:
        card["problem"] = f"len() of the loader failed on {name}: {type(error).__name__}: {error}"
    return card
