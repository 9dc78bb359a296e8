"""What crosses a cut: named tensors that know their rows, and where they enter autograd.

stage 0                     stage 1
... h.2(x) -> y  | y.detach() --> arrive(...) -> y' -> h.3(y') -> ... -> loss
|                   ^ backward stops here and keeps dy'
y.backward(dy') <-------- dy' -------+
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__: list[str] = []


@dataclass
class Value:
    """One tensor that crosses a cut.

    Attributes:
        name: Its place among the cut module's arguments.
        tensor: The rows this device holds.
        row_dim: Dimension along which rows lie; None when it has no rows.
        per_row: Entries along `row_dim` for each row.
        requires_grad: Whether a gradient goes back for it.
        aliases: Further places where the same tensor stands.
    """

    name: str
    tensor: Tensor
    row_dim: int | None
    per_row: int
    requires_grad: bool
    aliases: list[str] = field(default_factory=list)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows `start:stop`, counted from this device's first; all of it when it has none."""
        return _rows(self.tensor, self.row_dim, self.per_row, start, stop)


def _rows(tensor: Tensor, row_dim: int | None, per_row: int, start: int, stop: int) -> Tensor:
    if row_dim is None or (start == 0 and stop * per_row == tensor.shape[row_dim]):
        return tensor
    return tensor.narrow(row_dim, start * per_row, (stop - start) * per_row)


def rows_like(value: Value, tensor: Tensor, start: int, stop: int) -> Tensor:
    """Rows of a tensor shaped like `value` (its gradient)."""
    return _rows(tensor, value.row_dim, value.per_row, start, stop)


@dataclass
class Arrival:
    """Where received values enter the graph; after backward, `gradients` holds theirs by name."""

    values: Sequence[Value]
    gradients: dict[str, Tensor | None] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """The values in the graph: neither leaves nor views, so that a block may start in place."""
        tensors = {value.name: value.tensor for value in self.values}
        live = [value for value in self.values if value.requires_grad]
        if live:
            with torch.enable_grad():
                anchor = torch.empty(0, requires_grad=True)
                outputs = _Arrive.apply(anchor, self, live)  # type: ignore[no-untyped-call]
            tensors.update(zip((value.name for value in live), outputs, strict=True))
        for value in self.values:
            tensors.update(dict.fromkeys(value.aliases, tensors[value.name]))
        return tensors


class _Arrive(torch.autograd.Function):
    """Gives out tensors that came from elsewhere and keeps their gradients."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, arrival: Arrival, live: list[Value]) -> Any:
        ctx.set_materialize_grads(False)
        # Not the arrival: its tensors are the outputs, and lead back here (only the garbage
        # collector, seconds later, would free the message they lie in).
        ctx.gradients, ctx.names = arrival.gradients, [value.name for value in live]
        return tuple(value.tensor for value in live)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        kept = ctx.gradients
        for name, gradient in zip(ctx.names, gradients, strict=True):
            known = kept.get(name)
            # a second visit happens under reentrant activation checkpointing
            kept[name] = gradient if known is None or gradient is None else known + gradient
        return None, None, None
