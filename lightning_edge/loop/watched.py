"""One torchmetrics object under watch: what is replaced on the instance, and how it is undone.

Copies (`metric.clone()`, a deep copy of the module for averaged weights, a pickled module) must not
report to the watch of the original. torchmetrics makes `compute` anew in every copy; `reset` and
the hooks are objects that turn into the plain thing when copied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torchmetrics import Metric

from lightning_edge.loop.metric_states import nested
from lightning_edge.loop.standin import StandIn

__all__: list[str] = []


class Watched:
    """A metric and what all devices agree on about it.

    Args:
        metric: The metric.
        path: Where it is in the module.
        compute: Called as `compute(watched, *args, **kwargs)` in place of the metric's own.
        reset: Called as `reset(watched)` in place of the metric's own.
        forward: Called as `forward(watched, (args, kwargs))` before each forward, with None after.

    Attributes:
        compute: The metric's own.
        version: Advanced by all devices alike when its value may have changed.
        sharded: It has states on the last stage that other devices do not have.
        seen: How many updates it had when the last section ended.
        was_reset: It was reset in this section.
        value: (version, value) that all devices know.
        gathers: How often its states were gathered.
    """

    def __init__(
        self,
        metric: Metric,
        path: str,
        *,
        compute: Callable[..., Any],
        reset: Callable[[Watched], None],
        forward: Callable[[Watched, Any], None],
    ) -> None:
        self.metric, self.path = metric, path
        self.compute: Callable[..., Any] = metric.compute
        self.version = self.seen = self.gathers = 0
        self.sharded = self.was_reset = False
        self.value: tuple[int, Any] | None = None
        self.find_parts()
        metric.__dict__["compute"] = lambda *args, **kwargs: compute(self, *args, **kwargs)
        metric.__dict__["reset"] = StandIn(metric, "reset", lambda: reset(self))
        self._hooks = (
            metric.register_forward_pre_hook(
                _Hook(lambda _, args, kwargs: forward(self, (args, kwargs))), with_kwargs=True
            ),
            metric.register_forward_hook(
                _Hook(lambda *_: forward(self, None)), with_kwargs=True, always_call=True
            ),
        )
        self.seen = self.updates()

    def release(self) -> None:
        """Give the metric its own methods back."""
        self.metric.__dict__["compute"] = self.compute
        del self.metric.__dict__["reset"]
        for hook in self._hooks:
            hook.remove()

    def reset(self) -> None:
        """The metric's own reset."""
        type(self.metric).reset(self.metric)

    def find_parts(self) -> None:
        """Find the metrics inside (wrappers and compositions have some)."""
        self._parts = tuple(nested(self.metric).values())

    def updates(self) -> int:
        """Updates since the last reset, those of the metrics inside included."""
        return sum(part._update_count for part in self._parts)

    def catch_up(self) -> None:
        """See updates that hooks on all devices made since the last section."""
        if self.updates() != self.seen:
            self.seen = self.updates()
            self.version += 1

    def known(self) -> Any:
        """The value of this version, if it was computed."""
        return self.value[1] if self.value is not None and self.value[0] == self.version else None

    def touched(self) -> bool | None:
        """Whether it holds updates after this section; None if the section left it alone."""
        if not self.was_reset and self.updates() == self.seen:
            return None
        return self.updates() > 0

    def undo_updates(self) -> None:
        """Throw away states that were made since `seen` (values of other stages are fake here)."""
        if self.updates() != self.seen:
            self.reset()
            self.seen = self.updates()


class _Hook:
    """A forward hook; a copy of it does nothing."""

    def __init__(self, call: Callable[..., None]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> None:
        self._call(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return _Hook(_nothing)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (_nothing,)


def _nothing(*_: Any) -> None:
    """What hooks of copies do."""
