"""What the transport counts: bytes, messages and seconds, at the cost of a few additions."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

__all__ = ["Counters", "PeerCounters"]


@dataclass(slots=True)
class PeerCounters:
    """Traffic with one peer.

    Attributes:
        bytes_sent: Of whole messages, headers included; likewise ``bytes_received``.
        messages_sent: Number of messages; likewise ``messages_received``.
        receive_wait_s: Seconds this device stood still for messages of this peer.
        send_wait_s: Seconds this device stood still because this peer had not taken earlier ones.
    """

    bytes_sent: int = 0
    bytes_received: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    receive_wait_s: float = 0.0
    send_wait_s: float = 0.0


@dataclass(slots=True)
class Counters:
    """Traffic of one device since the transport was made or `reset_counters` was called.

    Attributes:
        peers: By rank.
        pack_s: Seconds spent putting messages together; ``unpack_s`` taking them apart.
        reduced_bytes: Size of what was given to ``all_reduce`` (about what travels each way).
        reduce_wait_s: Seconds this device stood still for reductions.
    """

    peers: defaultdict[int, PeerCounters] = field(default_factory=lambda: defaultdict(PeerCounters))
    pack_s: float = 0.0
    unpack_s: float = 0.0
    reduced_bytes: int = 0
    reductions: int = 0
    reduce_wait_s: float = 0.0

    @property
    def bytes_sent(self) -> int:
        """Bytes of messages sent, to all peers together."""
        return sum(peer.bytes_sent for peer in self.peers.values())

    @property
    def bytes_received(self) -> int:
        """Bytes of messages received, from all peers together."""
        return sum(peer.bytes_received for peer in self.peers.values())

    @property
    def receive_wait_s(self) -> float:
        """Seconds stood still for messages, of all peers together."""
        return sum(peer.receive_wait_s for peer in self.peers.values())

    @property
    def send_wait_s(self) -> float:
        """Seconds stood still for room to send, of all peers together."""
        return sum(peer.send_wait_s for peer in self.peers.values())
