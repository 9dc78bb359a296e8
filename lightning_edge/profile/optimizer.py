"""What an optimizer's step costs: seconds and state, per byte of gradients.

The optimizer that `configure_optimizers` makes is tried on copies of some of the parameters; the
model's own parameters are not touched.
"""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_edge.profile.clock import clock_for
from lightning_edge.replicate.placeholder import is_fake

__all__: list[str] = []

SAMPLE_BYTES = 32 << 20
LEAST_S = 0.15


@dataclass(frozen=True)
class OptimizerCost:
    """Of one step.

    Attributes:
        seconds_per_byte: Of gradients.
        state_ratio: Bytes of state per byte of gradients.
        why_not: Why nothing could be measured and AdamW was tried instead; "" if it was.
    """

    seconds_per_byte: float
    state_ratio: float
    why_not: str = ""


def measure_optimizer(
    configure: Callable[[], Any], module: nn.Module, device: torch.device
) -> OptimizerCost:
    """Try the module's optimizer.

    Args:
        configure: `configure_optimizers`, called as the Trainer would.
        module: Whose parameters it is for.
        device: Where they are.
    """
    why_not = ""
    try:
        found = list(_optimizers(configure()))
        if found:
            return _try(found[0], device)
        return OptimizerCost(0.0, 0.0, "there is no optimizer")
    except Exception as error:  # it wants a trainer, a closure, or state of its own
        why_not = f"{type(error).__name__}: {error}"
    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained:
        return OptimizerCost(0.0, 0.0, "no parameter needs a gradient")
    return replace(_try(torch.optim.AdamW(trained), device), why_not=why_not)


def _optimizers(made: Any) -> Iterator[torch.optim.Optimizer]:
    """Find the optimizers in whatever `configure_optimizers` may return."""
    if isinstance(made, torch.optim.Optimizer):
        yield made
    elif isinstance(made, Mapping):
        yield from _optimizers(made.get("optimizer"))
    elif isinstance(made, (list, tuple)):
        for part in made:
            yield from _optimizers(part)


def _try(optimizer: torch.optim.Optimizer, device: torch.device) -> OptimizerCost:
    sample: Any = copy.copy(optimizer)
    sample.state = defaultdict(dict)
    sample.param_groups, parameters = _copies(optimizer.param_groups, device)
    if not parameters:
        return OptimizerCost(0.0, 0.0, "it has no parameters that need a gradient")
    size = sum(p.numel() * p.element_size() for p in parameters)
    clock = clock_for(device)
    sample.step()  # makes the state
    spent, steps, begun = 0.0, 0, time.perf_counter()
    while steps < 2 or time.perf_counter() - begun < LEAST_S:
        start = clock.mark()
        sample.step()
        end = clock.mark()
        clock.settle()
        spent, steps = spent + clock.seconds(start, end), steps + 1
    state = sum(
        value.numel() * value.element_size()
        for entry in sample.state.values()
        for value in entry.values()
        if isinstance(value, Tensor) and value.dim() > 0
    )
    return OptimizerCost(spent / steps / size, round(state / size, 3))


def _copies(
    groups: Sequence[Mapping[str, Any]], device: torch.device
) -> tuple[list[dict[str, Any]], list[nn.Parameter]]:
    """Copy parameters of all groups, with gradients, as many as the sample may have."""
    made: list[nn.Parameter] = []
    copied = []
    left = SAMPLE_BYTES
    for group in groups:
        mine: list[nn.Parameter] = []
        for parameter in group["params"]:
            size = parameter.numel() * parameter.element_size()
            if not parameter.requires_grad or (made or mine) and size > left:
                continue
            left -= size
            values = torch.zeros(parameter.shape, dtype=parameter.dtype, device=device)
            if not is_fake(parameter):
                values.copy_(parameter.detach())
            twin = nn.Parameter(values)
            twin.grad = torch.full_like(values, 1e-3)
            mine.append(twin)
        copied.append({**group, "params": mine})
        made += mine
    return copied, made
