"""Whole tensors from rank to rank, for weights and checkpoints, one at a time."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_edge.train.transport import Channel, Message, Transport

__all__: list[str] = []


class TensorExchange:
    """The transport as `replicate.state` wants it.

    Args:
        transport: Connects the ranks.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.rank, self.world_size = transport.rank, transport.world_size

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """Give `obj` of rank `src` to all."""
        return self._transport.broadcast(obj, src)

    def all_gather(self, obj: Any) -> list[Any]:
        """Give every rank's `obj` to all."""
        return self._transport.all_gather(obj)

    def send_tensor(self, peer: int, tensor: Tensor) -> None:
        """Send one tensor."""
        message = Message({}, {"tensor": tensor})
        self._transport.send(peer, Channel.CONTROL, message, "a tensor of the model's state")

    def receive_tensor(self, peer: int) -> Tensor:
        """Receive one tensor, on the CPU."""
        message = self._transport.receive(peer, Channel.CONTROL, "a tensor of the model's state")
        return message.tensors["tensor"]
