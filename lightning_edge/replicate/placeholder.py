"""Parameters that another device holds: right shape, dtype and device, no memory.

A placeholder is an `nn.Parameter` around a FakeTensor. Whatever is computed from it is fake too, so
that the user's own code runs in front of this device's stage at the cost of shape arithmetic, and
"is it fake?" says what has to be received.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from lightning_edge.replicate.mode import PlaceholderMode

__all__: list[str] = []

# every device can afford smaller tensors: they are real wherever code may ask for their values
SMALL_ENTRIES = 1 << 14
_HOOKS = "_hooks_of_the_real_one"


def fake_mode(lenient: bool = False) -> PlaceholderMode:
    """Make the mode that all placeholders of a module belong to; see `PlaceholderMode`."""
    _attributes_of_fakes()  # looked at while no other mode is entered
    return PlaceholderMode(lenient)


def is_fake(value: object) -> bool:
    """Whether `value` is a tensor without data (a placeholder, or computed from one)."""
    if isinstance(value, FakeTensor):
        return True
    return isinstance(value, nn.Parameter) and isinstance(value.data, FakeTensor)


def placeholder_like(tensor: Tensor, mode: FakeTensorMode) -> nn.Parameter:
    """A parameter without memory that answers like `tensor`: shape, dtype, device."""
    fake = mode.from_tensor(tensor.detach())
    return like(nn.Parameter(cast(Tensor, fake), requires_grad=tensor.requires_grad), tensor)


def like(new: nn.Parameter, old: Tensor) -> nn.Parameter:
    """Give a parameter that takes the place of another one its attributes and hooks.

    Users mark parameters (`p.no_decay = True`) and change gradients in hooks. A placeholder has no
    gradients; it keeps the hooks for who takes its place.
    """
    hooks = [("register_hook", h) for h in (old._backward_hooks or {}).values()]
    later = getattr(old, "_post_accumulate_grad_hooks", None) or {}
    hooks += [("register_post_accumulate_grad_hook", h) for h in later.values()]
    kept = vars(old)
    hooks += kept.get(_HOOKS, [])
    vars(new).update({k: v for k, v in kept.items() if k not in (_HOOKS, *_attributes_of_fakes())})
    if new.requires_grad and not is_fake(new):
        for register, hook in hooks:
            getattr(new, register)(hook)
    elif hooks:
        vars(new)[_HOOKS] = hooks
    return new


@cache
def _attributes_of_fakes() -> frozenset[str]:
    """What torch itself keeps in the attributes of a placeholder."""
    bare = nn.Parameter(cast(Tensor, FakeTensorMode().from_tensor(torch.empty(1))))
    return frozenset(vars(bare))


def parameter_sites(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """Every place a parameter is registered at: (full name, owner module, key, parameter)."""
    for prefix, owner in module.named_modules(remove_duplicate=True):
        for key, parameter in owner._parameters.items():
            if parameter is not None:
                yield (f"{prefix}.{key}" if prefix else key), owner, key, parameter


def swap_parameters(
    module: nn.Module, replace: Callable[[str, nn.Parameter], nn.Parameter | None]
) -> dict[int, tuple[nn.Parameter, nn.Parameter]]:
    """Replace parameters in place; tied ones get one common replacement.

    Args:
        module: Whose parameter tables are changed.
        replace: Gives the replacement of a parameter, by its first name, or None to leave it.

    Returns:
        By the id of the new parameter: (new, original). Holding both keeps the ids from being
        reused.
    """
    done: dict[int, tuple[nn.Parameter | None, nn.Parameter]] = {}
    for name, owner, key, original in list(parameter_sites(module)):
        if id(original) not in done:
            done[id(original)] = (replace(name, original), original)
        new = done[id(original)][0]
        if new is not None:
            # setattr, not the table: nn.LSTM and friends keep lists of their weights up to date in
            # it
            setattr(owner, key, new)
    return {id(new): (new, original) for new, original in done.values() if new is not None}


def materialize(parameter: nn.Parameter, device: torch.device) -> nn.Parameter:
    """An uninitialised real parameter in place of a placeholder."""
    empty = torch.empty_strided(
        parameter.size(), parameter.stride(), dtype=parameter.dtype, device=device
    )
    return like(nn.Parameter(empty, requires_grad=parameter.requires_grad), parameter)


def eager() -> AbstractContextManager[Any]:
    """Run what `torch.compile` has wrapped as it is: placeholders cannot be compiled for."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes seconds
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


@contextmanager
def convertible() -> Iterator[None]:
    """Let `module.to(...)` and its like convert modules that have placeholders.

    PyTorch would swap their contents, which FakeTensors refuse.
    """
    original = nn.Module._apply

    def _apply(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        fakes = [site for site in list(parameter_sites(self)) if is_fake(site[3])]
        for _, owner, key, _ in fakes:
            owner._parameters[key] = None
        try:
            return original(self, fn, recurse)  # type: ignore[no-untyped-call]
        finally:
            new: dict[int, nn.Parameter] = {}
            for _, owner, key, fake in fakes:
                if id(fake) not in new:
                    with torch.no_grad():
                        made = fn(fake)
                    same = made is fake
                    new[id(fake)] = (
                        fake if same else like(nn.Parameter(made, fake.requires_grad), fake)
                    )
                owner._parameters[key] = new[id(fake)]

    nn.Module._apply = _apply  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module._apply = original  # type: ignore[method-assign]


def outside_graph(leaf: Tensor) -> Tensor:
    """A copy that asks for a gradient if the original does, keeps no graph, and may be changed."""
    if not leaf.requires_grad:
        return leaf.detach()
    with torch.enable_grad():
        anchor = torch.empty(0, requires_grad=True)
        marked: Tensor = _Mark.apply(anchor, leaf.detach())  # type: ignore[no-untyped-call]
        return marked


class _Mark(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, leaf: Tensor) -> Tensor:
        return leaf.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, None
