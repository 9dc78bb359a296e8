"""What all devices do together with small objects, made of messages over the control streams.

Each message carries the name of the call it belongs to. When two devices are at different places in
the program, the error says so instead of handing one call's object to another.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lightning_edge.errors import TransportError
from lightning_edge.train.channel import Channel
from lightning_edge.train.codec import decode, encode
from lightning_edge.train.message import Message

if TYPE_CHECKING:
    from lightning_edge.train.transport import Transport

__all__ = ["all_gather", "barrier", "broadcast", "gather"]


def broadcast(transport: Transport, obj: Any, src: int) -> Any:
    """Return rank ``src``'s object on all ranks."""
    call = f"broadcast from rank {src}"
    if transport.rank == src:
        _tell(transport, transport.peers, call, encode(obj, "the object to broadcast"))
        return obj
    return _hear(transport, src, call)


def all_gather(transport: Transport, obj: Any) -> list[Any]:
    """Return the objects of all ranks, by rank, on all of them."""
    _tell(transport, transport.peers, "all_gather", encode(obj, "the object to gather"))
    return [
        obj if rank == transport.rank else _hear(transport, rank, "all_gather")
        for rank in range(transport.world_size)
    ]


def gather(transport: Transport, obj: Any, dst: int) -> list[Any] | None:
    """Return the objects of all ranks, by rank, on rank ``dst``; None elsewhere."""
    call = f"gather to rank {dst}"
    if transport.rank != dst:
        _tell(transport, [dst], call, encode(obj, "the object to gather"))
        return None
    return [
        obj if rank == dst else _hear(transport, rank, call) for rank in range(transport.world_size)
    ]


def barrier(transport: Transport, what: str, timeout: timedelta | None) -> None:
    """Wait until all ranks have come to the barrier of that name."""
    call = f"barrier {what!r}"
    _tell(transport, transport.peers, call, encode(None))
    for peer in transport.peers:
        _hear(transport, peer, call, timeout)


def _tell(transport: Transport, peers: Sequence[int], call: str, message: Message) -> None:
    message.meta["call"] = call
    for peer in peers:
        transport.send(peer, Channel.CONTROL, message, what=call)


def _hear(transport: Transport, peer: int, call: str, timeout: timedelta | None = None) -> Any:
    message = transport.receive(peer, Channel.CONTROL, what=call, timeout=timeout)
    other = message.meta.get("call")
    if other != call:
        me, them = transport.names[transport.rank], transport.names[peer]
        raise TransportError(
            f"{me} is at {call}, but {them} is at {other}: all devices must take the same path"
            " through the program"
        )
    return decode(message, copy=True)
