"""Names for what a step computes, equal on all devices although each skips other parts of it.

Nothing is counted over the whole step. A result is named after the module call whose code made it,
the child calls that code has made so far, the function, and how often that function ran since:

    def forward(self, ids):         running call ">model"
        h = self.wte(ids)           >model>wte|out            the output of a call
        h = h + self.scale          >model|1|add|0            behind 1 child call, the 1st "add"
        for block in self.h:
            h = h + block(h)        >model|2|add|0            behind 2, again the 1st
        return h                    >model|out                one tensor may have several names

A device that skips `wte` still sees its output, and one that skips `model` does not need the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

__all__: list[str] = []


class Site(NamedTuple):
    """A place a value can be seen at.

    Attributes:
        name: As in the picture above.
        inside: The modules that are running there: who skips one of them does not see it.
        position: Module calls made by then.
    """

    name: str
    inside: tuple[str, ...]
    position: int


@dataclass
class _Frame:
    module: str
    key: str
    children: dict[str, int] = field(default_factory=dict)
    begun: int = 0
    functions: dict[str, int] = field(default_factory=dict)


class Whereabouts:
    """Follows a step through its modules: told of calls, it names what is made."""

    def __init__(self) -> None:
        self._frames = [_Frame("", "")]

    def restart(self) -> None:
        """A new step begins; the one before may have been left anywhere."""
        self._frames = [_Frame("", "")]

    @property
    def module(self) -> str:
        """The module whose code is running; "" is the step itself."""
        return self._frames[-1].module

    @property
    def key(self) -> str:
        """The call that is running."""
        return self._frames[-1].key

    @property
    def inside(self) -> tuple[str, ...]:
        """All modules that are running."""
        return tuple(frame.module for frame in self._frames[1:])

    def enter(self, module: str) -> None:
        """A module is called."""
        frame = self._frames[-1]
        number = frame.children.get(module, 0)
        frame.children[module] = number + 1
        frame.begun += 1
        frame.functions.clear()
        short = module.removeprefix(f"{frame.module}.") if frame.module else module
        self._frames.append(_Frame(module, f"{frame.key}>{short}" + (f"#{number}" * bool(number))))

    def leave(self, module: str) -> str:
        """A module has returned.

        Returns:
            Its call.
        """
        while len(self._frames) > 1:  # an exception may have left calls inside it
            frame = self._frames.pop()
            if frame.module == module:
                return frame.key
        return ""

    def function(self, func: Callable[..., Any]) -> str:
        """The name of a function's result; every call of it has to be told."""
        frame, name = self._frames[-1], getattr(func, "__name__", "?")
        number = frame.functions.get(name, 0)
        frame.functions[name] = number + 1
        return f"{frame.key}|{frame.begun}|{name}|{number}"


def numbered(name: str, tree: Any) -> list[tuple[str, Tensor]]:
    """The tensors in a function's or a module's result, with their names."""
    if isinstance(tree, Tensor):
        return [(name, tree)]
    leaves = tree_flatten(tree)[0]
    return [(f"{name}.{i}", leaf) for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]


def follow_calls(
    module: nn.Module,
    entered: Callable[[str, Any], None],
    left: Callable[[str, Any], None],
) -> list[Any]:
    """Have every call of a sub-module reported, in front of other hooks.

    Args:
        module: Whose children are followed.
        entered: Given a name and `(args, kwargs)`.
        left: Given a name and what the call returned (None when it raised).

    Returns:
        Handles that take the hooks off.
    """
    handles: list[Any] = []

    def before(name: str) -> Callable[..., None]:
        return lambda _, args, kwargs: entered(name, (args, kwargs))

    def after(name: str) -> Callable[..., None]:
        return lambda _, args, output: left(name, output)

    for name, child in module.named_modules():
        if name and not isinstance(child, torch.jit.ScriptModule):  # those know no hooks
            handles.append(
                child.register_forward_pre_hook(before(name), with_kwargs=True, prepend=True)
            )
            handles.append(child.register_forward_hook(after(name), always_call=True))
    return handles
