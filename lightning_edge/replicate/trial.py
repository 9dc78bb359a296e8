"""Modules that cannot run without data: a run on zeros says what shapes they give.

A mixture of experts asks which rows went to which expert, and placeholders cannot answer. Such a
module is run for real, once, on zeros in the shapes of its arguments and parameters; the results'
shapes come back as placeholders. The zeros are freed at once, and nobody needs more memory for them
than who holds the module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves, tree_map

from lightning_edge.replicate.placeholder import is_fake, outside_graph, swap_parameters

__all__: list[str] = []


class Trials:
    """Has some modules run on zeros wherever they would run on placeholders.

    Args:
        module: The whole module.
        names: Those of its children.
        tried: Called behind each such run.
    """

    def __init__(
        self,
        module: nn.Module,
        names: Iterable[str],
        tried: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._before: list[tuple[nn.Module, Any]] = []
        for name in names:
            self._wrap(name, module.get_submodule(name), tried)

    def _wrap(self, name: str, child: nn.Module, tried: Callable[[str], None]) -> None:
        forward = child.forward

        def trying(*args: Any, **kwargs: Any) -> Any:
            if not all(is_fake(parameter) for parameter in child.parameters()):
                return forward(*args, **kwargs)
            result = _on_zeros(child, forward, args, kwargs)
            tried(name)
            return result

        self._before.append((child, child.__dict__.get("forward")))
        child.__dict__["forward"] = trying

    def close(self) -> None:
        """Give every module its own forward back."""
        for child, before in reversed(self._before):
            child.__dict__.pop("forward", None)
            if before is not None:
                child.__dict__["forward"] = before
        self._before = []


def _on_zeros(
    child: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    fakes = [
        leaf
        for leaf in (*tree_leaves((args, kwargs)), *child.parameters())
        if isinstance(leaf, Tensor) and is_fake(leaf)
    ]
    if not fakes:
        return forward(*args, **kwargs)
    # a placeholder among parameters is an nn.Parameter around a FakeTensor
    mode = next(t.fake_mode if isinstance(t, FakeTensor) else t.data.fake_mode for t in fakes)  # type: ignore[attr-defined]
    learns = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in fakes)
    swapped = swap_parameters(child, lambda _, p: nn.Parameter(_zeros(p), requires_grad=False))
    try:
        with torch.no_grad():
            result = forward(*tree_map(_real, args), **tree_map(_real, kwargs))
    finally:
        swap_parameters(child, lambda _, p: swapped[id(p)][1] if id(p) in swapped else None)

    def fake(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        made = mode.from_tensor(leaf.detach())
        return outside_graph(made.requires_grad_()) if learns and leaf.is_floating_point() else made

    return tree_map(fake, result)


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros(tuple(like.shape), dtype=like.dtype, device=like.device)


def _real(leaf: Any) -> Any:
    return _zeros(leaf) if isinstance(leaf, Tensor) and is_fake(leaf) else leaf
