"""Sums over the devices that hold a parameter: one private group per set of holders."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_edge.errors import TransportError
from lightning_edge.train.alarm import Alarm
from lightning_edge.train.counters import Counters
from lightning_edge.train.gloo import Mesh
from lightning_edge.train.rendezvous import meet
from lightning_edge.train.staging import Courier, Staging, Waitable

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

__all__ = ["Reducer", "Reduction"]

_DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.complex64, torch.complex128),
    *(torch.int64, torch.int32, torch.int8, torch.uint8),
)


def sleep_until(sent_ns: int, delay_s: float) -> None:
    """Sleep until ``delay_s`` after ``sent_ns`` of the monotonic clock, which a machine shares."""
    remaining_s = delay_s - (time.monotonic_ns() - sent_ns) / 1e9
    if remaining_s > 0:
        time.sleep(remaining_s)


class Reduction:
    """A sum underway.

    Args:
        finish: Called once, by the first `wait`.
    """

    def __init__(self, finish: Callable[[timedelta | None], None]) -> None:
        self._finish: Callable[[timedelta | None], None] | None = finish

    def wait(self, timeout: timedelta | None = None) -> None:
        """Wait until the tensor given to ``all_reduce`` holds the sum.

        Args:
            timeout: Instead of the transport's.

        Raises:
            TransportTimeout: Some of the ranks have not come; names them all.
            PeerError: Another device failed.
        """
        if self._finish is not None:
            self._finish(timeout)
            self._finish = None


class Reducer:
    """Makes the groups, each with the first reduction of its members, and reduces in them.

    Args:
        store: Where members of a group find each other.
        rank: This device.
        alarm: Ends the waits when a device fails.
        timeout: For making groups, and for waits that state none.
        staging: Brings tensors of accelerators to the host.
        courier: Starts the sums of those.
        latency_s: Test aid: no sum is ready sooner than the messages of a ring would take.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        alarm: Alarm,
        timeout: timedelta,
        staging: Staging,
        courier: Courier,
        latency_s: float = 0.0,
    ) -> None:
        self._store, self._rank, self._alarm = store, rank, alarm
        self._timeout, self._latency_s = timeout, latency_s
        self._staging, self._courier = staging, courier
        self._groups: dict[tuple[int, ...], Mesh] = {}

    def all_reduce(self, ranks: Sequence[int], flat: Tensor, counters: Counters) -> Reduction:
        """Start to replace ``flat`` by the sum of all ranks' tensors of that shape and dtype.

        Reductions of one set of ranks must be started in the same order by all of them; any number
        may be underway. The tensor must not be touched until `Reduction.wait` has returned.
        """
        members = tuple(sorted(set(ranks)))
        if self._rank not in members:
            raise TransportError(f"rank {self._rank} cannot take part in a reduction of {members}")
        if not flat.is_contiguous() or flat.dtype not in _DTYPES:
            raise TransportError(
                f"cannot sum a tensor of dtype {flat.dtype}, shape {tuple(flat.shape)} and strides"
                f" {flat.stride()}: it must be contiguous, of a floating, complex or integer dtype"
            )
        if len(members) == 1 or not flat.numel():
            return Reduction(lambda timeout: None)
        self._alarm.check()
        counters.reductions += 1
        counters.reduced_bytes += flat.numel() * flat.element_size()
        start_s = time.perf_counter()
        mesh = self._group(members)  # waits for the others once
        counters.reduce_wait_s += time.perf_counter() - start_s
        last_start = torch.tensor([time.monotonic_ns()])
        real = torch.view_as_real(flat) if flat.is_complex() else flat
        on_host, ready = self._staging.to_host(real)  # the same tensor if it is there already

        def begin() -> list[Waitable]:
            clock = [mesh.all_reduce(last_start, largest=True)] if self._latency_s else []
            return [mesh.all_reduce(on_host), *clock]

        if ready is not None:
            works: Sequence[Waitable] = [self._courier.start(ready, begin)]
        else:
            try:
                works = begin()
            except RuntimeError:
                error = self._alarm.broken(members, "starting a sum")
                raise error from None

        def finish(timeout: timedelta | None) -> None:
            start_s = time.perf_counter()
            for work in works:
                what = f"the sum of {flat.numel()} numbers"
                self._alarm.wait(work, timeout or self._timeout, members, what)
            if self._latency_s:
                steps = 2 * (len(members) - 1)  # of a ring: reduce-scatter, then all-gather
                sleep_until(int(last_start), steps * self._latency_s)
            counters.reduce_wait_s += time.perf_counter() - start_s
            if on_host is not real:
                real.copy_(on_host, non_blocking=True)

        return Reduction(finish)

    def clear(self) -> None:
        """Let go of all groups."""
        self._groups.clear()

    def _group(self, members: tuple[int, ...]) -> Mesh:
        if members not in self._groups:
            place = f"the group of ranks {', '.join(map(str, members))}"
            names, check = self._alarm.names, self._alarm.check
            meet(self._store, place, self._rank, members, names, self._timeout, check)
            index, size = members.index(self._rank), len(members)
            mesh = Mesh(self._store, place, index, size, self._timeout)
            self._alarm.guard(mesh)
            self._groups[members] = mesh
        return self._groups[members]
