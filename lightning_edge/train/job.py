"""What is done with one batch: its rows here, and the user's step with what surrounds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from lightning_edge.train.replay import MicroBatch

__all__: list[str] = []


@dataclass(frozen=True)
class Batch:
    """One batch as this device sees it.

    Attributes:
        data: This device's rows.
        cut: Gives some of them: local intervals to a batch of those rows.
        own: Number of this device's rows.
        rows: Of the whole batch, on all devices.
        number: Counts the batches of the run, equal on all devices.
        seed: Of what is drawn for it, equal on all devices, and again after resuming.
    """

    data: Any
    cut: Callable[[Sequence[tuple[int, int]]], Any]
    own: int
    rows: int
    number: int
    seed: int


@dataclass(frozen=True)
class Job:
    """What to do with a batch.

    Attributes:
        kind: Name of the step, "training_step" and the like.
        step: The user's step with everything but the batch bound.
        context: Entered around each call and each probe of it (autocast).
        around: Entered around each call, given the rows (recording of logs).
        on_output: Given each micro-batch and what the step returned, on the last stage.
        on_forwards_done: Called behind a last-stage device's last forward.
        training: Backwards and gradients too.
        accumulate: Batches the loop accumulates over; the loss is divided by it.
        fresh: The loop zeroes the gradients for this batch.
        keep_earlier: Add to what is there at the end (see `Gradients.start`).
        own_zero_grad: The user zeroes the gradients (see there).
        synchronise: An optimizer step follows.
        weighted: The step gives its own loss weights, so that gradients are scaled at the end.
        factor: Gives that scale, once all weights are known.
    """

    kind: str
    step: Callable[[Any], Any]
    context: Callable[[], AbstractContextManager[Any]]
    around: Callable[[int], AbstractContextManager[Any]]
    on_output: Callable[[MicroBatch, Any], None]
    on_forwards_done: Callable[[], None]
    training: bool = False
    accumulate: int = 1
    fresh: bool = True
    keep_earlier: bool = False
    own_zero_grad: bool = False
    synchronise: bool = True
    weighted: bool = False
    factor: Callable[[], float] = lambda: 1.0
