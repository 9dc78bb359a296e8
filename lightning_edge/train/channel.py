"""Ordered streams of messages between two devices, received ahead of need.

gloo moves data only into a posted buffer and ends the process if the message is longer. So a
receiver keeps ``window`` buffers posted, and how big buffer i is follows from the sizes of messages
0 .. i - window alone, which both ends know when they need it:

    message     0      1      2      3      4        window = 2
    size       10 K   20 K  900 K   20 K   20 K      first capacity 64 K
    buffer     64 K   64 K   64 K   64 K   1.1 M     = 1.25 x the largest of the last 64 sizes
                              |                        before i - window + 1, never under 64 K
                              +-- too long: a note goes into the buffer, and the message itself
                                  into one of its exact size, posted when the note is read

Every message also carries the sender's window. When a stream is opened again with a larger one, the
receiver adds buffers at the very message from which the sender counts on them.
"""

from __future__ import annotations

import time
from collections import deque
from datetime import timedelta
from enum import IntEnum
from typing import TYPE_CHECKING

import psutil
from torch import Tensor

from lightning_edge.errors import TransportError
from lightning_edge.train.alarm import Alarm
from lightning_edge.train.buffers import Buffers
from lightning_edge.train.counters import PeerCounters
from lightning_edge.train.gloo import Mesh
from lightning_edge.train.message import KIND_GROW, Prefix, grow_note, read_prefix

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Work

    from lightning_edge.train.staging import Courier, Ready, Waitable

__all__ = ["Channel", "Inbox", "Outbox", "Slots"]

FIRST_CAPACITY_BYTES = 64 << 10
REMEMBERED = 64  # sizes; a larger message is forgotten after this many smaller ones
PAGE_BYTES = 4096
CONTROL_LIMIT_BYTES = 1 << 20  # a checkpoint's tensor must not leave its size in memory for long


class Channel(IntEnum):
    """What a stream is for; streams of different channels do not wait for each other."""

    FORWARD = 0
    BACKWARD = 1
    DATA = 2
    RECORD = 3
    CONTROL = 4

    @property
    def tag(self) -> int:
        """The tag of the posted buffers; the next one is that of messages too long for them."""
        return 2 * self.value

    @property
    def limit(self) -> int | None:
        """The largest posted buffer, in bytes; None for whatever the messages need."""
        return CONTROL_LIMIT_BYTES if self in (Channel.RECORD, Channel.CONTROL) else None


