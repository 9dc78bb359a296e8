"""Rows of a batch: count them, take some of them, put outputs together again.

    whole batch   rows 0 1 2 3 4 5 6 7       take_rows(batch, 8, [(0, 1), (4, 6)])
    this device        0       4 5           -> a batch of 3 rows, of the same structure

Leaves that all rows share (class weights, a file name, a schedule) stay whole. Where the rows of a
leaf are is found once per DataLoader (`axes.py`) and travels with every batch as `BatchRows`, since
a part of a batch alone cannot tell: ten class weights look like ten rows to a device with ten rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_edge.errors import DataError
from lightning_edge.train.axes import (
    HINT,
    Axes,
    Axis,
    axes_from_dims,
    count_rows,
    describe,
    find_axes,
    fits,
    from_plain,
    has_rows,
    to_plain,
)
from lightning_edge.train.tree import children, rebuild, step, walk

__all__ = ["BatchRows", "RowsTree", "batch_rows", "cut", "take_rows", "whole_rows"]

Interval: TypeAlias = "tuple[int, int]"
"""Rows [start, stop)."""

RowDims: TypeAlias = "Callable[[Any], Any]"
"""`LightningModule.edge_row_dims(batch)`: the batch's structure with each leaf's row dimension."""


@dataclass(frozen=True)
class BatchRows:
    """The rows of one batch on one device.

    Attributes:
        rows: Of the whole batch.
        mine: Those on this device.
        axes: Where they are in the batch's leaves.
        first: The first row on this device, counted in the whole batch.
    """

    rows: int
    mine: int
    axes: Axes
    first: int = 0

    def to_plain(self) -> list[Any]:
        """Return lists and numbers, for a message."""
        return [self.rows, self.mine, to_plain(self.axes), self.first]

    @staticmethod
    def from_plain(plain: list[Any]) -> BatchRows:
        """Return what `to_plain` wrote."""
        rows, mine, axes, first = plain
        return BatchRows(rows, mine, from_plain(axes), first)


RowsTree: TypeAlias = "BatchRows | dict[Any, RowsTree] | None"
"""The rows of a batch that several loaders feed, by the keys under which their parts stand."""


def batch_leaves(batch: Any) -> list[tuple[str, Any]]:
    """Return the leaves of a batch with their paths, such as `("batch['ids']", tensor)`."""
    return list(walk(batch))


def find_rows(
    batch: Any, row_dims: RowDims | None = None, known: Axes = None, rows: int | None = None
) -> tuple[int, Axes]:
    """Return the number of rows of a batch, and where they are.

    Args:
        batch: Anything a DataLoader yields.
        row_dims: The module's `edge_row_dims`, if it has one, has the first word. None everywhere
            makes the batch a single row.
        known: Axes found on another batch of the same loader; used if they fit.
        rows: The number of rows, if it is known.

    Raises:
        DataError: No rows are found, or leaves disagree.
    """
    if row_dims is not None:
        axes = axes_from_dims(batch, row_dims(batch))
        if not has_rows(axes):  # one row that is never cut
            return 1, axes
    elif known is not None and fits(batch, known):
        axes = known
    else:
        return find_axes(batch, rows)
    return count_rows(batch, axes), axes


def batch_rows(batch: Any, *, row_dims: RowDims | None = None) -> int:
    """Return the number of rows of a batch.

    Args:
        batch: Anything a DataLoader yields.
        row_dims: The module's `edge_row_dims`, if it has one, has the first word. Else the first
            dimension of the first tensor counts, or the first list if there is no tensor.

    Raises:
        DataError: No rows are found, or leaves disagree.
    """
    return find_rows(batch, row_dims)[0]


def take_rows(
    batch: Any,
    rows: int,
    intervals: Sequence[Interval],
    *,
    axes: Axes = None,
    row_dims: RowDims | None = None,
) -> Any:
    """Return some rows of a batch, one interval after the other.

    Args:
        batch: Anything a DataLoader yields; it is left as it is.
        rows: How many it has.
        intervals: Which to take, `(start, stop)`; empty ones are skipped, rows may repeat.
        axes: Where the rows are, if it is known.
        row_dims: The module's `edge_row_dims`, asked if `axes` is not given.

    Returns:
        A batch of the same structure. A single interval gives views of tensors; all rows give the
        batch itself.

    Raises:
        DataError: A part that has rows cannot be cut.
    """
    wanted = joined(intervals)
    for start, stop in wanted:
        if not 0 <= start < stop <= rows:
            raise DataError(f"rows {start} to {stop} were asked of a batch of {rows} rows")
    if wanted == [(0, rows)]:
        return batch
    if axes is None:
        axes = find_rows(batch, row_dims, rows=rows)[1]
    return _take(batch, axes, wanted, "batch")


def joined(intervals: Sequence[Interval]) -> list[Interval]:
    """Return the same rows in as few intervals as possible."""
    joined: list[Interval] = []
    for start, stop in intervals:
        if start == stop:
            continue
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined


def _take(node: Any, axes: Axes, wanted: list[Interval], path: str) -> Any:
    if isinstance(axes, Axis):
        return _take_leaf(node, axes, wanted, path)
    if axes is None:
        if any(isinstance(leaf, PackedSequence) for _, leaf in walk(node)):
            raise DataError(
                f"{path} holds a PackedSequence, whose rows cannot be taken apart: put the padded"
                f" tensor and the lengths into the batch and pack them in the step"
            )
        return node
    pairs = children(node) or []
    return rebuild(node, [_take(c, axes[k], wanted, path + step(node, k)) for k, c in pairs])


def _take_leaf(leaf: Any, axis: Axis, wanted: list[Interval], path: str) -> Any:
    n = axis.per_row
    parts = [(start * n, stop * n) for start, stop in wanted]
    try:
        if isinstance(leaf, Tensor):
            return _take_tensor(leaf, axis.dim, parts)
        if isinstance(leaf, np.ndarray):
            before = (slice(None),) * axis.dim
            pieces = [leaf[(*before, slice(start, stop))] for start, stop in parts]
            empty = leaf[(*before, slice(0, 0))]
            return pieces[0] if len(pieces) == 1 else np.concatenate([empty, *pieces], axis.dim)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        raise DataError(f"cannot take rows of {path}, {describe(leaf)}: {error}") from error
    if isinstance(leaf, (list, tuple)):
        return type(leaf)(item for start, stop in parts for item in leaf[start:stop])
    raise DataError(
        f"{path} is {describe(leaf)} with one item per row, which cannot be cut: turn it into a"
        f" tensor or a list in the collate function. {HINT}"
    )


def _take_tensor(tensor: Tensor, dim: int, parts: list[Interval]) -> Tensor:
    if not parts:
        return tensor.narrow(dim, 0, 0)
    pieces = [tensor.narrow(dim, start, stop - start) for start, stop in parts]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)


def whole_rows(tree: RowsTree) -> int:
    """Return the number of rows of a whole batch.

    Raises:
        DataError: Several loaders feed different numbers of rows into one batch.
    """
    numbers = sorted({part.rows for part in _parts(tree)})
    if len(numbers) > 1:
        raise DataError(
            f"the train loaders feed batches of {numbers[0]} and {numbers[-1]} rows into one step,"
            f" which cannot be cut into the same micro-batches: give all loaders the same"
            f" batch_size (and drop_last=True)"
        )
    return numbers[0] if numbers else 0


def _parts(tree: RowsTree) -> list[BatchRows]:
    if isinstance(tree, dict):
        return [part for below in tree.values() for part in _parts(below)]
    return [] if tree is None else [tree]


def as_tree(arranged: Any) -> RowsTree:
    """Return the tree of `BatchRows` that are arranged in any containers."""
    if arranged is None or isinstance(arranged, BatchRows):
        return arranged
    return {key: as_tree(child) for key, child in children(arranged) or ()}


def tree_to_plain(tree: RowsTree) -> Any:
    """Return dicts, lists and numbers, for a message."""
    if isinstance(tree, BatchRows):
        return tree.to_plain()
    return None if tree is None else {key: tree_to_plain(below) for key, below in tree.items()}


def tree_from_plain(plain: Any) -> RowsTree:
    """Return what `tree_to_plain` wrote."""
    if isinstance(plain, list):
        return BatchRows.from_plain(plain)
    return None if plain is None else {key: tree_from_plain(p) for key, p in plain.items()}


def cut(batch: Any, tree: RowsTree, intervals: Sequence[Interval]) -> Any:
    """Return some of the rows that this device has.

    Args:
        batch: The device's part of a batch, as it came out of the batch hooks.
        tree: Its rows.
        intervals: Which to take, counted from the first row on this device.

    Raises:
        DataError: A part that has rows cannot be cut, or a hook changed the number of rows.
    """
    if tree is None:
        return batch
    if isinstance(tree, BatchRows):
        if not has_rows(tree.axes):
            return batch
        return take_rows(batch, tree.mine, intervals, axes=_axes_here(batch, tree.axes, tree.mine))
    pairs = children(batch)
    if pairs is not None and [key for key, _ in pairs] == list(tree):
        return rebuild(batch, [cut(child, tree[key], intervals) for key, child in pairs])
    numbers = {part.mine for part in _parts(tree)}
    if len(numbers) > 1:
        raise DataError(
            f"a batch hook rearranged {describe(batch)}, which several loaders with different"
            f" numbers of rows fed: keep one key for each loader"
        )
    rows = numbers.pop()
    return take_rows(batch, rows, intervals, axes=_axes_here(batch, None, rows))


def _axes_here(batch: Any, known: Axes, rows: int) -> Axes:
    """Where the rows are behind the user's batch hooks, which may have rearranged the batch."""
    axes = known if known is not None and fits(batch, known) else find_axes(batch, rows)[1]
    found = count_rows(batch, axes)
    if found != rows:
        raise DataError(
            f"the loader gave this device {rows} rows, but behind the batch hooks"
            f" (on_after_batch_transfer and the like) there are {found}: the number of rows may not"
            f" change there. Do it in the collate function, or in the step"
        )
    return axes
