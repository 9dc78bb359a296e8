"""Between accelerators and the network: page-locked host memory, copied to without waiting.

    compute stream   | forward 3        | forward 4 ...
    side stream                         | copy to pinned memory |o event
    courier thread                                               wait | send
    main thread      launch, send()       launch ...

gloo reads host memory, and must not before the copy is done. Waiting for that in ``send`` would
leave the device idle until the next launch, so a thread waits instead, and starts sends in order.
Messages from CPU memory need none of this and are sent at once.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Protocol

import torch
from torch import Tensor

from lightning_edge.train.buffers import Buffers
from lightning_edge.train.message import Message, pack

__all__ = ["Courier", "Departure", "Ready", "Staging", "Waitable"]


class Waitable(Protocol):
    """What can be waited for; raises a RuntimeError when the time is over or it failed."""

    def wait(self, timeout: timedelta) -> object:
        """Wait until it is done."""


class Ready(Protocol):
    """Tells when data has arrived in host memory, as a ``torch.cuda.Event`` does."""

    def synchronize(self) -> None:
        """Wait for it."""


class Departure:
    """Work that the courier will start; done when it was started and is done."""

    def __init__(self, begin: Callable[[], Sequence[Waitable]]) -> None:
        self._begin = begin
        self._begun = threading.Event()
        self._works: Sequence[Waitable] = ()
        self._error: RuntimeError | None = None

    def begin(self, ready: Ready | None) -> None:
        """Start the work once the data is ready; called by the courier."""
        try:
            if ready is not None:
                ready.synchronize()
            self._works = self._begin()
        except RuntimeError as error:
            self._error = error
        self._begun.set()

    def wait(self, timeout: timedelta) -> None:
        """Wait until the work is done."""
        if not self._begun.wait(timeout.total_seconds()):
            raise RuntimeError("Timed out waiting for the accelerator")
        if self._error is not None:
            raise self._error
        for work in self._works:
            work.wait(timeout)


class Courier:
    """Starts works one after the other in a thread of its own, made when first needed."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Ready | None, Departure] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self, ready: Ready | None, begin: Callable[[], Sequence[Waitable]]) -> Departure:
        """Start work after all works given before, and after ``ready``."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="edge-courier", daemon=True)
            self._thread.start()
        departure = Departure(begin)
        self._queue.put((ready, departure))
        return departure

    def close(self, patience_s: float) -> None:
        """End the thread, after the works given so far if they take no longer than that."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(patience_s)
            self._thread = None

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            ready, departure = item
            departure.begin(ready)


class Staging:
    """Packs messages from wherever their tensors are.

    Args:
        buffers: Host memory for messages from the CPU.
    """

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers
        self._pinned = Buffers(pinned=True)
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def pack(
        self, message: Message, wire_dtype: torch.dtype | None, window: int, sent_ns: int
    ) -> tuple[Tensor, Ready | None]:
        """Pack a message; its bytes may be sent when the second result, if any, is ready."""

        def pack_into(buffers: Buffers) -> Tensor:
            return pack(
                message,
                wire_dtype=wire_dtype,
                get_buffer=buffers.get,
                window=window,
                sent_ns=sent_ns,
            )

        on_device = [tensor for tensor in message.tensors.values() if tensor.is_cuda]
        if not on_device:
            return pack_into(self._buffers), None
        with self._side_stream(on_device):
            return pack_into(self._pinned), self._record()

    def to_host(self, tensor: Tensor) -> tuple[Tensor, Ready | None]:
        """Return a tensor on the CPU, complete when the second result, if any, is ready."""
        if tensor.device.type != "cuda":
            return tensor.cpu(), None
        with self._side_stream([tensor]):
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            host.copy_(tensor, non_blocking=True)
            return host, self._record()

    def _side_stream(self, tensors: Sequence[Tensor]) -> torch.cuda.StreamContext:
        device = tensors[0].device  # a process has one
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream = self._streams[device]
        stream.wait_stream(torch.cuda.current_stream(device))
        for tensor in tensors:
            tensor.record_stream(stream)  # or its memory may be used again before the copy
        return torch.cuda.StreamContext(stream)

    @staticmethod
    def _record() -> Ready:
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call] # sleeps, not spins
        event.record()
        return event
