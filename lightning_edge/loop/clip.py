"""Gradient clipping by the norm of all gradients, wherever they are.

Lightning asks the precision plugin to clip, and that sees this device's gradients only::

    stage 0   g0 g1 (tied)      squares of g0 + g1       -.
    stage 1   (tied) g2         squares of g2; tied      -+-> sum -> norm -> the same factor
                                counts on one device     -'          for all gradients

The factor is that of `torch.nn.utils.clip_grad_norm_`: max_norm / (norm + 1e-6), at most 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

__all__: list[str] = []

Owned = Callable[[], Iterable[tuple[Parameter, bool]]]


def install(
    precision_plugin: Precision, owned: Owned, reduce_sum: Callable[[Tensor], Tensor]
) -> Callable[[], None]:
    """Make a precision plugin clip by the norm over all devices.

    Args:
        precision_plugin: The plugin; only this instance is changed.
        owned: This device's parameters, each with whether its gradient counts here (a parameter
            that several devices hold counts on one of them).
        reduce_sum: Adds a 1-element float64 CPU tensor up over all devices. Every device calls it
            at each clipping, whatever it owns.

    Returns:
        Gives the plugin its own method back.
    """

    def clip_grad_by_norm(optimizer: Optimizer, clip_val: float) -> None:
        clip(set(_parameters(optimizer)), owned(), float(clip_val), reduce_sum)

    precision_plugin.__dict__["clip_grad_by_norm"] = clip_grad_by_norm

    def remove() -> None:
        if precision_plugin.__dict__.get("clip_grad_by_norm") is clip_grad_by_norm:
            del precision_plugin.__dict__["clip_grad_by_norm"]

    return remove


@torch.no_grad()
def clip(
    wanted: set[Any],
    owned: Iterable[tuple[Parameter, bool]],
    max_norm: float,
    reduce_sum: Callable[[Tensor], Tensor],
) -> Tensor:
    """Scale the gradients of this device's parameters among `wanted`.

    Args:
        wanted: The parameters of the optimizer.
        owned: See `install`.
        max_norm: Norms above it are scaled down to it.
        reduce_sum: See `install`.

    Returns:
        The norm over all devices before clipping, float64 on the CPU.
    """
    here = [(p.grad, counts) for p, counts in owned if p in wanted and p.grad is not None]
    norm = reduce_sum(_squares([gradient for gradient, counts in here if counts])).sqrt()
    coefficient = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    # Multiplying even by 1 spares a decision that devices might take differently, as torch does.
    for gradient, _ in here:
        gradient.mul_(coefficient.to(gradient.device, gradient.dtype))
    return norm.squeeze()


def _squares(gradients: list[Tensor]) -> Tensor:
    """The sum of squares, shape (1,), in float64: squares of large float32 norms would overflow."""
    total = torch.zeros(1, dtype=torch.float64)
    by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for gradient in gradients:
        by_kind.setdefault((gradient.device, gradient.dtype), []).append(gradient)
    for (_, dtype), group in by_kind.items():
        if dtype.itemsize < 4:  # a norm in bfloat16 has two digits
            norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in group]
        else:
            norms = list(torch._foreach_norm(group))
        total += torch.stack(norms).cpu().double().square().sum()
    return total


def _parameters(optimizer: Optimizer) -> Iterable[Any]:
    return (p for group in optimizer.param_groups for p in group["params"])
