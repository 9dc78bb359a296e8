"""Follows the rows of the batch through a step: what is computed over all of them, what mixes them.

x.mean()                     over all rows at hand: replicas of a stage have different ones
position_bias                from parameters and positions alone: replicas have the same
[rows, k, ...].flatten(0,1)  a row's entries follow one another: it can be cut into rows
cat([x, y]), [k, rows, ...].flatten(0,1)
                             a row's entries lie apart: it cannot
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from lightning_edge.replicate.bonds import written

__all__: list[str] = []

_VIEWS = ("view", "_unsafe_view", "reshape", "flatten", "_reshape_alias")

Shape = tuple[int, ...]


class _Known(NamedTuple):
    """What is known of a tensor."""

    from_batch: bool
    orders: frozenset[int] = frozenset()  # numbers of the operations that may have moved its rows


class _Order(NamedTuple):
    """An operation that may lay the rows of its inputs apart."""

    name: str
    inputs: tuple[Shape, ...]
    output: Shape


_UNKNOWN = _Known(True)  # nothing made it: it came in the batch


class RowsWatch:
    """Told of each operation of a step.

    Args:
        known: What does not depend on the batch: parameters, buffers, tensors in attributes.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        self._tensors: Any = WeakIdKeyDictionary()
        self._orders: list[_Order] = []
        for tensor in known:
            self._tensors[tensor] = _Known(False)

    def operation(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """An operation has run."""
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        known = [self._of(leaf) for leaf in inputs]
        depends = any(k.from_batch for k in known) and not _makes(func)
        orders = frozenset[int]().union(*(k.orders for k in known))
        name = func.overloadpacket.__name__
        if depends and isinstance(out, Tensor) and name in ("cat", "repeat", *_VIEWS):
            orders |= {len(self._orders)}
            shapes = tuple(tuple(leaf.shape) for leaf in inputs)
            self._orders.append(_Order(name, shapes, tuple(out.shape)))
        for leaf in (*tree_leaves(out), *(written(func, args, kwargs) if depends else ())):
            if isinstance(leaf, Tensor):
                self._tensors[leaf] = _Known(depends, orders)

    def _of(self, tensor: Tensor) -> _Known:
        known: _Known = self._tensors.get(tensor, _UNKNOWN)
        return known

    def from_batch(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on the values in the batch."""
        return self._of(tensor).from_batch

    def apart(self, tensor: Tensor, other: RowsWatch) -> bool:
        """Whether the entries of a row may lie apart in a tensor that has several for each row.

        Args:
            tensor: Of this run.
            other: Of the same step's run on another number of rows.
        """
        return any(
            number < len(other._orders) and _lays_apart(self._orders[number], other._orders[number])
            for number in self._of(tensor).orders
        )


def _makes(func: Any) -> bool:
    """Whether an operation takes no more than shapes from its arguments."""
    name = func.overloadpacket.__name__
    return bool(name.startswith(("new_", "lift_fresh")) or name.endswith("_like"))


def _lays_apart(one: _Order, other: _Order) -> bool:
    if one.name != other.name or len(one.inputs) != len(other.inputs):
        return True  # the runs went different ways
    output = _grown(one.output, other.output)
    inputs = [_grown(a, b) for a, b in zip(one.inputs, other.inputs, strict=True)]
    rows = [place for place in inputs if place is not None]
    if output is None or not rows:
        return False
    if one.name == "cat":
        return len(rows) > 1 and _cat_dim(one) == output
    before, after = one.inputs[0], one.output
    if one.name == "repeat":
        return after[output] != before[rows[0]]
    return math.prod(before[: rows[0]]) != math.prod(after[:output])


def _cat_dim(order: _Order) -> int | None:
    first = order.inputs[0]
    return next(
        (d for d, (a, b) in enumerate(zip(first, order.output, strict=True)) if a != b), None
    )


def _grown(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The dimension that has rows."""
    if len(one) != len(other):
        return None
    return next((d for d, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), None)
