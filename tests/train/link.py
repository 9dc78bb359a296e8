"""A transport in a worker of the pool, as the strategy makes and ends it."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from lightning_edge.train.rendezvous import connect
from lightning_edge.train.transport import Transport

NAMES = ("orin", "laptop", "pi", "desktop")


@contextmanager
def link(timeout_s: float = 20.0, **options) -> Iterator[Transport]:
    """Connect through the environment; close in order, or abort with the error that ended it."""
    store, rank, world_size = connect(timedelta(seconds=20))
    timeout = timedelta(seconds=timeout_s)
    names = NAMES[:world_size]
    with Transport(store, rank, world_size, timeout=timeout, names=names, **options) as transport:
        yield transport
