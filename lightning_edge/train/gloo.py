"""All that is particular to gloo: private groups, and how to end every wait in one.

Facts this rests on (torch 2.11 to 2.13):

* A group can be built on a store of our own; no default process group is needed.
* Data moves only once the receiver has posted its receive, and a message longer than the posted
  buffer ends the *process* (`std::terminate`), so posting is `train.channel`'s careful business.
* A receive whose wait times out closes all connections of its group: on purpose this is the way
  to end the waits of all threads, here and on the peers, at once. `ProcessGroup.abort` is not.
"""

from __future__ import annotations

import contextlib
import ctypes
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

if TYPE_CHECKING:  # there are builds of torch without it, and `rendezvous` says so in a sentence
    from torch._C._distributed_c10d import Store, Work

__all__ = ["FOREVER", "Mesh", "cut_here"]

FOREVER = timedelta(days=365)
_CUT_TAG = (1 << 30) + 1


class Mesh:
    """A private gloo group: one connection between every two of its members.

    Args:
        store: Where the members find each other.
        name: The group's own corner of the store.
        rank: This member's position among ``size``.
        size: Number of members, at least 2.
        timeout: For connecting; waits have their own.
    """

    def __init__(self, store: Store, name: str, rank: int, size: int, timeout: timedelta) -> None:
        from torch._C._distributed_c10d import PrefixStore, ProcessGroupGloo

        self.rank, self.size, self._sums = rank, size, False
        self.group: Any = ProcessGroupGloo(PrefixStore(name, store), rank, size, timeout)

    def send(self, data: Tensor, peer: int, tag: int) -> Work:
        """Start to send a contiguous CPU tensor, which must not change until the work is done."""
        return cast("Work", self.group.send([data], peer, tag))

    def receive(self, data: Tensor, peer: int, tag: int) -> Work:
        """Post a receive; a longer message than ``data`` ends the process, a shorter one may be."""
        return cast("Work", self.group.recv([data], peer, tag))

    def all_reduce(self, data: Tensor, *, largest: bool = False) -> Work:
        """Start to replace ``data`` on all members by the sum, or the largest, of each element.

        gloo's own threads do it. It was never beaten by exchanges over `send` and `receive`, with
        nor without chunks (40 MB on loopback, 2 and 3 ranks), so there is no algorithm here.
        """
        from torch.distributed import AllreduceOptions, ReduceOp

        options = AllreduceOptions()
        options.reduceOp = ReduceOp(ReduceOp.MAX if largest else ReduceOp.SUM)
        self._sums = True
        options.timeout = FOREVER  # a wait states its own; this one would count from the start
        return cast("Work", self.group.allreduce([data], options))

    def cut(self) -> None:
        """Close all connections, so that whoever waits for one of them is woken by an error."""
        nothing = torch.empty(1, dtype=torch.uint8)
        for peer in range(self.size):
            if peer == self.rank:
                continue
            # Posting to a peer that is gone raises and closes nothing: the next one may be there.
            with contextlib.suppress(RuntimeError):
                work = self.group.recv([nothing], peer, _CUT_TAG)
                work.wait(timedelta(milliseconds=1))

    def abandon(self) -> None:
        """Let go of a broken group; destroying it might wait for sums that nothing can end."""
        if self._sums:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.group))


def cut_here(error: RuntimeError) -> bool:
    """Tell a connection that this process itself closed, by a timeout, from one a peer closed."""
    return "Application timeout caused pair closure" in str(error)
