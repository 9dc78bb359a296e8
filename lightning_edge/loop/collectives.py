"""Reductions of tensors that were gathered from all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_edge.errors import UnsupportedError

__all__: list[str] = []

_OPERATIONS = {
    "mean": lambda parts: parts.sum(0) / len(parts),
    "avg": lambda parts: parts.sum(0) / len(parts),
    "sum": lambda parts: parts.sum(0),
    "max": lambda parts: parts.max(0).values,
    "min": lambda parts: parts.min(0).values,
    "product": lambda parts: parts.prod(0),
}


def reduce_tensors(parts: Sequence[Tensor], operation: Any) -> Tensor:
    """Reduce equal tensors over ranks.

    Args:
        parts: One per rank.
        operation: "mean", "sum", "max", "min", "product", or torch's `ReduceOp`; None is the mean.

    Raises:
        UnsupportedError: For any other operation.
    """
    name = str(operation if operation is not None else "mean").rpartition(".")[2].lower()
    if name not in _OPERATIONS:
        known = ", ".join(_OPERATIONS)
        raise UnsupportedError(f"reduce_op={operation!r} is not one of {known}")
    reduced: Tensor = _OPERATIONS[name](torch.stack(list(parts)))
    return reduced
