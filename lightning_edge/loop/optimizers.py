"""Optimizers for a step that is tried before there are any.

A step may ask for its learning rate (`self.optimizers().param_groups[0]["lr"]`). Where the model is
cut is found out by trying the step, and optimizers can only be made of parameters in their places.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import nn
from torch.optim.lr_scheduler import ConstantLR

if TYPE_CHECKING:
    from lightning.pytorch.strategies import Strategy

__all__: list[str] = []

_GROUPS = 8  # as many as a step may ask for


@contextmanager
def optimizers_to_come(strategy: Strategy) -> Iterator[None]:
    """Let a strategy that has no optimizer yet have one that trains nothing, and a scheduler."""
    if strategy.optimizers:
        yield
        return
    groups = [{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(_GROUPS)]
    optimizer = torch.optim.SGD(groups, lr=0.0)
    strategy.optimizers = [optimizer]
    strategy.lr_scheduler_configs = [LRSchedulerConfig(ConstantLR(optimizer))]
    try:
        yield
    finally:
        strategy.optimizers, strategy.lr_scheduler_configs = [], []
