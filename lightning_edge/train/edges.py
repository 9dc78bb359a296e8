"""The edges of a pipeline: which rows go to whom, and the messages that carry them.

A micro-batch's rows are cut differently on neighbouring stages. Each device sends every device of
the next stage the rows both have, and gets the gradients of the same rows back:

    stage 0   device 0: rows 0..5        device 1: rows 5..8
                 |  0..4     | 4..5         | 5..8
    stage 1   device 2: rows 0..4        device 3: rows 4..8

Both ends work the overlaps out by themselves; each message still says what it is, and is checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_edge.errors import SplitError, TransportError
from lightning_edge.plan.layout import Layout
from lightning_edge.train.message import Message
from lightning_edge.train.transport import Channel, Transport
from lightning_edge.train.values import Value, rows_like

__all__: list[str] = []


class Edges:
    """This device's messages to and from the stages beside its own, for the current batch.

    Args:
        transport: Carries the messages.
        stage: This device's stage.
        wire_dtype: Floating tensors are cast to it on the way (None: as they are).
    """

    def __init__(
        self, transport: Transport, stage: int, wire_dtype: torch.dtype | None = None
    ) -> None:
        self._transport, self._stage, self._wire_dtype = transport, stage, wire_dtype
        self._rank = transport.rank
        self._layout: Layout
        self._step = 0

    def start(self, layout: Layout, step: int) -> None:
        """Use the rows of this batch from here on; `step` is its number on all devices."""
        self._layout, self._step = layout, step

    def send_values(self, m: int, values: Sequence[Value]) -> None:
        """Send micro-batch `m`'s outputs to the devices of the next stage with its rows."""
        first, _ = self._layout.mine(self._rank, m)
        overlaps = self._layout.overlaps(self._rank, m, self._stage + 1)
        senders = max(len(self._layout.overlaps(p, m, self._stage)) for p, _, _ in overlaps)
        _refuse_unknown_rows(values, max(len(overlaps), senders))
        for peer, low, high in overlaps:
            sent = [v for v in values if v.row_dim is not None or self._is_first(peer, m)]
            message = Message(
                self._meta(m, low, high) | {"values": [_described(v) for v in sent]},
                {v.name: v.rows(low - first, high - first).detach() for v in sent},
            )
            self._send(peer, Channel.FORWARD, message, f"micro-batch {m}'s activations")

    def receive_values(self, m: int, device: torch.device) -> list[Value]:
        """Wait for micro-batch `m`'s inputs and put the rows of several senders together."""
        pieces: dict[str, list[Value]] = {}
        overlaps = self._layout.overlaps(self._rank, m, self._stage - 1)
        for peer, low, high in overlaps:
            message = self._receive(
                peer, Channel.FORWARD, m, low, high, f"micro-batch {m}'s activations"
            )
            for name, row_dim, per_row, requires_grad, aliases in message.meta["values"]:
                tensor = message.tensors[name].to(device, non_blocking=True)
                pieces.setdefault(name, []).append(
                    Value(name, tensor, row_dim, per_row, requires_grad, aliases)
                )
        values = []
        for parts in pieces.values():
            head = parts[0]
            if head.row_dim is not None and len(parts) > 1:
                head.tensor = torch.cat([part.tensor for part in parts], dim=head.row_dim)
            values.append(head)
        return values

    def send_gradients(
        self, m: int, values: Sequence[Value], gradients: Mapping[str, Tensor | None]
    ) -> None:
        """Send the gradients of received `values` back to where their rows came from."""
        if not any(value.requires_grad for value in values):
            return
        first, _ = self._layout.mine(self._rank, m)
        overlaps = self._layout.overlaps(self._rank, m, self._stage - 1)
        for i, (peer, low, high) in enumerate(overlaps):
            tensors = {}
            for value in values:
                gradient = gradients.get(value.name)
                # what has no rows came from the first sender only, so its gradient goes there only
                if gradient is not None and (value.row_dim is not None or i == 0):
                    tensors[value.name] = rows_like(value, gradient, low - first, high - first)
            message = Message(self._meta(m, low, high), tensors)
            self._send(peer, Channel.BACKWARD, message, f"micro-batch {m}'s gradients")

    def receive_gradients(self, m: int, values: Sequence[Value]) -> dict[str, Tensor]:
        """Wait for the gradients of `values`, sent with `m`; what nobody needs is left out."""
        if not any(value.requires_grad for value in values):
            return {}
        first, _ = self._layout.mine(self._rank, m)
        whole = {value.name: value for value in values}
        pieces: dict[str, list[tuple[int, int, Tensor]]] = {}
        for peer, low, high in self._layout.overlaps(self._rank, m, self._stage + 1):
            message = self._receive(
                peer, Channel.BACKWARD, m, low, high, f"micro-batch {m}'s gradients"
            )
            for name, gradient in message.tensors.items():
                pieces.setdefault(name, []).append((low - first, high - first, gradient))
        return {name: _assemble(whole[name], parts) for name, parts in pieces.items()}

    def _is_first(self, peer: int, m: int) -> bool:
        return self._layout.overlaps(peer, m, self._stage)[0][0] == self._rank

    def _meta(self, m: int, low: int, high: int) -> dict[str, object]:
        return {"step": self._step, "micro_batch": m, "rows": [low, high]}

    def _send(self, peer: int, channel: Channel, message: Message, what: str) -> None:
        self._transport.send(peer, channel, message, what=what, wire_dtype=self._wire_dtype)

    def _receive(
        self, peer: int, channel: Channel, m: int, low: int, high: int, what: str
    ) -> Message:
        message = self._transport.receive(peer, channel, what=what)
        expected = self._meta(m, low, high)
        found = {key: message.meta.get(key) for key in expected}
        if found != expected:
            raise TransportError(
                f"expected {what} as {expected} from rank {peer}, found {found}: the devices do "
                f"not run the same plan "
                f"on the same batch"
            )
        return message


def _described(value: Value) -> list[object]:
    return [value.name, value.row_dim, value.per_row, value.requires_grad, value.aliases]


def _assemble(value: Value, parts: Sequence[tuple[int, int, Tensor]]) -> Tensor:
    device = value.tensor.device
    if value.row_dim is None:
        total = parts[0][2].to(device)
        for _, _, gradient in parts[1:]:
            total = total + gradient.to(device)
        return total
    if len(parts) == 1 and parts[0][2].shape == value.tensor.shape:
        return parts[0][2].to(device, non_blocking=True)
    # rows whose gradient nobody sent were not needed: zero
    gradient = torch.zeros_like(value.tensor, dtype=parts[0][2].dtype)
    for low, high, piece in parts:
        rows_like(value, gradient, low, high).copy_(piece, non_blocking=True)
    return gradient


def _refuse_unknown_rows(values: Sequence[Value], devices: int) -> None:
    unknown = [value.name for value in values if value.per_row < 0]
    if unknown and devices > 1:
        raise SplitError(
            f"the values {', '.join(unknown)} that cross this cut depend on the batch's rows in "
            f"a way that cannot be cut "
            f"(neither [rows x k, ...] nor [..., rows x k, ...]); give the stages on both sides "
            f"one device each"
        )
