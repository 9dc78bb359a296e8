"""Values that cross a cut beside the arguments of its block: residuals, skips, encoder states.

Both sides of the cut know such a value by its site (`replicate.sites`). The stage in front keeps
the real tensor when the step comes by there; the stage behind comes by the same site with a
placeholder, and gives every operation behind its entry what was received instead:

    stage 0   skip = down(x)     real, kept            cut at `up`: arguments and `skip` are sent
    stage 1   skip = down(x)     a placeholder         cut at `up`: both are received
              up(...)
              cat([y, skip])     <- the operation is given the received tensor

A stage between the two hands the value on. Its gradient comes back the same way, summed over uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from lightning_edge.replicate.sites import Whereabouts, follow_calls, numbered
from lightning_edge.replicate.trace import tensor_leaves

__all__: list[str] = []

Substitutes = dict[int, tuple[Tensor, Tensor]]
"""By the id of a placeholder's result: (it, what was received for it)."""


class Carry:
    """Finds the values to carry while a step runs, by their sites.

    Args:
        module: Whose calls are followed once there is something to find.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.where = Whereabouts()
        self._handles: list[Any] = []
        self._sites: Mapping[str, str] = {}
        self._calls: frozenset[str] = frozenset()
        self._found: dict[str, list[Tensor]] | None = None

    def look_for(self, sites: Mapping[str, str]) -> None:
        """Look for these from here on.

        Args:
            sites: Site to the name of the value that can be seen there.
        """
        self._sites = sites
        self._calls = frozenset(site.partition("|")[0] for site in sites)
        if sites and not self._handles:
            self._handles = follow_calls(self._module, self._entered, self._left)

    @contextmanager
    def running(
        self, substitutes: Substitutes, found: dict[str, list[Tensor]] | None
    ) -> Iterator[None]:
        """Round a step or its backward.

        Args:
            substitutes: What to give operations; may grow while the step runs.
            found: Filled with the tensors seen, by value; None in backward, where only activation
                checkpointing runs modules again.
        """
        self.where.restart()
        self._found = found
        try:
            with ExitStack() as stack:
                stack.enter_context(_Mode(self, substitutes))
                yield
        finally:
            self._found = None

    @property
    def needed(self) -> bool:
        """Whether a site may come by in the call that is running."""
        return self._found is not None and self.where.key in self._calls

    def see(self, name: str, tensor: Tensor) -> None:
        """A tensor is at a site."""
        value = self._sites.get(name)
        if value is not None and self._found is not None:
            self._found.setdefault(value, []).append(tensor)

    def _entered(self, name: str, arguments: Any) -> None:
        if self._found is None:
            return
        self.where.enter(name)
        if self.needed:
            for path, leaf in tensor_leaves(arguments):
                self.see(f"{self.where.key}|in{path}", leaf)

    def _left(self, name: str, output: Any) -> None:
        if self._found is None:
            return
        key = self.where.leave(name)
        if key in self._calls:
            for site, leaf in numbered(f"{key}|out", output):
                self.see(site, leaf)

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def received(tree: Any, substitutes: Substitutes) -> Any:
    """A tree of values with what was received in it."""
    if not substitutes:
        return tree
    return tree_map(
        lambda leaf: substitutes[id(leaf)][1] if id(leaf) in substitutes else leaf, tree
    )


class _Mode(TorchFunctionMode):
    def __init__(self, carry: Carry, substitutes: Substitutes) -> None:
        super().__init__()
        self._carry, self._substitutes = carry, substitutes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = self._substitutes
        if known:

            def real(leaf: Any) -> Any:
                return known[id(leaf)][1] if id(leaf) in known else leaf

            # most operations take tensors and numbers only
            if any(id(a) in known or type(a) in (list, tuple, dict) for a in args):
                args = tree_map(real, args)
            if kwargs:
                kwargs = tree_map(real, kwargs)
        if not self._carry.needed:
            return func(*args, **kwargs)
        site = self._carry.where.function(func)
        out = func(*args, **kwargs)
        for name, leaf in numbered(site, out):
            self._carry.see(name, leaf)
        return out
