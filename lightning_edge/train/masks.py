"""Dropout masks that do not depend on where the pipeline is cut.

Every module that draws random numbers is seeded at each of its calls, so that no device has to
draw what the modules in front of its stage would have drawn:

    seed = mix(run, batch, micro-batch, module, call within its parent, first row)

The call is counted from the last entry into the module that contains it: when activation
checkpointing runs a block again in backward, the block is entered again and the counts repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from lightning_edge.errors import UnsupportedError
from lightning_edge.replicate.randomness import mix, restore_torch, seed_torch, torch_states
from lightning_edge.train.replay import MicroBatch

__all__: list[str] = []


class Masks:
    """Seeds the modules that draw while a micro-batch is running.

    Args:
        module: The whole module.
        names: The modules that draw, from the probe.
        active: The running micro-batch, None outside steps.
        seeds: Of the run and of the current batch.
        restore: Put the stream in front of each call back behind it, because code between the
            modules draws as well.
    """

    def __init__(
        self,
        module: nn.Module,
        names: Iterable[str],
        active: Callable[[], MicroBatch | None],
        seeds: Callable[[], tuple[int, int]],
        restore: bool,
    ) -> None:
        self._active, self._seeds, self._restore = active, seeds, restore
        self._calls: dict[tuple[int, str], int] = {}
        self._counts: dict[str, int | None] = {}
        self._states: list[Any] = []
        self._handles: list[Any] = []
        self._running: MicroBatch | None = None
        self._backward = False
        children: dict[str, list[str]] = {}
        for name in names:
            children.setdefault(name.rpartition(".")[0], []).append(name)
            drawing = module.get_submodule(name)
            self._handles.append(drawing.register_forward_pre_hook(self._before(name)))
            if restore:
                self._handles.append(drawing.register_forward_hook(self._after, always_call=True))
        for parent, drawn in children.items():
            target = module.get_submodule(parent)
            # before the hooks of its children, and of itself when it draws too
            self._handles.append(
                target.register_forward_pre_hook(self._entered(tuple(drawn)), prepend=True)
            )

    def _entered(self, children: tuple[str, ...]) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if self._active() is not None:
                self._follow()
                for name in children:
                    self._counts[name] = 0

        return hook

    def _follow(self) -> None:
        """Start counting anew with each micro-batch and each direction."""
        micro_batch = self._active()
        assert micro_batch is not None
        if micro_batch is not self._running or micro_batch.backward != self._backward:
            self._running, self._backward = micro_batch, micro_batch.backward
            start = None if micro_batch.backward else 0
            self._counts = dict.fromkeys(self._counts, start)
            if not micro_batch.backward:
                self._calls = {k: n for k, n in self._calls.items() if k[0] != micro_batch.index}

    def _before(self, name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            micro_batch = self._active()
            if micro_batch is None:
                return
            self._follow()
            key = (micro_batch.index, name)
            count = self._counts.get(name, None if micro_batch.backward else 0)
            if count is None:  # run again without its parent
                if self._calls.get(key, 1) > 1:
                    raise UnsupportedError(
                        f"{name!r} draws random numbers several times in a step and is run again "
                        f"under activation checkpointing: its masks cannot be repeated. Give each "
                        f"checkpointed block a dropout module of its own."
                    )
                count = 0
            self._counts[name] = count + 1
            if not micro_batch.backward:
                self._calls[key] = self._calls.get(key, 0) + 1
            if self._restore:
                self._states.append(torch_states())
            run, batch = self._seeds()
            seed_torch(mix(run, batch, micro_batch.index, name, count, micro_batch.first_row))

        return hook

    def _after(self, *_: Any) -> None:
        if self._states:
            restore_torch(self._states.pop())

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
