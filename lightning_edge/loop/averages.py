"""Copies of the module that callbacks keep: averaged weights, the best ones so far.

A callback copies the whole module in its `setup`, before the module is divided, and walks over both
side by side from then on. So the copies are divided like the module:

    module    blocks.0 real   blocks.1 fake        rank 0; on rank 1 it is the other way round
    average   blocks.0 real   blocks.1 fake

In a checkpoint the two parts meet again, as those of the module do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

__all__: list[str] = []

Path = tuple[str | int, ...]
WRAPPER = "module."  # torch.optim.swa_utils.AveragedModel and its like


def copies(module: nn.Module, callbacks: Iterable[Any]) -> Iterator[nn.Module]:
    """Find the copies of a module in the attributes of callbacks.

    Args:
        module: Any; a copy has parameters of the same names and shapes.
        callbacks: Where to look.
    """
    shapes = _shapes(module)
    for callback in callbacks:
        for value in list(vars(callback).values()):
            if not isinstance(value, nn.Module) or not shapes:
                continue
            for found in (value, getattr(value, "module", None)):
                if not isinstance(found, nn.Module) or found is module:
                    continue
                if _shapes(found) == shapes:
                    yield found
                    break


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def names_one_of(path: Path, names: frozenset[str]) -> bool:
    """Whether a place in a checkpoint is that of one of the module's tensors, or of its copy's."""
    if not path or path[0] == "optimizer_states" or not isinstance(path[-1], str):
        return False
    return path[-1] in names or path[-1].removeprefix(WRAPPER) in names
