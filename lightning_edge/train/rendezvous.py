"""Devices find each other: through the environment that torchrun or the local launcher sets."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch

from lightning_edge.errors import TransportError, TransportTimeout, UnsupportedError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

__all__ = ["bounded", "connect", "meet", "poll"]

T = TypeVar("T")

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
STORE_S = 5.0  # the most that one question to the store may take
_POLL_S = (0.002, 0.1)  # a wait with a timeout would print warnings from C++


def connect(timeout: timedelta) -> tuple[Store, int, int]:
    """Join the store of this run, which the environment names.

    Under torchrun this is the agent's store; otherwise rank 0 hosts one at MASTER_ADDR:MASTER_PORT.

    Args:
        timeout: For reaching the store and for rank 0, until everybody has.

    Returns:
        The store, this process' rank and the number of ranks.

    Raises:
        TransportError: The environment is incomplete or wrong, or the address cannot be used.
        TransportTimeout: Nobody answers there.
        UnsupportedError: This build of torch cannot talk to other processes.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        raise UnsupportedError(
            f"this torch ({torch.__version__}) was built without torch.distributed or gloo, so it"
            " cannot talk to other devices: install a wheel from PyPI or one with USE_DISTRIBUTED=1"
        )
    from torch.distributed.rendezvous import rendezvous

    rank, world_size = _read(os.environ)
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    start_s = time.monotonic()
    try:
        store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    except (RuntimeError, ValueError) as error:
        what = f"rank {rank} of {world_size}"
        host = "hosting the store at" if rank == 0 else "reaching the store of rank 0 at"
        if time.monotonic() - start_s > 0.9 * timeout.total_seconds():
            raise TransportTimeout(
                f"{what} gave up {host} {address} (MASTER_ADDR:MASTER_PORT) after"
                f" {timeout.total_seconds():g} s: are all {world_size} ranks (WORLD_SIZE) started,"
                f" is that address rank 0's, and does a firewall let it through? ({error})"
            ) from None
        raise TransportError(
            f"{what} failed {host} {address} (MASTER_ADDR:MASTER_PORT): {error}"
        ) from None
    store.set_timeout(timeout)
    return store, rank, world_size


def meet(
    store: Store,
    place: str,
    rank: int,
    ranks: Sequence[int],
    names: Sequence[str],
    timeout: timedelta,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Wait until all of ``ranks`` have come to ``place``.

    Args:
        store: Where they leave word.
        place: What this meeting is for, in a few words; used once.
        rank: This rank.
        ranks: Everyone who comes, this rank included.
        names: How to call each rank.
        timeout: How long to wait.
        check: Called now and then; raises to end the wait.

    Raises:
        TransportTimeout: Names who has not come.
        TransportError: The store is gone.
    """
    store.set(f"{place}/{rank}", "")
    deadline_s = time.monotonic() + timeout.total_seconds()
    if poll(store, [f"{place}/{other}" for other in ranks], timeout.total_seconds(), check):
        return
    if time.monotonic() < deadline_s:
        raise TransportError(f"{names[rank]} lost the store on rank 0's device, at {place}")
    missing = [names[r] for r in ranks if not poll(store, [f"{place}/{r}"], 0.0)]
    raise TransportTimeout(
        f"{names[rank]} waited {timeout.total_seconds():g} s for {place};"
        f" missing: {', '.join(missing) or 'nobody any more, they came just too late'}"
    )


def poll(
    store: Store,
    keys: list[str],
    patience_s: float,
    check: Callable[[], None] = lambda: None,
) -> bool:
    """Return whether the store has all ``keys`` within ``patience_s``; False if it is gone too."""
    deadline_s = time.monotonic() + patience_s
    pause_s, slowest_s = _POLL_S
    while True:
        found = bounded(lambda: store.check(keys), STORE_S)
        if found is not False:
            return bool(found)
        check()
        remaining_s = deadline_s - time.monotonic()
        if remaining_s <= 0:
            return False
        time.sleep(min(pause_s, remaining_s))
        pause_s = min(2 * pause_s, slowest_s)


def bounded(call: Callable[[], T], seconds: float) -> T | None:
    """Return what ``call`` returns, or None if it raises a RuntimeError or takes longer.

    The store's host may be the device that vanished, and most of the store's calls would then wait
    for as long as TCP does.
    """
    result: list[T] = []

    def run() -> None:
        with contextlib.suppress(RuntimeError):
            result.append(call())

    thread = threading.Thread(target=run, name="edge-store", daemon=True)
    thread.start()
    thread.join(seconds)
    return result[0] if result else None


def _read(environment: Mapping[str, str]) -> tuple[int, int]:
    missing = [name for name in VARIABLES if not environment.get(name)]
    if missing:
        raise TransportError(
            f"{', '.join(missing)} not set: start every device with torchrun, or set RANK (0, 1,"
            " ...), WORLD_SIZE (how many), MASTER_ADDR, MASTER_PORT (where rank 0 can be reached)"
        )
    problems, numbers = [], {}
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"):
        if environment[name].isdecimal():
            numbers[name] = int(environment[name])
        else:
            problems.append(f"{name}={environment[name]!r} is not a number")
    if not problems and not numbers["RANK"] < numbers["WORLD_SIZE"]:
        problems.append(
            f"RANK={numbers['RANK']} must be less than WORLD_SIZE={numbers['WORLD_SIZE']}"
        )
    if problems:
        raise TransportError("; ".join(problems))
    return numbers["RANK"], numbers["WORLD_SIZE"]
