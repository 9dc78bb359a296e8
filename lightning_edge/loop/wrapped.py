"""A user's loader as the Trainer's loops see it: the same in everything but its batches."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from typing import Any

from lightning.fabric.utilities.seed import pl_worker_init_function
from lightning.pytorch.utilities.combined_loader import CombinedLoader

from lightning_edge.loop.rounds import Course

__all__ = ["EdgeLoader", "StatefulEdgeLoader"]


class EdgeLoader:
    """A user's loader, shared by all devices.

    The Trainer's loops get this device's rows of each batch. Everything else, from `dataset` to
    `set_epoch`, is the user's loader; iterated outside the loops (a callback that looks at an
    example) it is the user's loader too, and no other device takes part.

    Args:
        course: What all rounds over this loader have in common.
    """

    _course: Course

    def __init__(self, course: Course) -> None:
        object.__setattr__(self, "_course", course)

    @property
    def unwrapped(self) -> Any:
        """The user's loader on this device."""
        return self._course.loader

    @property
    def number(self) -> int:
        """Counts the loaders of the run, equal on all devices."""
        return self._course.number

    @property
    def rows(self) -> int:
        """Rows of the whole batch that was handed out last."""
        return self._course.rows

    def begin_round(self) -> Iterator[Any]:
        """Begin an iteration in which all devices take part."""
        return self._course.begin()

    def __iter__(self) -> Iterator[Any]:
        # The loops iterate through a CombinedLoader, and nothing else does.
        if sys._getframe(1).f_globals.get("__name__") == CombinedLoader.__module__:
            return self._course.begin()
        return iter(self._course.loader)

    def __len__(self) -> int:
        if self._course.length is None:
            raise TypeError(f"the {self._course.what} loader has no length")
        return self._course.length

    def __getattr__(self, name: str) -> Any:
        if name == "_course":  # while being copied
            raise AttributeError(name)
        return getattr(self._course.loader, name)

    def __setattr__(self, name: str, value: Any) -> None:
        function = getattr(value, "func", None) if name == "worker_init_fn" else None
        if function is pl_worker_init_function:
            # Lightning seeds workers by rank; here they draw what one device's would.
            value = functools.partial(pl_worker_init_function, rank=0)
        setattr(self._course.loader, name, value)


class StatefulEdgeLoader(EdgeLoader):
    """The same for a loader that keeps its place in checkpoints."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the loader that loads; on all ranks or on rank 0 only, who saves."""
        feed = self._course.feed
        own: dict[str, Any] = self._course.loader.state_dict() if feed.loads else {}
        if feed.owner == 0 or feed.every:
            return own
        state: dict[str, Any] = feed.transport.broadcast(own, src=feed.owner)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the loader that loads back to its place."""
        if self._course.feed.loads:
            self._course.feed.first_batches.forget(self._course.loader)
            self._course.loader.load_state_dict(state)
