"""Samples and tokens of a batch, where the user does not count them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

__all__: list[str] = []


def batch_samples(batch: Any) -> int:
    """First dimension of the batch's first tensor with one, else the length of the batch.

    Else 1.
    """
    if batch is None:
        return 0  # a device of a plan that has no rows of this batch
    for leaf in tree_leaves(_plain(batch)):
        if isinstance(leaf, torch.Tensor) and leaf.ndim > 0:
            return int(leaf.shape[0])
    return len(batch) if isinstance(batch, list | tuple) else 1


def batch_tokens(batch: Any) -> Any:
    """Tokens of a batch with ``attention_mask`` or ``input_ids``: a number or a tensor; else None.

    The mask's sum stays on its device, so that counting waits for no GPU.
    """
    batch = _plain(batch)
    if not isinstance(batch, Mapping):
        return None
    mask, ids = batch.get("attention_mask"), batch.get("input_ids")
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:
        return mask.detach().sum()
    return ids.numel() if isinstance(ids, torch.Tensor) else None


def _plain(batch: Any) -> Any:
    """A BatchEncoding keeps its tensors in `data` and is no dict to pytree."""
    data = getattr(batch, "data", None)
    return data if isinstance(data, Mapping) and not isinstance(batch, torch.Tensor) else batch
