"""What a message costs between each pair of devices, over the transport that training uses.

One pair after the other, and nobody else sends meanwhile:

    ping         a -> b -> a, small, several times        latency
    pilot        a -> b, 4 x 32 KiB                       a first rate, which sets the sizes below
    burst        a -> b, then b -> a, a quarter second    seconds per byte, when the pipe is full
    both ways    a <-> b at the same time                 half as fast each: one medium for both

then all around a ring, i -> i + 1, which shows whether pairs share a medium. Bytes and seconds are
bounded, so that no link is flooded.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch

from lightning_edge.errors import TransportError
from lightning_edge.plan.participants import Link
from lightning_edge.profile.media import Found, assign_media
from lightning_edge.train.message import Message
from lightning_edge.train.transport import Channel

if TYPE_CHECKING:
    from lightning_edge.train.transport import Transport

__all__ = ["LinkEffort", "measure_links"]

PINGS = 8
PILOTS, PILOT_BYTES = 4, 32 << 10
SLOWER = 1.6  # times as long both ways at once: the directions share the link
FILLING = 3  # messages that fill buffers and token buckets before the clock starts
LEAST_CHUNK, MOST_CHUNK = 32 << 10, 512 << 10


@dataclass(frozen=True)
class LinkEffort:
    """How much may be sent.

    Attributes:
        seconds: Of one burst; less if there are many pairs.
        bytes: Of one burst, at most.
        total_seconds: Of all bursts together, about.
    """

    seconds: float = 0.25
    bytes: int = 8 << 20
    total_seconds: float = 20.0

    def burst_s(self, pairs: int) -> float:
        """Seconds of each of the three bursts of a pair."""
        return min(self.seconds, self.total_seconds / (3 * max(pairs, 1)))


@dataclass(frozen=True)
class LinkReport:
    """What was measured on this rank's network.

    Attributes:
        links: Between all pairs, both directions; the same on all ranks.
        copy_s_per_byte: Seconds of this device to pack or unpack a byte.
    """

    links: tuple[Link, ...]
    copy_s_per_byte: float


def measure_links(
    transport: Transport, names: Sequence[str], effort: LinkEffort | None = None
) -> LinkReport:
    """Measure all links; called by all ranks at the same time.

    Args:
        transport: Connects the devices.
        names: What the devices are called, by rank.
        effort: How much may be sent.

    Raises:
        TransportError: A device failed, or did not answer in time.
    """
    effort = effort or LinkEffort()
    world_size = transport.world_size
    pairs = list(combinations(range(world_size), 2))
    copied = _Copies(transport)
    mine: list[Any] = []
    for pair in pairs:
        transport.barrier(f"measuring {names[pair[0]]} - {names[pair[1]]}")
        if transport.rank in pair:
            mine.append(_Pair(transport, pair, effort, effort.burst_s(len(pairs))).measure())
    gathered = [entry for entries in transport.all_gather(mine) for entry in entries]
    table = {(int(entry[0]), int(entry[1])): Found(*entry[2:]) for entry in gathered}
    ring = _ring(transport, table, list(range(world_size)), effort)
    radio = [r for r in range(world_size) if all(f.half for p, f in table.items() if r in p)]
    inner = ring
    if ring and 3 <= len(radio) < world_size:
        inner = _ring(transport, table, radio, effort)
    media = assign_media(table, ring, radio, inner, names)
    links = tuple(
        Link(
            names[a],
            names[b],
            found.seconds_per_byte,
            found.latency_s,
            media.get((a, b), ()),
            provenance={"all": "measured"},
        )
        for (a, b), found in sorted(table.items())
    )
    return LinkReport(links, copied.seconds_per_byte())


class _Copies:
    """Seconds per byte of packing and unpacking, from the transport's counters."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._before = self._now()

    def _now(self) -> tuple[float, int]:
        counters = self._transport.counters
        return counters.pack_s + counters.unpack_s, counters.bytes_sent + counters.bytes_received

    def seconds_per_byte(self) -> float:
        seconds, moved = (now - then for now, then in zip(self._now(), self._before, strict=True))
        return seconds / moved if moved else 0.0


