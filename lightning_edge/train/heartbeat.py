"""Signs of life beside gloo, so that who stands still is known in seconds.

gloo's connections say nothing while a machine is frozen, asleep or cut off: a wait would end at its
timeout only. So each rank has one more connection, to rank 0, that is never busy with tensors::

    rank 1  --- a byte every 0.5 s --->  rank 0  <--- a byte every 0.5 s ---  rank 2
            <-- everybody's silence ---          ---- everybody's silence -->

Whoever is silent for `SILENT_S` is taken for lost, and so is whoever's connection ends without a
farewell. A rank that stood still itself (it was stopped, or its machine slept) judges nobody before
the others have had time to be heard again.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from lightning_edge.errors import TransportError
from lightning_edge.train.pressure import memory_is_tight
from lightning_edge.train.rendezvous import STORE_S, poll

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

__all__ = ["Heartbeat", "join", "silent_s"]

log = logging.getLogger(__name__)

PERIOD_S = 0.5
SILENT_S = 3.5  # with the time to the next beat, and to tell all, this is less than 5 s
VARIABLE = "LIGHTNING_EDGE_SILENT_S"
STALL_S = 1.0  # a beat of ours this late means that we stood still ourselves
CONNECT_S = 5.0
STRANGERS = 16  # connections that have not said who they are; more are closed at once

_KEY = "heartbeat"
_HELLO = struct.Struct("!16sI")  # the run's token, and the rank
_BEAT, _TIGHT, _FAREWELL = b"+", b"!", b"-"  # the second: a beat, with hardly any memory left
_UNKNOWN = -1.0

Judge = Callable[[int, float | None], None]
"""Called with a rank and its seconds of silence; None if its connection ended."""


def silent_s() -> float:
    """Seconds of silence after which a device is taken for lost, as the environment says.

    Raises:
        TransportError: It says something else than a number of at least 2.
    """
    text = os.environ.get(VARIABLE, "")
    try:
        seconds = float(text or SILENT_S)
    except ValueError:
        seconds = 0.0
    if not seconds >= 4 * PERIOD_S:
        raise TransportError(
            f"{VARIABLE}={text!r} must be a number of seconds, at least {4 * PERIOD_S:g}"
            f" (inf: never; the default is {SILENT_S:g})"
        )
    return seconds


class Heartbeat:
    """One rank's part: a thread that beats, listens and judges. See `Hub` and `Spoke`.

    Args:
        world_size: Number of ranks.
    """

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._silent_s = silent_s()
        self._heard_s: dict[int, float] = {}  # when each rank was last heard here
        self._left: set[int] = set()
        self._tight: set[int] = set()  # had hardly any memory left when last heard of
        self._lost: set[int] = set()
        self._judge: Judge = lambda rank, age_s: None
        self._selector = selectors.DefaultSelector()
        self._wake, wake = socket.socketpair()
        self._selector.register(wake, selectors.EVENT_READ)
        self._closing = False
        self._stall = (0.0, 0.0)  # when it ended, and its seconds
        self._thread = threading.Thread(target=self._run, name="edge-heartbeat", daemon=True)

    def start(self, judge: Judge) -> None:
        """Begin to beat; `judge` is called in a thread of ours."""
        self._judge = judge
        self._thread.start()

    def age_s(self, rank: int) -> float | None:
        """Seconds since a rank was last heard of; None if it never was, or has left."""
        heard_s = self._heard_s.get(rank)
        return None if heard_s is None or rank in self._left else time.monotonic() - heard_s

    def was_tight(self, rank: int) -> bool:
        """Whether a rank had hardly any memory left when it was last heard of."""
        return rank in self._tight

    @property
    def stood_still_s(self) -> float:
        """Seconds for which this process itself stood still in the last half minute, or 0."""
        ended_s, seconds = self._stall
        return seconds if time.monotonic() - ended_s < 30.0 else 0.0

    def leave(self) -> None:
        """From here on connections may end; nobody is judged."""
        self._closing = True

    def close(self) -> None:
        """Say farewell and end the thread."""
        self._closing = True
        self._wake.close()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(2 * PERIOD_S)
        if not self._thread.is_alive() and self._selector.get_map() is not None:
            self._end()

    def _end(self) -> None:
        for key in list(self._selector.get_map().values()):
            self._selector.unregister(key.fileobj)
            with suppress(OSError):
                key.fileobj.close()  # type: ignore[union-attr]  # all of them are sockets
        self._selector.close()

    def _run(self) -> None:
        due_s = time.monotonic()
        while True:
            for key, _ in self._selector.select(max(due_s - time.monotonic(), 0.0)):
                if key.data is None:  # woken: the end
                    self._beat(_FAREWELL)
                    return
                key.data(key.fileobj)
            now_s = time.monotonic()
            if now_s < due_s:
                continue
            if now_s - due_s > STALL_S:
                self._stall = (now_s, now_s - due_s)
                for rank in set(self._heard_s) - self._lost:
                    self._heard_s[rank] = now_s
            self._beat(_TIGHT if memory_is_tight() else _BEAT)
            for rank, heard_s in list(self._heard_s.items()):
                if now_s - heard_s > self._silent_s:
                    self._lose(rank, now_s - heard_s)
            due_s = now_s + PERIOD_S

    def _note(self, rank: int, tight: bool) -> None:
        (self._tight.add if tight else self._tight.discard)(rank)

    def _lose(self, rank: int, age_s: float | None) -> None:
        if rank not in self._left | self._lost and not self._closing:
            self._lost.add(rank)
            self._beat(_BEAT)  # rank 0 tells the others at once
            # Telling the others may take seconds, in which this thread has to go on beating.
            threading.Thread(
                target=self._judge, args=(rank, age_s), name="edge-judge", daemon=True
            ).start()

    def _listen(self, connection: socket.socket, handle: Callable[[socket.socket], None]) -> None:
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ, handle)

    def _hang_up(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        connection.close()

    def _beat(self, sign: bytes) -> None:
        raise NotImplementedError


class Hub(Heartbeat):
    """Rank 0's part: hears all, and tells all how long each has been silent.

    Args:
        store: Where the others find the port and the token that lets them in.
        world_size: Number of ranks.
    """

    def __init__(self, store: Store, world_size: int) -> None:
        super().__init__(world_size)
        self._ranks: dict[socket.socket, int] = {}
        self._strangers: dict[socket.socket, bytes] = {}
        self._token = secrets.token_bytes(16)
        if socket.has_dualstack_ipv6():
            family, both = socket.AF_INET6, True
        else:
            family, both = socket.AF_INET, False
        listener = socket.create_server(("", 0), family=family, dualstack_ipv6=both)
        self._listen(listener, self._accept)
        store.set(_KEY, f"{listener.getsockname()[1]} {self._token.hex()}")

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            connection, _ = listener.accept()
            if len(self._strangers) >= STRANGERS:
                self._hang_up_stranger(next(iter(self._strangers)))
            self._strangers[connection] = b""
            self._listen(connection, self._greet)

    def _greet(self, connection: socket.socket) -> None:
        """Let a stranger in who knows the token; nothing else that it says is looked at."""
        hello = self._strangers[connection]
        try:
            data = connection.recv(_HELLO.size - len(hello))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        hello += data
        if data and len(hello) < _HELLO.size:
            self._strangers[connection] = hello
            return
        token, rank = _HELLO.unpack(hello) if len(hello) == _HELLO.size else (b"", 0)
        known = secrets.compare_digest(token, self._token)
        if not known or not 0 < rank < self.world_size or rank in self._ranks.values():
            self._hang_up_stranger(connection)
            return
        del self._strangers[connection]
        self._ranks[connection] = rank
        self._heard_s[rank] = time.monotonic()
        self._selector.modify(connection, selectors.EVENT_READ, self._hear)

    def _hang_up_stranger(self, connection: socket.socket) -> None:
        del self._strangers[connection]
        self._hang_up(connection)

    def _hear(self, connection: socket.socket) -> None:
        rank = self._ranks[connection]
        try:
            data = connection.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data and not data.endswith(_FAREWELL):
            self._heard_s[rank] = time.monotonic()
            self._note(rank, data.endswith(_TIGHT))
            return
        del self._ranks[connection]
        self._hang_up(connection)
        if data:
            self._left.add(rank)
        else:
            self._heard_s[rank] = -math.inf
            self._lose(rank, None)

    def _beat(self, sign: bytes) -> None:
        ages = [self.age_s(rank) for rank in range(self.world_size)]
        told = struct.pack(f"!{len(ages)}f", *(_UNKNOWN if a is None else a for a in ages))
        told += bytes(rank in self._tight for rank in range(self.world_size))
        for connection in self._ranks:
            # A full buffer means that nobody reads there: its silence will be noticed.
            with suppress(OSError):
                connection.send(sign + told)


class Spoke(Heartbeat):
    """Any other rank's part.

    Args:
        store: Where rank 0 left its port and token.
        rank: This rank.
        world_size: Number of ranks.
        host: Rank 0's address.
    """

    def __init__(self, store: Store, rank: int, world_size: int, host: str) -> None:
        super().__init__(world_size)
        self._rest = b""
        self._size = 1 + 5 * world_size  # a sign, and for each rank its age and its memory
        self._told_s: dict[int, float] = {}  # when rank 0 last heard each other one
        self._hub: socket.socket | None = None
        port = 0
        try:
            if not poll(store, [_KEY], STORE_S):
                raise OSError("rank 0 left no port")
            place, token = store.get(_KEY).decode().split()
            port = int(place)
            self._hub = socket.create_connection((host, port), CONNECT_S)
            self._hub.sendall(_HELLO.pack(bytes.fromhex(token), rank))
        except (OSError, ValueError) as error:
            log.warning(
                "No signs of life will be exchanged with rank 0, as port %d of %s cannot be reached"
                " (%s): a device that stands still will be noticed at the timeout only.",
                port, host, error,
            )  # fmt: skip
            return
        self._heard_s[0] = time.monotonic()
        self._listen(self._hub, self._hear)

    def age_s(self, rank: int) -> float | None:
        """Seconds since a rank was last heard of, by rank 0 or here."""
        if rank == 0:
            return super().age_s(0)
        heard_s = self._told_s.get(rank)
        return None if heard_s is None else time.monotonic() - heard_s

    def _hear(self, hub: socket.socket) -> None:
        try:
            data = hub.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._rest += data
        whole = len(self._rest) // self._size * self._size
        frame, self._rest = self._rest[max(whole - self._size, 0) : whole], self._rest[whole:]
        if not data or frame.startswith(_FAREWELL):
            if frame.startswith(_FAREWELL):
                self._left.add(0)
            self._lose(0, None)
            self._heard_s.clear()
            self._selector.unregister(hub)
            return
        if frame:
            now_s = time.monotonic()
            ages = struct.unpack_from(f"!{self.world_size}f", frame, 1)
            for rank, tight in enumerate(frame[-self.world_size :]):
                self._note(rank, bool(tight) or (rank == 0 and frame.startswith(_TIGHT)))
            self._told_s = {rank: now_s - age for rank, age in enumerate(ages) if age >= 0}
            self._heard_s[0] = now_s
            for rank, age_s in enumerate(ages):
                if age_s > self._silent_s:  # rank 0 judges, and is believed
                    self._lose(rank, None if age_s == math.inf else age_s)

    def _beat(self, sign: bytes) -> None:
        if self._hub is not None:
            with suppress(OSError):
                self._hub.send(sign)

    def _end(self) -> None:
        super()._end()
        if self._hub is not None:
            self._hub.close()


def join(store: Store, rank: int, world_size: int) -> Heartbeat:
    """This rank's part, which has still to be started; all ranks make theirs at the same time.

    Rank 0 is reached where its store is: at MASTER_ADDR.

    Args:
        store: Where rank 0 leaves its port.
        rank: This rank.
        world_size: Number of ranks.
    """
    if rank == 0:
        return Hub(store, world_size)
    return Spoke(store, rank, world_size, os.environ.get("MASTER_ADDR", "127.0.0.1"))
