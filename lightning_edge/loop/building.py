"""`configure_model` on several devices: a description, and the weights where they belong."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_edge.errors import CheckpointError
from lightning_edge.loop.checkpoint import fetch
from lightning_edge.replicate import placeholder
from lightning_edge.replicate.deferred import Deferred
from lightning_edge.replicate.placeholder import convertible, is_fake
from lightning_edge.replicate.placing import Origin, is_spread
from lightning_edge.train.transport import Transport

__all__: list[str] = []

# transformers reads weights in threads of its own, where nobody could stop it from converting all
_ONE_THREAD = "HF_DEACTIVATE_ASYNC_LOAD"


class Building:
    """What is known of a model between `configure_model` and its placement."""

    def __init__(self) -> None:
        self.origin = Origin()

    def in_parts(self, module: nn.Module) -> bool:
        """Whether no device has, or will have, the whole module."""
        return self.origin.deferred is not None or is_spread(module)

    @contextmanager
    def described(self, module: nn.Module, transport: Transport | None) -> Iterator[None]:
        """Round the user's `configure_model`.

        Every rank draws from rank 0's random streams: what they initialise is rank 0's model.
        """
        if transport is None or transport.world_size == 1 or is_spread(module):
            yield
            return
        deferred, own = Deferred(), frozenset(module.parameters())
        before = os.environ.get(_ONE_THREAD)
        os.environ[_ONE_THREAD] = "1"
        try:
            with _streams_of_rank_0(transport), convertible(), deferred:
                yield
        finally:
            if before is None:
                del os.environ[_ONE_THREAD]
            else:
                os.environ[_ONE_THREAD] = before
        deferred.settle_buffers(module)
        # what was read from files is real, but nobody has looked at it yet
        if any(
            is_fake(p) or p.numel() > placeholder.SMALL_ENTRIES
            for p in set(module.parameters()) - own
        ):
            self.origin.deferred, self.origin.own = deferred, own

    @contextmanager
    def converting(self) -> Iterator[None]:
        """Round conversions of the whole module, to another dtype or device."""
        with convertible():
            if self.origin.deferred is None:
                yield
            else:
                with self.origin.deferred:
                    yield

    def load(
        self, module: nn.Module, state: Mapping[str, Tensor], strict: bool, transport: Transport
    ) -> None:
        """Take a checkpoint's weights; each device gets its own when the module is placed.

        Raises:
            CheckpointError: When they are not those of this module.
        """
        own = module.state_dict()
        problems = [f"{name} is missing in it" for name in own if name not in state]
        problems += [f"{name} is not in the model" for name in state if name not in own]
        if not strict:
            problems = []
        problems += [
            f"{name} is {list(state[name].shape)} in it and {list(tensor.shape)} in the model"
            for name, tensor in own.items()
            if isinstance(tensor, Tensor) and name in state and state[name].shape != tensor.shape
        ]
        if problems:
            more = f" and {len(problems) - 10} more" if len(problems) > 10 else ""
            raise CheckpointError(
                f"the checkpoint does not fit {type(module).__name__}: "
                f"{'; '.join(problems[:10])}{more}"
            )
        buffers = {name: b for name, b in module.named_buffers() if name in state}
        whole = fetch({name: state[name] for name in buffers}, dict(state), transport)
        with torch.no_grad():
            for name, buffer in buffers.items():
                buffer.copy_(whole[name])
        self.origin.state = state

    def placed(self) -> None:
        """The module has its values."""
        self.origin = Origin()


@contextmanager
def _streams_of_rank_0(transport: Transport) -> Iterator[None]:
    own = _streams()
    theirs = transport.broadcast(own if transport.rank == 0 else None)
    same = all(_equal(a, b) for a, b in zip(own, theirs, strict=True))
    _restore(theirs)
    try:
        yield
    finally:
        if not same:
            _restore(own)


def _streams() -> list[Any]:
    version, numbers, gauss = random.getstate()
    kind, keys, position, has, cached = np.random.get_state(legacy=True)
    return [
        torch.get_rng_state(),
        [version, list(numbers), gauss],
        [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has, cached],
    ]


def _restore(streams: list[Any]) -> None:
    state, python, (kind, keys, position, has, cached) = streams
    torch.set_rng_state(state)
    random.setstate((python[0], tuple(python[1]), python[2]))
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has, cached))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)
