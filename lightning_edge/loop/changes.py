"""What a hook changes on the devices that run it, done on the others as well.

An epoch-end hook may stop the training, thaw a layer or set a learning rate. It runs on the last
stage only, but all devices have to do the same from then on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

__all__: list[str] = []

_PLAIN = (bool, int, float, str, type(None), Tensor)


class Changes:
    """Remembers the module's settings, to find what has changed since.

    Args:
        module: The user's module, attached to its Trainer.
    """

    def __init__(self, module: LightningModule) -> None:
        self._module = module
        self._before = dict(self._settings())

    def found(self) -> dict[tuple[Any, ...], Any]:
        """Settings whose value is another one now, with that value."""
        return {
            key: value
            for key, value in self._settings()
            if key not in self._before or not _equal(value, self._before[key])
        }

    def make(self, changes: Mapping[tuple[Any, ...], Any]) -> None:
        """Make changes that were found on another device (making one's own again does nothing)."""
        trainer = self._module.trainer
        parameters = dict(self._module.named_parameters())
        for (kind, *where), value in changes.items():
            if kind == "should_stop":
                trainer.should_stop = value
            elif kind == "requires_grad":
                parameters[where[0]].requires_grad = value
            elif kind == "optimizer":
                index, group, name = where
                trainer.optimizers[index].param_groups[group][name] = value
            else:
                trainer.lr_scheduler_configs[where[0]].scheduler.load_state_dict(value)

    def _settings(self) -> Iterator[tuple[tuple[Any, ...], Any]]:
        trainer = self._module.trainer
        yield ("should_stop",), trainer.should_stop
        for name, parameter in self._module.named_parameters():
            yield ("requires_grad", name), parameter.requires_grad
        for index, optimizer in enumerate(trainer.optimizers):
            for number, group in enumerate(optimizer.param_groups):
                for name, value in group.items():
                    if name != "params" and _is_plain(value):
                        yield ("optimizer", index, number, name), deepcopy(value)
        for index, config in enumerate(trainer.lr_scheduler_configs):
            state = config.scheduler.state_dict()
            if _is_plain(state):
                yield ("scheduler", index), deepcopy(state)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(item) for item in (*value, *value.values()))
    if isinstance(value, (tuple, list)):
        return all(_is_plain(item) for item in value)
    return isinstance(value, _PLAIN)


def _equal(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)
