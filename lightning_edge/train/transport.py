"""Messages and sums between the devices of a run; the only door to the network.

    transport.open(peer, Channel.FORWARD, window=3)         both ends, once
    transport.send(peer, Channel.FORWARD, message)          returns at once
    transport.receive(peer, Channel.FORWARD) -> Message     in order, posted ahead

Nothing above this module knows what gloo wants (`train.channel`), how a failure spreads
(`train.alarm`) or how bytes are laid out (`train.message`). No default process group is made:
``torch.distributed.is_initialized()`` stays False, so no library synchronises behind our back.
"""

from __future__ import annotations

import atexit
import logging
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_edge.errors import EdgeError, TransportError
from lightning_edge.train import collectives, heartbeat
from lightning_edge.train.alarm import Alarm
from lightning_edge.train.buffers import Buffers
from lightning_edge.train.channel import Channel, Inbox, Outbox
from lightning_edge.train.counters import Counters
from lightning_edge.train.gloo import Mesh
from lightning_edge.train.message import VERSION, Message, unpack
from lightning_edge.train.reduction import Reducer, Reduction, sleep_until
from lightning_edge.train.rendezvous import bounded, meet
from lightning_edge.train.staging import Courier, Staging

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

__all__ = ["Channel", "Message", "Reduction", "Transport"]

log = logging.getLogger(__name__)

CONTROL_WINDOW = 2
CLOSING_S = 10.0  # the most that an orderly end waits for the others
WORD_S = 1.0  # the most that a question to the store may take once the run has failed


