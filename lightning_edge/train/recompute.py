"""`checkpoint: true` of a stage: keep the inputs of its blocks, compute each again in backward.

    forward    h.2 [x2] -> h.3 [x3] -> h.4          kept: x2, x3
    backward   h.3 again from x3, its gradients; h.2 again from x2, its gradients

A block is a member of an `nn.ModuleList` or `nn.Sequential`. It is called again as a whole, hooks
included, so that what is seeded per call (dropout) repeats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_edge.errors import UnsupportedError
from lightning_edge.replicate.probe import Probe
from lightning_edge.replicate.split import outer_blocks
from lightning_edge.train.carry import received
from lightning_edge.train.replay import MicroBatch

__all__: list[str] = []


class Recompute:
    """Checkpoints the blocks of one stage.

    Args:
        module: The whole module.
        probe: Of its training step.
        entry: The module the stage begins with; None for the first stage.
        exit: The module the next stage begins with; None for the last stage.
        active: The running micro-batch, None outside steps.

    Raises:
        UnsupportedError: When the stage has no blocks.
    """

    def __init__(
        self,
        module: nn.Module,
        probe: Probe,
        entry: str | None,
        exit: str | None,
        active: Callable[[], MicroBatch | None],
    ) -> None:
        self._active, self._again = active, False
        self._wrapped: list[tuple[nn.Module, Any]] = []
        self.blocks = _inside(probe, module, entry, exit)
        if not self.blocks:
            where = "the first module" if entry is None else repr(entry)
            raise UnsupportedError(
                f"the stage that starts at {where} has checkpoint: true, but no member of an "
                f"nn.ModuleList or nn.Sequential lies inside it: nothing can be computed again. "
                f"Remove checkpoint from this stage, or use torch.utils.checkpoint in the model"
            )
        for name in self.blocks:
            self._wrap(module.get_submodule(name))

    def _wrap(self, block: nn.Module) -> None:
        forward = block.forward

        def again(*args: Any, **kwargs: Any) -> Any:
            active = self._active()
            if active is None or not active.backward:
                return forward(*args, **kwargs)
            self._again = True
            return block(*args, **kwargs)

        def saving(*args: Any, **kwargs: Any) -> Any:
            active = self._active()
            if self._again or active is None or not active.entered or not torch.is_grad_enabled():
                self._again = False
                return forward(*args, **kwargs)
            # kept until backward: what was received, not what stands for it
            args, kwargs = received((args, kwargs), active.substitutes)
            args = tuple(map(_no_cache, args))
            kwargs = {name: _no_cache(value) for name, value in kwargs.items()}
            if kwargs.get("use_cache"):
                kwargs["use_cache"] = False
            return checkpoint(again, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

        self._wrapped.append((block, block.__dict__.get("forward")))
        block.__dict__["forward"] = saving

    def close(self) -> None:
        """Give every block its own forward back."""
        for block, before in self._wrapped:
            block.__dict__.pop("forward", None)
            if before is not None:
                block.__dict__["forward"] = before
        self._wrapped = []


def _no_cache(value: Any) -> Any:
    """None for transformers' caches of keys and values: a second run would add to them."""
    return None if hasattr(value, "update") and hasattr(value, "get_seq_length") else value


def _inside(
    probe: Probe, module: nn.Module, entry: str | None, exit: str | None
) -> tuple[str, ...]:
    once = probe.once()
    first = once[entry].position if entry else 0
    stop = once[exit].position if exit else len(probe.calls)
    blocks = outer_blocks(module)
    calls = {name: [c.position for c in probe.calls if c.name == name] for name in blocks}

    def ends(name: str) -> int:
        """The last call inside a block."""
        return max(c.position for c in probe.calls if f"{c.name}.".startswith(f"{name}."))

    return tuple(
        name
        for name, positions in calls.items()
        if positions and first <= positions[0] and ends(name) < stop
    )
