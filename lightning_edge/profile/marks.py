"""Where the seconds and the kept bytes of one pass go, block by block.

    forward    |-- (start) --| h.0 |-- ... --| head + loss |         a hook in front of each block
    backward   |-- head + loss --| ... | h.0 |-- (start) --|         a hook on what crosses in front

The user's whole step runs, so a block is timed with the code between it and its neighbours, and
all blocks add up to the step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_edge.profile.blocks import Site
from lightning_edge.profile.clock import Clock
from lightning_edge.replicate.placeholder import is_fake
from lightning_edge.replicate.trace import paths_and_leaves

__all__: list[str] = []


@dataclass
class Seconds:
    """Of one pass or of several together.

    Attributes:
        forward_s: Per block.
        backward_s: Per block.
        prefix_s: What runs in front of the first block on placeholders.
        passes: How many.
    """

    forward_s: list[float]
    backward_s: list[float]
    prefix_s: float = 0.0
    passes: int = 1

    @property
    def total_s(self) -> float:
        """All of it."""
        return sum(self.forward_s) + sum(self.backward_s) + self.prefix_s

    def add(self, other: Seconds) -> None:
        """Add another pass over the same blocks."""
        self.forward_s = [a + b for a, b in zip(self.forward_s, other.forward_s, strict=True)]
        self.backward_s = [a + b for a, b in zip(self.backward_s, other.backward_s, strict=True)]
        self.prefix_s += other.prefix_s
        self.passes += other.passes


@dataclass
class Kept:
    """Bytes that a forward keeps for its backward, by block.

    Attributes:
        bytes: Of distinct storages; parameters and the batch are not counted.
        largest: Of one of them.
    """

    bytes: list[int]
    largest: list[int]
    storages: set[int] = field(default_factory=set)


class Marks:
    """Hooks at the blocks ``first`` to ``stop - 1`` of a module, and at the one behind them.

    Args:
        module: As it is while the passes run.
        sites: All blocks.
        first: The first one that is real.
        stop: The first one that is not run any more.
        clock: Takes the moments.
    """

    def __init__(
        self, module: nn.Module, sites: Sequence[Site], first: int, stop: int, clock: Clock
    ) -> None:
        self._first, self._stop, self._clock = first, stop, clock
        self._forward: dict[int, Any] = {}
        self._backward: dict[int, Any] = {}
        self._crossing: dict[int, list[Tensor]] = {}
        self._block, self._running = first, False
        self._handles = [
            module.get_submodule(sites[i].name).register_forward_pre_hook(
                self._at(i, sites[i].paths), with_kwargs=True
            )
            for i in range(max(first, 1), min(stop + 1, len(sites)))
        ]

    def _at(self, index: int, paths: Collection[str]) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            if not self._running:  # activation checkpointing runs it again in backward
                return
            self._forward[index] = self._clock.mark()
            self._block = index
            crossing = [
                leaf
                for path, leaf in paths_and_leaves((args, kwargs))
                if path in paths and isinstance(leaf, Tensor) and not is_fake(leaf)
            ]
            self._crossing[index] = crossing
            # A tensor handed on from block to block has its gradient only when all are through.
            earlier = {id(tensor) for tensor in self._crossing.get(index - 1, ())}
            live = [tensor for tensor in crossing if tensor.requires_grad]
            for tensor in [t for t in live if id(t) not in earlier] or live:
                tensor.register_hook(self._passed(index))  # type: ignore[no-untyped-call]

        return hook

    def _passed(self, index: int) -> Callable[[Tensor], None]:
        def hook(_: Tensor) -> None:
            self._backward[index] = self._clock.mark()

        return hook

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Around one forward."""
        self._forward, self._backward, self._crossing = {}, {}, {}
        self._block, self._running = self._first, True
        try:
            yield
        finally:
            self._running = False

    @contextmanager
    def keeping(self, without: Collection[int]) -> Iterator[Kept]:
        """Around one forward: count what autograd keeps.

        Args:
            without: Storages (by address) that are there anyway: parameters, buffers, the batch.
        """
        blocks = self._stop - self._first
        kept = Kept([0] * blocks, [0] * blocks)

        def pack(tensor: Tensor) -> Tensor:
            if not is_fake(tensor) and tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                address, size = storage.data_ptr(), storage.nbytes()
                if address not in kept.storages and address not in without:
                    kept.storages.add(address)
                    block = min(self._block, self._stop - 1) - self._first
                    kept.bytes[block] += size
                    kept.largest[block] = max(kept.largest[block], size)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield kept

    def seconds(self, start: Any, middle: Any, behind: Any, end: Any) -> Seconds:
        """What a pass took, by its blocks; the clock has to be settled.

        Args:
            start: Of its forward.
            middle: The end of its forward.
            behind: The start of its backward.
            end: Of its backward.
        """
        between = self._clock.seconds
        first, stop, blocks = self._first, self._stop, self._stop - self._first
        entered = self._forward.get(first, start)
        forward_s = []
        for index in range(first, stop):
            begin = entered if index == first else self._forward.get(index, middle)
            done = self._forward.get(index + 1, middle)
            forward_s.append(max(between(begin, done), 0.0))
        backward_s = [0.0] * blocks
        reached = [i for i in range(first + 1, stop) if i in self._backward]
        moment = behind
        for index in sorted(reached, reverse=True):
            backward_s[index - first] = max(between(moment, self._backward[index]), 0.0)
            moment = self._backward[index]
        # Blocks in front of the lowest one that a gradient came through are frozen.
        lowest = min(reached, default=stop) - 1
        backward_s[lowest - first] += max(between(moment, end), 0.0)
        prefix_s = max(between(start, entered), 0.0) if first else 0.0
        return Seconds(forward_s, backward_s, prefix_s)

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
