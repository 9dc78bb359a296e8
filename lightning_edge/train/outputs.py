"""Outputs of micro-batches put together to what one device would have returned for the whole batch.

micro-batch 0   {"logits": [2, 10], "ids": ["a", "b"], "loss": 0.5}
micro-batch 1   {"logits": [3, 10], "ids": ["c", "d", "e"], "loss": 1.0}
together        {"logits": [5, 10], "ids": ["a", ..., "e"], "loss": 0.8}     (2 * 0.5 + 3 * 1.0) / 5
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_edge.errors import DataError
from lightning_edge.train.axes import describe, is_array
from lightning_edge.train.tree import children, is_sequence, rebuild, step, walk

__all__ = ["merge_outputs"]


def merge_outputs(outputs: Sequence[Any], rows: Sequence[int], adding: Collection[str] = ()) -> Any:
    """Put the outputs of a step together.

    Tensors and arrays are concatenated along their first dimension, lists with one item per row one
    after the other; single numbers become their mean, weighted by rows, or their sum where they add
    up over rows. What is equal everywhere (None, a text) stays what it is.

    Args:
        outputs: At least one, in the order of their rows.
        rows: Number of rows of each.
        adding: Where numbers stand that add up over rows, for instance `['hits']`.

    Raises:
        DataError: The outputs have different structures, or values that have no sum.
    """
    if len(outputs) == 1:
        return outputs[0]
    return _merge(list(outputs), list(rows), "output", {f"output{path}" for path in adding})


def _merge(values: list[Any], rows: list[int], path: str, adding: Collection[str]) -> Any:
    first = values[0]
    if any(type(value) is not type(first) for value in values):
        kinds = ", ".join(sorted({type(value).__name__ for value in values}))
        raise DataError(
            f"{path} is of different kinds ({kinds}) in different micro-batches. {HINT}"
        )
    if path in adding and (not isinstance(first, Tensor) or first.ndim == 0):
        return sum(values[1:], first)
    if isinstance(first, Tensor):
        return _merge_tensors(values, rows, path)
    if isinstance(first, np.ndarray) and first.ndim:
        return np.concatenate(values)
    if isinstance(first, (float, np.floating)):
        return type(first)(_mean([float(value) for value in values], rows))
    if _is_row_list(values, rows):
        return type(first)(item for value in values for item in value)
    pairs = children(first)
    if pairs is not None:
        keys = [key for key, _ in pairs]
        below = [dict(children(value) or ()) for value in values]
        if any(list(other) != keys for other in below):
            raise DataError(f"{path} has different parts in different micro-batches. {HINT}")
        return rebuild(
            first,
            [_merge([b[k] for b in below], rows, path + step(first, k), adding) for k in keys],
        )
    if all(_same(value, first) for value in values):
        return first
    raise DataError(f"{path}, {describe(first)}, cannot be put together from micro-batches. {HINT}")


HINT = (
    "Return tensors, lists with one item per row, or the same value everywhere; or keep whole"
    " batches with EdgeCollabStrategy(eval_micro_batches=1) and one device in the last stage."
)


def _is_row_list(values: list[Any], rows: list[int]) -> bool:
    """Return whether these are lists of rows, rather than lists of things that have rows each."""
    if not is_sequence(values[0]):
        return False
    lengths = [len(value) for value in values]
    if lengths != rows:
        return len(set(lengths)) > 1
    # [logits, labels] of two rows has two items as well
    return not all(
        any(is_array(leaf) and leaf.shape[0] == number for _, leaf in walk(item))
        for value, number in zip(values, rows, strict=True)
        for item in value
    )


def _merge_tensors(values: list[Tensor], rows: list[int], path: str) -> Tensor:
    first = values[0]
    if first.ndim == 0 and all(value.ndim == 0 for value in values):
        if all(torch.equal(value, first) for value in values):
            return first
        if not first.is_floating_point() and not first.is_complex():
            raise DataError(f"{path} is a whole number, {first.item()} and others. {HINT}")
        weights = torch.tensor(rows, dtype=torch.float64, device=first.device) / max(sum(rows), 1)
        total = (torch.stack(values).to(torch.promote_types(first.dtype, torch.float64))) * weights
        return total.sum().to(first.dtype)
    try:
        return torch.cat(values)
    except RuntimeError as error:
        raise DataError(
            f"{path} has shapes {[list(v.shape) for v in values]} in different micro-batches, which"
            f" cannot be concatenated. {HINT}"
        ) from error


def _mean(values: list[float], rows: list[int]) -> float:
    return sum(v * r for v, r in zip(values, rows, strict=True)) / max(sum(rows), 1)


def _same(value: Any, first: Any) -> bool:
    try:
        return bool(value is first or value == first)
    except (TypeError, ValueError):
        return False
