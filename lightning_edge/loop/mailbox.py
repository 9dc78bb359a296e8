"""Messages about logs and metrics between the devices of the last stage and all others.

Messages from one device arrive in the order in which they were sent, but are not always asked for
in that order: a progress bar on rank 0 may want the value of a metric before anyone else does. What
is not wanted yet waits on a shelf, under its kind and key.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

from lightning_edge.train.codec import decode, encode
from lightning_edge.train.transport import Channel, Transport

__all__: list[str] = []

# At most this many messages wait unread at a device before the sender waits for it.
WINDOW = 16
_runs: WeakKeyDictionary[Transport, int] = WeakKeyDictionary()  # mailboxes made so far


class Mailbox:
    """Sends and receives objects of plain types and tensors, each under a kind and a key.

    Args:
        transport: Carries them; None if there is only one device.
        rank: This device.
    """

    def __init__(self, transport: Transport | None, rank: int) -> None:
        self._transport, self._rank = transport, rank
        # A message of an earlier run that nobody asked for may still be in a stream.
        self._run = 0
        if transport is not None:
            self._run = _runs[transport] = _runs.get(transport, 0) + 1
        self._shelf: dict[int, dict[tuple[Any, ...], Any]] = {}

    def open(self, senders: Iterable[int], everyone: Iterable[int]) -> None:
        """Open the streams from each of `senders` to `everyone` that start or end here."""
        ends = set(everyone) if self._rank in set(senders) else set(senders)
        for peer in sorted(ends - {self._rank}):
            assert self._transport is not None, "several devices need a transport"
            self._transport.open(peer, Channel.RECORD, WINDOW)

    def post(self, peers: Iterable[int], kind: str, key: Hashable, obj: Any, what: str) -> None:
        """Send `obj` to each of `peers` (this device itself is left out) without waiting."""
        message = None
        for peer in peers:
            if peer != self._rank:
                assert self._transport is not None, "several devices need a transport"
                message = encode([self._run, kind, key, obj]) if message is None else message
                self._transport.send(peer, Channel.RECORD, message, what=what)

    def take(self, peer: int, kind: str, key: Hashable, what: str) -> Any:
        """Wait for the object that `peer` posted under this kind and key.

        Raises:
            TransportTimeout: Names the device and `what` was waited for.
        """
        shelf = self._shelf.setdefault(peer, {})
        while (kind, key) not in shelf:
            assert self._transport is not None, "several devices need a transport"
            run, *name, obj = decode(self._transport.receive(peer, Channel.RECORD, what=what))
            if run == self._run:
                shelf[tuple(name)] = obj
        return shelf.pop((kind, key))

    def drop(self, kind: str, older_than: tuple[str, int]) -> None:
        """Forget what waits under keys (name, number) of the same name and a smaller number."""
        name, number = older_than
        for shelf in self._shelf.values():
            for found, key in [*shelf]:
                if found == kind and isinstance(key, tuple) and key[0] == name and key[1] < number:
                    del shelf[found, key]
