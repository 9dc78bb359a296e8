"""States of a torchmetrics object on several devices, put together as one device would have them.

torchmetrics itself gathers state by state over the default process group, which does not exist
here, and hangs when list states differ in length. Here all states travel in one message, with those
of nested metrics (wrappers, compositions), and a device that had no updates is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

__all__: list[str] = []

States = Mapping[str, Mapping[str, Any]]


def nested(metric: Metric) -> dict[str, Metric]:
    """The metric itself (under "") and those inside it, by path."""
    return {name: part for name, part in metric.named_modules() if isinstance(part, Metric)}


def states_of(metric: Metric) -> dict[str, dict[str, Any]]:
    """All states with the number of updates behind them, by path of the nested metric."""
    return {
        name: {
            "updates": part._update_count,
            "states": {attr: _compact(part, attr) for attr in part._reductions},
        }
        for name, part in nested(metric).items()
    }


def _compact(metric: Metric, attr: str) -> Any:
    state = tree_map_only(Tensor, Tensor.detach, getattr(metric, attr))
    if isinstance(state, list) and len(state) > 1 and metric._reductions[attr] is dim_zero_cat:
        return [dim_zero_cat(state)]
    return state


def blank_copy(metric: Metric) -> Metric:
    """A copy in the state of a reset metric, made without copying the states."""
    # States may be long, and those that hold a graph (forward makes such) cannot be copied.
    hidden = [(part, dict(part.__dict__)) for part in nested(metric).values()]
    try:
        for part, _ in hidden:
            part._computed = part._forward_cache = part._cache = None
            for attr, default in part._defaults.items():
                setattr(part, attr, deepcopy(default))
        return metric.clone()
    finally:
        for part, attributes in hidden:
            part.__dict__.update(attributes)


@contextmanager
def merged(metric: Metric, parts: Sequence[States]) -> Iterator[None]:
    """Give the metric the states of all `parts` for the length of the block.

    Args:
        metric: One of the metrics that the parts are of.
        parts: What `states_of` gave on each device, in the same order on all of them.
    """
    own: list[tuple[Metric, dict[str, Any], int]] = []
    try:
        for name, metric_part in nested(metric).items():
            found = [part[name] for part in parts if name in part]
            updated = [part for part in found if part["updates"]] or found
            states = {attr: getattr(metric_part, attr) for attr in metric_part._reductions}
            own.append((metric_part, states, metric_part._update_count))
            metric_part._computed = None
            metric_part._update_count = sum(part["updates"] for part in found)
            for attr in metric_part._reductions:
                values = [part["states"][attr] for part in updated]
                setattr(metric_part, attr, _merge(metric_part, attr, values))
        yield
    finally:
        for metric_part, states, updates in own:
            metric_part._update_count = updates
            for attr, state in states.items():
                setattr(metric_part, attr, state)


def _merge(metric: Metric, attr: str, values: Sequence[Any]) -> Any:
    values = [_to(value, metric.device) for value in values]
    if len(values) == 1:
        return values[0]
    reduction: Any = metric._reductions[attr]
    if any(isinstance(value, list) for value in values):
        flat = [v for value in values for v in (value if isinstance(value, list) else [value])]
        return reduction(flat) if reduction is not None and flat else flat
    if reduction is dim_zero_cat:
        return torch.cat([value.reshape(-1) if value.dim() == 0 else value for value in values])
    stacked = torch.stack(values)
    return stacked if reduction is None else reduction(stacked)


def _to(state: Any, device: torch.device) -> Any:
    if isinstance(state, list):
        return [_to(item, device) for item in state]
    return state.to(device) if isinstance(state, Tensor) else state
