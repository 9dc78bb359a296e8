"""Collectives asked for where only some devices listen.

A step of the user's module runs to its end on the last stage only, and the body of an
``on_*_epoch_end`` hook runs there only. A barrier, a gather or a broadcast called in it would wait
for devices that never come, so the strategy asks `InsideStep` first::

    fit > on_train_batch_start > training_step > on_after_backward > ... > on_validation_epoch_end
          every device: fine     inside: refuse  every device: fine        inside: refuse
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from lightning_edge.errors import UnsupportedError

T = TypeVar("T")

_INSTEAD = {
    "all_gather": (
        "log the value with self.log, which merges it over devices and micro-batches, or gather it"
        " in on_train_epoch_end / on_validation_epoch_end, where self.all_gather works among the"
        " last stage's devices"
    ),
    "reduce": "log the value with self.log(..., reduce_fx=...), which merges it for every device",
    "broadcast": (
        "ask for it in on_fit_start, which every device runs, and keep the answer"
        " (trainer.log_dir, a path, a seed)"
    ),
    "barrier": (
        "remove it, or move it (and trainer.save_checkpoint, which needs one) to"
        " on_train_batch_end or to a Callback, which every device runs"
    ),
}


class InsideStep:
    """Knows whether user code is running that only some devices run."""

    def __init__(self) -> None:
        self.where: str | None = None
        self._answers: dict[str, Any] = {}

    @contextmanager
    def __call__(self, where: str) -> Iterator[None]:
        """Mark everything in the block as run by some devices only; blocks may be nested.

        Args:
            where: The hook that is running, such as "training_step".
        """
        before, self.where = self.where, where
        try:
            yield
        finally:
            self.where = before

    def refuse(self, call: str) -> None:
        """Raise if a collective is asked for inside.

        Args:
            call: "all_gather", "reduce", "broadcast" or "barrier".

        Raises:
            UnsupportedError: Names the hook and what to do instead.
        """
        if self.where is not None:
            raise UnsupportedError(
                f"{call} was called inside {self.where}, which only some of the devices run to this"
                f" point: the others would never answer. Instead, {_INSTEAD[call]}."
            )

    def broadcast(self, obj: T, real: Callable[[], T]) -> T:
        """Broadcast outside; inside, give the answer that the same text got before.

        `trainer.log_dir` is such a text: asked once where all devices listen, it is known from
        then on.

        Args:
            obj: What this device passed.
            real: The broadcast itself.

        Raises:
            UnsupportedError: Inside, for anything not broadcast before.
        """
        if self.where is None:
            answer = real()
            if isinstance(obj, str):
                self._answers[obj] = answer
            return answer
        if isinstance(obj, str) and obj in self._answers:
            known: T = self._answers[obj]
            return known
        self.refuse("broadcast")
        raise AssertionError("refuse() raises inside")