class Slots:
    """Capacities of the posted buffers, counted in the same way by both ends.

    Args:
        window: Number of buffers.
        limit: Capacities stay below this; for streams where large messages are rare.
    """

    def __init__(self, window: int, limit: int | None = None) -> None:
        self.window, self._limit = window, limit
        self.capacities = deque([FIRST_CAPACITY_BYTES] * window)
        self._sizes: deque[int] = deque(maxlen=REMEMBERED)

    def widen(self, window: int) -> list[int]:
        """Add buffers up to ``window``; return the capacities of the new ones."""
        added = [self._capacity()] * (window - self.window)
        self.capacities.extend(added)
        self.window = max(window, self.window)
        return added

    def use(self, size: int) -> int:
        """Record that a message of ``size`` used the oldest buffer; return the next's capacity."""
        self._sizes.append(size)
        self.capacities.popleft()
        self.capacities.append(self._capacity())
        return self.capacities[-1]

    def _capacity(self) -> int:
        pages = -(-max(self._sizes, default=0) * 5 // (4 * PAGE_BYTES))
        capacity = max(FIRST_CAPACITY_BYTES, pages * PAGE_BYTES)
        return capacity if self._limit is None else min(capacity, self._limit)


class Outbox:
    """The sending end of a stream."""

    def __init__(
        self,
        mesh: Mesh,
        alarm: Alarm,
        peer: int,
        channel: Channel,
        window: int,
        courier: Courier,
    ) -> None:
        self._mesh, self._alarm, self._peer, self._tag = mesh, alarm, peer, channel.tag
        self._courier, self._by_courier = courier, False
        self._slots = Slots(window, channel.limit)
        self._underway: deque[tuple[list[Waitable], str]] = deque()

    def widen(self, window: int) -> None:
        """Count on ``window`` posted buffers from the next message on."""
        self._slots.widen(window)

    def send(self, data: Tensor, what: str, ready: Ready | None = None) -> None:
        """Start to send a packed message, which belongs to the outbox from now on.

        Args:
            data: The message, packed with this outbox's ``window``, or where it will be once
                ``ready`` has been waited for.
            what: What it is, for errors.
            ready: Tells when ``data`` is complete.
        """
        self._alarm.check()
        size = data.numel()
        parts = [(data, self._tag)]
        if size > self._slots.capacities[0]:
            note = grow_note(size, window=self._slots.window)
            parts = [(note, self._tag), (data, self._tag + 1)]
        self._slots.use(size)

        def begin() -> list[Waitable]:
            return [self._mesh.send(part, self._peer, tag) for part, tag in parts]

        # Once one message of a stream has gone by courier the others must not overtake it.
        self._by_courier = self._by_courier or ready is not None
        if self._by_courier:
            self._underway.append(([self._courier.start(ready, begin)], what))
            return
        try:
            self._underway.append((begin(), what))
        except RuntimeError:
            error = self._alarm.broken([self._peer], f"sending {what}")
            raise error from None

    def reap(self, keep: int, timeout: timedelta, counters: PeerCounters) -> None:
        """Wait until at most ``keep`` messages are underway."""
        if len(self._underway) <= keep:
            return
        start_s = time.perf_counter()
        while len(self._underway) > keep:
            works, what = self._underway.popleft()
            for work in works:
                self._alarm.wait(work, timeout, [self._peer], f"room to send {what}")
        counters.send_wait_s += time.perf_counter() - start_s

    @property
    def window(self) -> int:
        """Number of buffers that the receiver keeps posted."""
        return self._slots.window


class Inbox:
    """The receiving end of a stream."""

    def __init__(
        self,
        mesh: Mesh,
        alarm: Alarm,
        peer: int,
        channel: Channel,
        window: int,
        buffers: Buffers,
    ) -> None:
        self._mesh, self._alarm, self._peer, self._tag = mesh, alarm, peer, channel.tag
        self._buffers = buffers
        self._slots = Slots(window, channel.limit)
        self._posted: deque[tuple[Work, Tensor]] = deque()
        self._widest = window
        for capacity in self._slots.capacities:
            self._posted.append(self._post(capacity, self._tag))

    def widen(self, window: int) -> None:
        """Allow the sender to count on ``window`` buffers; they are posted when it does."""
        self._widest = max(window, self._widest)

    def receive(self, what: str, timeout: timedelta) -> tuple[Tensor, Prefix]:
        """Wait for the next message; return its bytes, unchecked but for the prefix."""
        self._alarm.check()
        work, data = self._posted.popleft()
        self._alarm.wait(work, timeout, [self._peer], what)
        prefix = read_prefix(data)
        if prefix.window > self._widest:
            raise TransportError(
                f"{self._alarm.names[self._peer]} opened this stream with window {prefix.window}, "
                f"here it is {self._widest}: both ends must open it alike"
            )
        for capacity in self._slots.widen(prefix.window):
            self._posted.append(self._post(capacity, self._tag))
        self._posted.append(self._post(self._slots.use(prefix.total_bytes), self._tag))
        if prefix.kind == KIND_GROW:
            work, data = self._post(prefix.total_bytes, self._tag + 1)
            self._alarm.wait(work, timeout, [self._peer], what)
            prefix = read_prefix(data)
        return data, prefix

    def _post(self, capacity: int, tag: int) -> tuple[Work, Tensor]:
        try:
            if capacity > psutil.virtual_memory().total:  # most systems would promise it
                raise RuntimeError("this device has not so much")
            data = self._buffers.get(capacity)
        except (RuntimeError, TypeError, OverflowError) as error:
            sender = self._alarm.names[self._peer]
            raise TransportError(
                f"no memory for a message of {capacity} bytes from {sender}: {error}"
            ) from None
        try:
            return self._mesh.receive(data, self._peer, tag), data
        except RuntimeError:
            reason = self._alarm.broken([self._peer], "posting a receive")
        raise reason
