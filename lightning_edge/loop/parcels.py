"""Batches on their way from the device that loads to those that compute.

All loaders of a run share one stream of messages per device, because a device must be able to ask
for a batch of any of them next. What was not asked for yet waits on the shelf of its loader:

    sent       train 0.5   val 1.0   val 1.1   train 0.6      loader, round . batch
    asked for              val 1.0   -> takes train 0.5 off the stream too, onto its shelf

Every iteration over a loader is a round. A round left early (a limit, early stopping) leaves
parcels behind that were sent ahead; they are of an older round than what is asked for, and dropped.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_edge.errors import DataError, TransportError
from lightning_edge.train.codec import decode, encode
from lightning_edge.train.microbatch import BatchRows
from lightning_edge.train.transport import Channel, Message, Transport

__all__: list[str] = []

CARD = 0  # the round of a parcel that is about a loader and holds no batch; rounds count from 1
NO_LOADER = -1
FIRST_WINDOW = 2  # a batch that is asked for, and the one behind it


@dataclass(frozen=True)
class Parcel:
    """One turn of a loader, for one device.

    Attributes:
        loader: Number of the loader.
        round: Number of the iteration over it.
        index: Number of the batch within the round.
        batch: The device's rows; None behind the last batch.
        rows: Of the batch; None if the round ends here.
        indices: The samples in the whole batch, where Lightning keeps track of them.
        problem: Why there is no batch, if loading failed.
    """

    loader: int
    round: int
    index: int
    batch: Any = None
    rows: BatchRows | None = None
    indices: list[Any] | None = None
    problem: str | None = None

    def to_message(self, session: int, what: str) -> Message:
        """Pack the parcel.

        Raises:
            DataError: The batch holds something that cannot be sent; says where.
        """
        rows = self.rows.to_plain() if self.rows is not None else None
        head = [session, self.loader, self.round, self.index, rows, self.indices, self.problem]
        message, label = encode(self.batch, what), encode(head)
        message.meta["label"] = label.meta["tree"]
        message.tensors.update({f"label {key}": value for key, value in label.tensors.items()})
        return message

    @staticmethod
    def from_message(message: Message) -> tuple[int, Parcel]:
        """Return the session and the parcel of a message.

        Raises:
            TransportError: The message is not a parcel.
        """
        try:
            of_label = [key for key in message.tensors if key.startswith("label ")]
            tensors = {key.removeprefix("label "): message.tensors.pop(key) for key in of_label}
            head = decode(Message({"tree": message.meta.pop("label")}, tensors))
            session, loader, number, index, rows, indices, problem = head
            found = BatchRows.from_plain(rows) if rows is not None else None
        except (LookupError, TypeError, ValueError) as error:
            raise TransportError(f"a received batch is damaged: {error!r}") from None
        return session, Parcel(loader, number, index, decode(message), found, indices, problem)


class Post:
    """Sends and receives parcels.

    Args:
        transport: Carries them.
        owner: The rank that loads.
    """

    def __init__(self, transport: Transport, owner: int) -> None:
        self._transport, self._owner = transport, owner
        self._shelves: dict[int, deque[Parcel]] = {}
        self.session = 0
        self.peers = [rank for rank in range(transport.world_size) if rank != owner]

    def share(self, number: int, card: dict[str, Any], what: str) -> dict[str, Any]:
        """Return what the owner says of its next loader; every device calls it for each loader.

        Args:
            number: Of the loader.
            card: What is known of it, on the owner.
            what: What its data is for, in messages.

        Raises:
            DataError: The owner goes on without another loader.
        """
        window = FIRST_WINDOW if number == 0 else 0
        if self._transport.rank == self._owner:
            self._open(window)
            self.session = self.session or int.from_bytes(os.urandom(4), "little")
            # One batch of each loader may be underway that nobody has asked for yet.
            card = {**card, "window": len(self._shelves) + FIRST_WINDOW}
            message = Parcel(number, CARD, 0, card).to_message(self.session, "a loader")
            self.send([(peer, message) for peer in self.peers], f"word of a {what} loader")
        else:
            self._open(window)
            card = self._card(number, what)
        self._open(card["window"])
        return card

    def _card(self, number: int, what: str) -> dict[str, Any]:
        while True:
            session, parcel = self._receive(f"word of a {what} loader")
            if parcel.round == CARD and parcel.loader == number:
                self.session = session
                card: dict[str, Any] = parcel.batch
                return card
            self._keep(session, parcel)

    def _open(self, window: int) -> None:
        for peer in self.peers if self._transport.rank == self._owner else [self._owner]:
            if window:
                self._transport.open(peer, Channel.DATA, window)

    def expect(self, number: int, loader: object) -> None:
        """Keep parcels of a loader for as long as it lives."""
        self._shelves[number] = deque()
        weakref.finalize(loader, self._shelves.pop, number, None).atexit = False

    def send(self, messages: Sequence[tuple[int, Message]], what: str) -> None:
        """Send a message to each of several ranks."""
        for peer, message in messages:
            self._transport.send(peer, Channel.DATA, message, what=what)

    def take(self, number: int, round_: int, what: str) -> Parcel:
        """Wait for the next parcel of a loader's round.

        Raises:
            TransportTimeout: The owner did not send it in time.
            DataError: The owner is at another round, or at another loader.
        """
        shelf = self._shelves[number]
        while True:
            while shelf:
                parcel = shelf.popleft()
                if parcel.round == round_:
                    return parcel
                if parcel.round > round_:
                    raise DataError(
                        f"rank {self._owner} iterates the {what} loader for round"
                        f" {parcel.round}, this device for round {round_}: all devices have to run"
                        f" the same loops"
                    )
            self._keep(*self._receive(f"a batch of {what} data"))

    def clear(self) -> None:
        """Say, or wait to hear, that no parcel of this session follows."""
        if self.session == 0:
            return
        if self._transport.rank == self._owner:
            farewell = Parcel(NO_LOADER, CARD, 0).to_message(self.session, "the end of the data")
            self.send([(peer, farewell) for peer in self.peers], "the end of the data")
            return
        ended = False
        while not ended:
            session, parcel = self._receive("the end of the data")
            ended = session == self.session and parcel.loader == NO_LOADER

    def _receive(self, what: str) -> tuple[int, Parcel]:
        text = f"{what}, which rank {self._owner} loads (a slow loader needs timeout=)"
        # It may be a batch for the training loop while validation runs in inference mode: the
        # transport makes normal tensors of it all the same.
        message = self._transport.receive(self._owner, Channel.DATA, what=text)
        return Parcel.from_message(message)

    def _keep(self, session: int, parcel: Parcel) -> None:
        if session != self.session:
            return
        if parcel.round == CARD:
            raise DataError(
                f"rank {self._owner} has other loaders for the Trainer than this device: give it"
                f" the same lists and dicts of loaders on every rank, with [] in the place of each"
                f" loader whose data is on another device"
            )
        shelf = self._shelves.get(parcel.loader)
        if shelf is not None:
            shelf.append(parcel)
