"""Functions for the ranks of the pool that know the families."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn

import tests.families.odd
import tests.families.zoo  # noqa: F401  (their models count among tests.models.MODELS)
from lightning_edge.replicate.placeholder import is_fake
from tests.families.own import COMPILED
from tests.models import MODELS
from tests.train.stages import train_stage


def train_family(rank: int, world_size: int, *args: Any) -> Any:
    return train_stage(rank, world_size, *args)


class _Kept:
    """A tensor that autograd keeps, counted while it does."""

    now = most = 0

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.bytes = 0 if is_fake(tensor) or tensor.is_leaf else tensor.nbytes
        _Kept.now += self.bytes
        _Kept.most = max(_Kept.most, _Kept.now)

    def __del__(self) -> None:
        _Kept.now -= self.bytes


def train_counted(rank: int, world_size: int, *args: Any) -> Any:
    """Also count the calls of modules with weights, and the bytes that autograd keeps at once."""
    calls: Counter[str] = Counter()

    def count(module: nn.Module, *_: Any) -> None:
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and not is_fake(weight):
            calls[type(module).__name__] += 1

    handle = nn.modules.module.register_module_forward_hook(count)
    _Kept.now = _Kept.most = 0
    try:
        with torch.autograd.graph.saved_tensors_hooks(_Kept, lambda kept: kept.tensor):
            result = train_stage(rank, world_size, *args)
    finally:
        handle.remove()
    return {**result, "calls": calls, "saved": _Kept.most}


def train_compiled(rank: int, world_size: int, *args: Any) -> Any:
    """Also count the graphs that were compiled, of operations on real tensors."""
    from torch._dynamo.utils import counters  # importing it takes seconds

    COMPILED.clear()
    torch._dynamo.reset()
    counters.clear()
    result = train_stage(rank, world_size, *args)
    return {**result, "compiled": len(COMPILED) or counters["stats"]["unique_graphs"]}


def train_lora(rank: int, world_size: int, plan: Any, model: str, *args: Any) -> Any:
    """Also say how many entries are trained and held here."""
    result = train_stage(rank, world_size, plan, model, *args)
    own = [p for n, p in MODELS[model][0]().named_parameters() if rank in result["holders"][n]]
    trained = sum(p.numel() for p in own if p.requires_grad)
    return {**result, "trained": trained, "held": sum(p.numel() for p in own)}