class _Pair:
    """Two ranks that measure what is between them; each makes one with the same arguments."""

    def __init__(
        self, transport: Transport, pair: tuple[int, int], effort: LinkEffort, burst_s: float
    ) -> None:
        self._transport, self._pair, self._effort = transport, pair, effort
        self._peer = pair[1] if transport.rank == pair[0] else pair[0]
        self._first, self._burst_s = transport.rank == pair[0], burst_s

    def measure(self) -> list[Any]:
        """Measure both directions; each end returns the one towards itself.

        Returns:
            Source, target, and the fields of `Found`.
        """
        latency_s = self._ping()
        rates = [self._one_way(sends) for sends in (self._first, not self._first)]
        towards_me = rates[1] if self._first else rates[0]
        slowed = self._both_ways(min(rates))
        return [self._peer, self._transport.rank, 1.0 / towards_me, latency_s, slowed > SLOWER]

    def _ping(self) -> float:
        """Seconds of a small message, one way; both ends return the same."""
        times = []
        for number in range(PINGS):
            start_s = time.perf_counter()
            if self._first:
                self._send(number, 1)
                self._receive(number)
            else:
                self._receive(number)
                self._send(number, 1)
            times.append(time.perf_counter() - start_s)
        return self._agreed(statistics.median(times[1:]) / 2)

    def _agreed(self, mine: float) -> float:
        """What the first of the pair has."""
        if self._first:
            self._send(mine, 1)
            return mine
        return float(self._receive(None).meta["is"])

    def _one_way(self, sends: bool) -> float:
        """Bytes per second of one direction; both ends return the same."""
        pilot = self._burst(sends, PILOTS, PILOT_BYTES, skip=0)
        chunk, count = self._sizes(pilot)
        return self._burst(sends, count, chunk, skip=FILLING)

    def _sizes(self, rate: float) -> tuple[int, int]:
        """Size and number of messages of a burst at about `rate` bytes per second."""
        wanted = min(rate * self._burst_s, self._effort.bytes)
        chunk = int(min(max(wanted / 16, LEAST_CHUNK), MOST_CHUNK))
        return chunk, FILLING + 1 + max(4, round(wanted / chunk))

    def _burst(self, sends: bool, count: int, size: int, skip: int) -> float:
        """Send or receive messages one after the other; return bytes per second."""
        if sends:
            for number in range(count):
                self._send(number, size)
            return float(self._receive(None).meta["is"])
        arrivals = []
        for number in range(count):
            self._receive(number)
            arrivals.append(time.perf_counter())
        rate = (count - 1 - skip) * size / max(arrivals[-1] - arrivals[skip], 1e-6)
        self._send(rate, 1)
        return rate

    def _both_ways(self, rate: float) -> float:
        """How many times longer it takes when both directions are used at once."""
        chunk, count = self._sizes(rate)
        alone_s = (count - 1 - FILLING) * chunk / rate
        ahead = 2
        for number in range(ahead):
            self._send(number, chunk)
        arrivals = []
        for number in range(count):
            self._receive(number)
            arrivals.append(time.perf_counter())
            if number + ahead < count:
                self._send(number + ahead, chunk)
        took_s = arrivals[-1] - arrivals[FILLING]
        mine = took_s / alone_s if alone_s > 0 else 1.0
        other = self._exchange(mine)
        return max(mine, other)

    def _exchange(self, mine: float) -> float:
        self._send(mine, 1)
        return float(self._receive(None).meta["is"])

    def _send(self, what: float, size: int) -> None:
        send(self._transport, self._peer, what, size)

    def _receive(self, what: float | None) -> Message:
        return receive(self._transport, self._peer, what)


def send(transport: Transport, peer: int, what: float, size: int) -> None:
    """Send a message of about `size` bytes."""
    message = Message(
        {"call": "link", "is": float(what)}, {"x": torch.zeros(size, dtype=torch.uint8)}
    )
    transport.send(peer, Channel.CONTROL, message, what="a message that measures the link")


def receive(transport: Transport, peer: int, what: float | None) -> Message:
    """Receive one, and check that it is the expected one (`None`: any)."""
    message = transport.receive(peer, Channel.CONTROL, "a message that measures the link")
    if message.meta.get("call") != "link" or (what is not None and message.meta["is"] != what):
        raise TransportError(
            f"{transport.names[transport.rank]} measures its link to {transport.names[peer]}, which"
            f" is at {message.meta.get('call')}: all devices must take the same path"
        )
    return message


def _ring(
    transport: Transport, table: dict[tuple[int, int], Found], ranks: list[int], effort: LinkEffort
) -> list[float]:
    """Let each of `ranks` send to the next one, all at the same time.

    Returns:
        By place in the ring, the part of its own rate that a link kept; nothing for two devices.
    """
    if len(ranks) < 3:
        return []
    transport.barrier("measuring all links together")
    kept = 1.0
    if transport.rank in ranks:
        place = ranks.index(transport.rank)
        after, before = ranks[(place + 1) % len(ranks)], ranks[place - 1]
        out = table[transport.rank, after].seconds_per_byte
        into = table[before, transport.rank].seconds_per_byte
        # All send for about as long, so that nobody is measured alone at the end.
        sent, size = _ring_sizes(out, effort)
        coming, coming_size = _ring_sizes(into, effort)
        arrivals: list[float] = []
        for number in range(max(sent, coming)):
            if number < sent:
                send(transport, after, number, size)
            if number < coming:
                receive(transport, before, number)
                arrivals.append(time.perf_counter())
        took_s = max(arrivals[-1] - arrivals[FILLING], 1e-6)
        kept = (coming - 1 - FILLING) * coming_size * into / took_s
    parts = transport.all_gather(kept)
    return [float(parts[rank]) for rank in ranks]


def _ring_sizes(seconds_per_byte: float, effort: LinkEffort) -> tuple[int, int]:
    wanted = min(effort.seconds / max(seconds_per_byte, 1e-12), effort.bytes)
    chunk = int(min(max(wanted / 16, LEAST_CHUNK), MOST_CHUNK))
    return FILLING + 1 + max(4, round(wanted / chunk)), chunk
