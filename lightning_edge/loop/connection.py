"""The connection to the other devices: made by the first run, kept between runs, ended in order."""

from __future__ import annotations

import atexit
import sys
from datetime import timedelta

import torch
from torch._C._distributed_c10d import HashStore

from lightning_edge.loop.environment import EdgeEnvironment, device_name, unique_names
from lightning_edge.train.rendezvous import connect, meet
from lightning_edge.train.transport import Transport

__all__: list[str] = []


class Connection:
    """This rank among all others.

    Args:
        environment: Knows the ranks.
        timeout: Longest wait for another device.
        device: Where this rank computes; messages for it are staged.

    Attributes:
        transport: Carries messages.
        names: The devices' names by rank, made unique.
    """

    def __init__(
        self, environment: EdgeEnvironment, timeout: timedelta, device: torch.device
    ) -> None:
        if environment.world_size() == 1:
            self.names: tuple[str, ...] = (device_name(),)
            self.transport = Transport(HashStore(), 0, 1, timeout=timeout, names=self.names)
            return
        patience = environment.patience(timeout)
        store, rank, world_size = connect(patience)
        store.set(f"lightning_edge/name/{rank}", device_name())
        # Only names now: all devices, which may import for some time, meet in the transport.
        ranks = [f"rank {r}" for r in range(world_size)]
        meet(store, "the start of the run", rank, range(world_size), ranks, patience)
        given = [store.get(f"lightning_edge/name/{r}").decode() for r in range(world_size)]
        self.names = unique_names(given)
        self.transport = Transport(
            store, rank, world_size, timeout=timeout, names=self.names, device=device
        )
        atexit.register(self.end)

    def end(self) -> None:
        """Leave in order at the end of the process; a process that dies of an error says so."""
        atexit.unregister(self.end)
        error = getattr(sys, "last_value", None)
        if error is None:
            self.transport.close()
        else:
            self.transport.abort(error)

    def abort(self, error: BaseException) -> None:
        """End everybody's waiting with this rank's error."""
        atexit.unregister(self.end)
        self.transport.abort(error)