class Transport:
    """One device's connections to all others of the run.

    A (peer, channel, direction) is a stream whose messages arrive in order; one thread at a time
    may use it. Every wait ends after ``timeout`` and the error names who and what was waited for.
    Such an error is final: it ends the transport on all devices.

    Args:
        store: Where the devices find each other (`train.rendezvous.connect`).
        rank: This device.
        world_size: Number of devices; all of them make their transport at the same time.
        timeout: The most that any wait may take.
        names: What the user calls each device, by rank; shown in errors.
        latency_s: Test aid: no message and no sum arrives sooner than this after it was sent.
        device: Where this device computes. For CUDA, messages arrive in page-locked memory, from
            which ``tensor.to(device, non_blocking=True)`` does not wait.

    Raises:
        TransportTimeout: Names the devices that did not come.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        world_size: int,
        *,
        timeout: timedelta,
        names: Sequence[str] | None = None,
        latency_s: float = 0.0,
        device: torch.device | None = None,
    ) -> None:
        from torch._C._distributed_c10d import PrefixStore

        self.rank, self.world_size, self.timeout = rank, world_size, timeout
        self.latency_s = latency_s
        self.names = tuple(
            f"rank {r} ({names[r]})" if names and names[r] else f"rank {r}"
            for r in range(world_size)
        )
        self._counters = Counters()
        self._buffers = Buffers()
        self._pinned = Buffers(pinned=True) if device and device.type == "cuda" else self._buffers
        self._staging, self._courier = Staging(self._buffers), Courier()
        self._outboxes: dict[tuple[int, Channel], Outbox] = {}
        self._inboxes: dict[tuple[int, Channel], Inbox] = {}
        # A second transport on the same store must not meet the first one's keys.
        number = store.add(f"lightning_edge/transports of {rank}", 1)
        self._store = PrefixStore(f"lightning_edge/{number}", store)
        self._alarm = Alarm(self._store, rank, self.names)
        self._reducer = Reducer(
            self._store, rank, self._alarm, timeout, self._staging, self._courier, latency_s
        )
        self._mesh: Mesh | None = None
        if world_size > 1:
            place = f"all devices (wire format {VERSION})"
            meet(self._store, place, rank, range(world_size), self.names, timeout)
            self._mesh = self._connect()
            self._alarm.guard(self._mesh)
            self._alarm.watch(self._mesh)
            self._alarm.listen(heartbeat.join(self._store, rank, world_size))
            for peer in self.peers:
                self.open(peer, Channel.CONTROL, CONTROL_WINDOW)
            atexit.register(self._at_exit)

    def _connect(self) -> Mesh:
        try:
            return Mesh(self._store, "messages", self.rank, self.world_size, self.timeout)
        except RuntimeError as error:
            raise TransportError(
                f"{self.names[self.rank]} found the others but cannot connect to them ({error})."
                " Set GLOO_SOCKET_IFNAME on each device to its network interface in their common"
                " network (`ip -brief address` lists them), and let the firewall pass their ports"
            ) from None

    @property
    def peers(self) -> tuple[int, ...]:
        """All other ranks."""
        return tuple(peer for peer in range(self.world_size) if peer != self.rank)

    # ---- messages ----

    def open(self, peer: int, channel: Channel, window: int) -> None:
        """Open the streams to and from a peer; it must do the same.

        Args:
            peer: The other end.
            channel: Which pair of streams.
            window: Messages that may arrive before this device asks for them: ``window + 1`` sends
                never wait for the receiver to ask. May be raised later, between two messages.
        """
        if self._mesh is None or peer not in self.peers or window < 1:
            raise TransportError(f"cannot open a stream to rank {peer} with window {window}")
        if (peer, channel) in self._outboxes:
            self._outboxes[peer, channel].widen(window)
            self._inboxes[peer, channel].widen(window)
            return
        mesh, alarm = self._mesh, self._alarm
        buffers = self._buffers if channel.limit else self._pinned
        self._outboxes[peer, channel] = Outbox(mesh, alarm, peer, channel, window, self._courier)
        self._inboxes[peer, channel] = Inbox(mesh, alarm, peer, channel, window, buffers)

    def send(
        self,
        peer: int,
        channel: Channel,
        message: Message,
        what: str = "a message",
        *,
        wire_dtype: torch.dtype | None = None,
    ) -> None:
        """Start to send a message. It is copied: its tensors may be changed at once.

        Waits only when ``window + 1`` earlier messages of this stream have not been taken.

        Args:
            peer: The receiver.
            channel: Which stream.
            message: What to send.
            what: What it is, for errors, such as "the activations of micro-batch 3".
            wire_dtype: Wider floating tensors travel as this and arrive in their own dtype.

        Raises:
            TransportError: The message cannot travel.
            TransportTimeout: The receiver did not take the earlier messages.
            PeerError: A device failed.
        """
        outbox = self._stream(self._outboxes, peer, channel)
        counters = self._counters.peers[peer]
        outbox.reap(outbox.window, self.timeout, counters)
        start_s = time.perf_counter()
        sent_ns = time.monotonic_ns() if self.latency_s else 0
        data, ready = self._staging.pack(message, wire_dtype, outbox.window, sent_ns)
        self._counters.pack_s += time.perf_counter() - start_s
        outbox.send(data, what, ready)
        counters.bytes_sent += data.numel()
        counters.messages_sent += 1

    def receive(
        self,
        peer: int,
        channel: Channel,
        what: str = "a message",
        *,
        timeout: timedelta | None = None,
    ) -> Message:
        """Wait for the stream's next message.

        Args:
            peer: The sender.
            channel: Which stream.
            what: What it is, for errors.
            timeout: Instead of the transport's.

        Returns:
            The message; its CPU tensors share one buffer that is theirs alone.

        Raises:
            TransportTimeout: Nothing came; names the peer, what, and the seconds.
            PeerError: A device failed first.
            TransportError: What came is not a message.
        """
        inbox = self._stream(self._inboxes, peer, channel)
        counters = self._counters.peers[peer]
        start_s = time.perf_counter()
        data, prefix = inbox.receive(what, timeout or self.timeout)
        if self.latency_s:
            sleep_until(prefix.sent_ns, self.latency_s)
        arrived_s = time.perf_counter()
        message = unpack(data, prefix)
        counters.receive_wait_s += arrived_s - start_s
        counters.bytes_received += prefix.total_bytes
        counters.messages_received += 1
        self._counters.unpack_s += time.perf_counter() - arrived_s
        return message

    def flush(self) -> None:
        """Wait until all messages sent so far have been taken."""
        for (peer, _), outbox in self._outboxes.items():
            outbox.reap(0, self.timeout, self._counters.peers[peer])

    # ---- sums ----

    def all_reduce(self, ranks: Sequence[int], flat: Tensor) -> Reduction:
        """Start to replace ``flat`` by its sum over ``ranks``, in place.

        All of ``ranks`` start the reductions of that set in the same order; several may be underway
        at once. The tensor must be left alone until the result's ``wait`` returns.

        Args:
            ranks: Who takes part, this device included; the first use of a set makes its group.
            flat: A contiguous tensor, of the same size and dtype on all of them.
        """
        return self._reducer.all_reduce(ranks, flat, self._counters)

    # ---- objects, by all devices at the same time ----

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """Return rank ``src``'s object on all ranks (`train.codec` says of which types)."""
        return collectives.broadcast(self, obj, src)

    def all_gather(self, obj: Any) -> list[Any]:
        """Return the objects of all ranks, by rank, on all of them."""
        return collectives.all_gather(self, obj)

    def gather(self, obj: Any, dst: int) -> list[Any] | None:
        """Return the objects of all ranks, by rank, on rank ``dst``; None elsewhere."""
        return collectives.gather(self, obj, dst)

    def barrier(self, what: str = "barrier", *, timeout: timedelta | None = None) -> None:
        """Wait until all ranks have come to the barrier of that name."""
        collectives.barrier(self, what, timeout)

    # ---- counters ----

    @property
    def counters(self) -> Counters:
        """What was sent, received and waited for; live."""
        return self._counters

    def reset_counters(self) -> Counters:
        """Start counting from zero; return what was counted so far."""
        # Reductions underway go on counting in the old ones.
        counted, self._counters = self._counters, Counters()
        return counted

    # ---- the end ----

    def close(self) -> None:
        """End in order: called by all devices, returns when all messages have arrived.

        After a failure, and when some device does not come, it only closes the connections.
        """
        mesh, self._mesh = self._mesh, None
        if mesh is None:
            return
        patience, patience_s = min(self.timeout, timedelta(seconds=CLOSING_S)), 0.0
        try:
            self.flush()
            self.barrier("the end", timeout=patience)
            self._alarm.farewell(mesh, patience)
            patience_s = patience.total_seconds()  # for the others' farewells
        except EdgeError as error:
            log.warning("%s ended without the others: %s", self.names[self.rank], error)
        finally:
            self._drop(patience_s)

    def abort(self, reason: str | BaseException) -> None:
        """End at once, and end everybody's waiting with this device's reason."""
        if self._mesh is None:
            return
        self._mesh = None
        text = reason if isinstance(reason, str) else f"{type(reason).__name__}: {reason}"
        self._alarm.publish(text)
        self._drop(0.0)

    # ---- after the end ----

    def leave_word(self, key: str, text: str) -> None:
        """Leave a word for the others in the run's store, if that is left."""
        bounded(lambda: self._store.set(f"word/{key}", text), WORD_S)

    def read_word(self, key: str) -> tuple[bool, str | None]:
        """Return whether the store is left, and the word that somebody left there, if any."""
        place = f"word/{key}"
        found = bounded(lambda: self._store.check([place]), WORD_S)
        if not found:
            return found is not None, None
        text = bounded(lambda: self._store.get(place), WORD_S)
        return text is not None, None if text is None else text.decode("utf-8", "replace")

    def __enter__(self) -> Transport:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort(error)

    def _at_exit(self) -> None:
        # Threads that wake up in C++ while the interpreter ends would crash it.
        error = getattr(sys, "last_value", None)
        self.abort(error or "its process ended without closing the transport")

    def _drop(self, patience_s: float) -> None:
        atexit.unregister(self._at_exit)
        self._alarm.end(patience_s)
        self._courier.close(CLOSING_S)
        self._outboxes.clear()
        self._inboxes.clear()
        self._reducer.clear()

    def _stream(self, boxes: dict[tuple[int, Channel], Any], peer: int, channel: Channel) -> Any:
        if (peer, channel) not in boxes:
            self._alarm.check()
            raise TransportError(
                f"{self.names[self.rank]} has no open {channel.name} stream with rank {peer}"
            )
        return boxes[peer, channel]
