"""Gives holes in the C library's heap back to the system, but only where memory becomes scarce.

    in use    |######..####...###..#####....##|    tensors of many sizes come and go: what is freed
              |######  ####   ###  #####    ##|    between others stays this process's memory, and
                                                   may be too small for the next tensor

With glibc before 2.38 such holes are half as much again as what is in use. To give them back at
every micro-batch takes a twentieth of a step, mostly to get pages anew; so it is done from the
moment when little is left, where the other choice is to be killed.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import time
from collections.abc import Callable

from lightning_edge.room import ThisHost, free_bytes

__all__: list[str] = []

SCARCE = 0.2  # of what this process has and may still take
LOOK_S = 1.0


class Heap:
    """This process's heap.

    Args:
        resident: Bytes that this process has in memory.
        room: Bytes that it may still take.
        give_back: Returns what is free to the system; None where that cannot be asked for.
    """

    def __init__(
        self,
        resident: Callable[[], int],
        room: Callable[[], int],
        give_back: Callable[[], object] | None,
    ) -> None:
        self._resident, self._room, self._give_back = resident, room, give_back
        self._most = 0
        self._looked_s = -LOOK_S

    def look(self) -> None:
        """Find out how much there is, now and then, as others take their part."""
        now_s = time.monotonic()
        if self._give_back is not None and now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            self._most = round((self._resident() + self._room()) * (1 - SCARCE))

    def relieve(self) -> None:
        """Give back what is free, if there is little left."""
        if self._give_back is not None and self._resident() > self._most:
            self._give_back()


@functools.cache
def this_heap() -> Heap:
    """The heap of this process; one that does nothing where the C library is another one."""
    if not sys.platform.startswith("linux"):
        return Heap(lambda: 0, lambda: 0, None)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl has not
    host = ThisHost()
    return Heap(_resident, lambda: free_bytes(host), None if trim is None else lambda: trim(0))


_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def _resident() -> int:
    with open("/proc/self/statm", "rb", buffering=0) as file:  # 20 us; psutil takes 10 times that
        return int(file.read(200).split()[1]) * _PAGE_BYTES
