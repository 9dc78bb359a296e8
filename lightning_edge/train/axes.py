"""Where the rows of a batch are: which dimension of which leaf grows with the number of samples.

batch of 8 rows                    axes
{"image": [8, 3, 32, 32],          {"image": Axis(0),
 "choices": [16, 77],               "choices": Axis(0, per_row=2),   two entries for each row
 "audio": [400, 8, 64],             "audio": Axis(1),                time first
 "text": 8 strings,                 "text": Axis(0),                 a list, one item per sample
 "class_weights": [10]}             "class_weights": None}           the same for all rows

There are three ways to know, from the best to the last resort: the module says so
(`edge_row_dims`), the same samples were collated in two different numbers and what grew was seen
(`learn_axes`), or the first dimension is taken (`find_axes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Set, Sized
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_edge.errors import DataError
from lightning_edge.train.tree import children, is_sequence, step, walk

__all__: list[str] = []

HINT = (
    "Say where the rows are: define `edge_row_dims(self, batch)` in your LightningModule; it"
    " returns the batch's structure with the row dimension of each leaf (0 for a list with one item"
    " per sample, None for what all rows share; None alone for a batch that cannot be cut)."
)


_UNORDERED_OR_WHOLE = (str, bytes, Mapping, Set, torch.Size, PackedSequence)


class Axis(NamedTuple):
    """The rows of one leaf, or of a list with one item per sample.

    Attributes:
        dim: The dimension they lie along; 0 for a list.
        per_row: Entries along it for each row.
    """

    dim: int
    per_row: int = 1


Axes: TypeAlias = "Axis | dict[Any, Axes] | None"
"""A tree that ends where the rows are found; None where there are none below."""


def is_array(leaf: Any) -> bool:
    """Return whether a leaf is a tensor or NumPy array with at least one dimension."""
    return isinstance(leaf, (Tensor, np.ndarray)) and leaf.ndim > 0


def size_along(node: Any, dim: int) -> int | None:
    """Return how many entries a tensor, array or list has along a dimension, None if it has not."""
    if is_array(node):
        return int(node.shape[dim]) if -node.ndim <= dim < node.ndim else None
    if dim == 0 and isinstance(node, Sized) and not isinstance(node, _UNORDERED_OR_WHOLE):
        try:
            return len(node)
        except TypeError:  # a 0-dim tensor has a __len__ that raises
            return None
    return None


def find_axes(batch: Any, rows: int | None = None) -> tuple[int, Axes]:
    """Guess the rows from one batch: they lie along the first dimension.

    Args:
        batch: Anything a DataLoader yields.
        rows: The number of rows, if it is known; else that of the first tensor, or of the first
            list if there is no tensor.

    Raises:
        DataError: There is nothing to count.
    """
    number = _count(batch) if rows is None else rows
    return number, _guess(batch, number)


def _count(batch: Any) -> int:
    for _, leaf in walk(batch):
        if is_array(leaf):
            return int(leaf.shape[0])
    plain = _first_plain_list(batch)
    if plain is None:
        raise DataError(
            f"cannot see how many rows a batch has: {describe(batch)} contains no tensor with a"
            f" dimension and no list. {HINT}"
        )
    return len(plain)


def _first_plain_list(node: Any) -> Sized | None:
    pairs = children(node)
    if pairs is None:
        return None
    if is_sequence(node) and pairs and all(children(child) is None for _, child in pairs):
        return node  # type: ignore[no-any-return]
    for _, child in pairs:
        found = _first_plain_list(child)
        if found is not None:
            return found
    return None


def _guess(node: Any, rows: int) -> Axes:
    pairs = children(node)
    if pairs is None:
        return Axis(0) if size_along(node, 0) == rows else None
    below = {key: _guess(child, rows) for key, child in pairs}
    # [inputs, labels] of two rows is a list of two as well: its items have the rows themselves.
    if is_sequence(node) and len(pairs) == rows and not any(map(has_rows, below.values())):
        return Axis(0)
    return below


def has_rows(axes: Axes) -> bool:
    """Return whether there are rows anywhere below."""
    if isinstance(axes, dict):
        return any(map(has_rows, axes.values()))
    return axes is not None


def learn_axes(first: Any, rows: int, second: Any, other: int) -> Axes:
    """Compare a batch with one of the same samples in another number: what grew has the rows.

    Args:
        first: A batch of `rows` rows.
        rows: More than 0.
        second: A batch of `other` rows.
        other: Not equal to `rows`.

    Raises:
        DataError: The two differ in more than their rows.
    """
    a, b = children(first), children(second)
    if (a is None) != (b is None) or type(first) is not type(second):
        raise DataError("batches of different numbers of rows have different structures")
    if a is None or b is None:
        return _learn_leaf(first, rows, second, other)
    if is_sequence(first) and len(a) != len(b):
        if (len(a), len(b)) == (rows, other):
            return Axis(0)
        raise DataError("a list in the batch grows with its rows by no rule that we know")
    if [key for key, _ in a] != [key for key, _ in b]:
        raise DataError("batches of different numbers of rows have different keys")
    return {key: learn_axes(x, rows, y, other) for (key, x), (_, y) in zip(a, b, strict=True)}


def _learn_leaf(first: Any, rows: int, second: Any, other: int) -> Axes:
    dims = range(max(getattr(first, "ndim", 1), 1))
    sizes = [(dim, size_along(first, dim), size_along(second, dim)) for dim in dims]
    grown = [
        Axis(dim, a // rows)
        for dim, a, b in sizes
        if a is not None and a % rows == 0 and a > 0 and b == a // rows * other
    ]
    return min(grown, key=lambda axis: (axis.per_row, axis.dim), default=None)


def axes_from_dims(batch: Any, dims: Any) -> Axes:
    """Turn what a module's `edge_row_dims` returned into axes.

    Raises:
        DataError: It does not fit the batch; all problems at once.
    """
    problems: list[str] = []
    axes = _from_dims(batch, dims, "batch", problems)
    if problems:
        raise DataError(f"edge_row_dims does not fit the batch: {'; '.join(problems)}")
    sizes = [size for _, size, _ in _measured(batch, axes, "batch")]
    rows = min(sizes, default=0)
    return _with_per_row(batch, axes, rows) if rows else axes


def _from_dims(node: Any, dims: Any, path: str, problems: list[str]) -> Axes:
    if dims is None:
        return None
    if isinstance(dims, int) and not isinstance(dims, bool):
        if size_along(node, dims) is None:
            problems.append(f"{path} is {describe(node)} and has no dimension {dims}")
            return None
        return Axis(dims % node.ndim if is_array(node) else dims)
    pairs, said = children(node), children(dims)
    if pairs is None or said is None:
        problems.append(f"{path} is {describe(node)}, not a container like {dims!r}")
        return None
    here, below = dict(pairs), dict(said)
    if set(here) != set(below):
        problems.append(f"{path} has {list(here)}, edge_row_dims says {list(below)}")
        return None
    return {
        key: _from_dims(child, below[key], path + step(node, key), problems) for key, child in pairs
    }


def _with_per_row(node: Any, axes: Axes, rows: int) -> Axes:
    if isinstance(axes, Axis):
        return Axis(axes.dim, (size_along(node, axes.dim) or 0) // rows)
    if axes is None:
        return None
    return {key: _with_per_row(child, axes[key], rows) for key, child in children(node) or ()}


def fits(batch: Any, axes: Axes) -> bool:
    """Return whether axes found on another batch can be meant for this one."""
    if axes is None:
        return True
    if isinstance(axes, Axis):
        return size_along(batch, axes.dim) is not None
    pairs = children(batch)
    if pairs is None or [key for key, _ in pairs] != list(axes):
        return False
    return all(fits(child, axes[key]) for key, child in pairs)


def count_rows(batch: Any, axes: Axes) -> int:
    """Return the number of rows of a batch.

    Raises:
        DataError: The leaves disagree, or none has rows.
    """
    measured = _measured(batch, axes, "batch")
    if not measured:
        raise DataError(f"no part of the batch, {describe(batch)}, has rows. {HINT}")
    _, size, axis = measured[0]
    rows = size // axis.per_row
    wrong = [
        f"{path} has {size} entries in dimension {axis.dim}"
        + (f" ({axis.per_row} for each row)" if axis.per_row > 1 else "")
        for path, size, axis in measured
        if size != rows * axis.per_row
    ]
    if wrong:
        raise DataError(
            f"the batch has {rows} rows by {measured[0][0]}, but {', '.join(wrong)}. {HINT}"
        )
    return rows


def _measured(node: Any, axes: Axes, path: str) -> list[tuple[str, int, Axis]]:
    if axes is None:
        return []
    if isinstance(axes, Axis):
        return [(path, size_along(node, axes.dim) or 0, axes)]
    found = []
    for key, child in children(node) or ():
        found += _measured(child, axes[key], path + step(node, key))
    return found


def describe(node: Any) -> str:
    """Return a short text for messages: what a value is."""
    if isinstance(node, (Tensor, np.ndarray)):
        return f"a {type(node).__name__} of shape {list(node.shape)}"
    if isinstance(node, (dict, list, tuple)):
        return f"a {type(node).__name__} of {len(node)}"
    return f"a {type(node).__name__}"


def to_plain(axes: Axes) -> Any:
    """Return axes as dicts, lists and numbers, for a message."""
    if isinstance(axes, Axis):
        return list(axes)
    return None if axes is None else {key: to_plain(below) for key, below in axes.items()}


def from_plain(plain: Any) -> Axes:
    """Return the axes that `to_plain` wrote."""
    if isinstance(plain, list):
        return Axis(*plain)
    return None if plain is None else {key: from_plain(below) for key, below in plain.items()}
