"""Runs one device's instruction list. Nothing else decides what happens when.

    F3  compute micro-batch 3 forwards: its inputs are fetched when the stage's program asks, its
    outputs sent on B3  fetch the gradients of those outputs, compute backwards, send the gradients
    of the inputs back R   gradients that become final from here on may be reduced over their
    holders S   wait until all are reduced; the optimizer can step

Messages travel while the next instruction computes: sends return at once, receives were posted
ahead (transport).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from lightning_edge.plan.layout import Layout
from lightning_edge.plan.schedule import Instruction, Op
from lightning_edge.train.edges import Edges
from lightning_edge.train.heap import Heap, this_heap
from lightning_edge.train.transport import Transport
from lightning_edge.train.values import Value

__all__: list[str] = []


class Program(Protocol):
    """What a stage computes. Micro-batches are numbered from 0 within a batch."""

    def forward(self, m: int, receive: Callable[[], list[Value]]) -> list[Value] | None:
        """Compute `m` from `receive()`; give what to send on, None on the last stage."""

    def backward(
        self, m: int, gradients: Mapping[str, Tensor] | None
    ) -> tuple[Sequence[Value], Mapping[str, Tensor | None]]:
        """Compute `m` backwards from its outputs' gradients (None on the last stage).

        Returns the values that were received for `m` and their gradients by name.
        """

    def reduce(self) -> None:
        """Gradients are final from here on."""

    def step(self) -> None:
        """Wait for all reductions."""


@dataclass(frozen=True)
class Span:
    """One executed instruction; seconds of the monotonic clock."""

    instruction: Instruction
    start_s: float
    stop_s: float
    wait_s: float
    communication_s: float = 0.0


@dataclass
class StepTimes:
    """Where the seconds of one batch went on this device.

    Attributes:
        compute_s: Inside forwards and backwards, without waiting and packing.
        wait_s: Blocked until a message came.
        communication_s: Packing, unpacking and waiting for reductions.
        spans: One per instruction.
    """

    compute_s: float = 0.0
    wait_s: float = 0.0
    communication_s: float = 0.0
    spans: list[Span] = field(default_factory=list)

    @property
    def total_s(self) -> float:
        """Seconds from the first instruction's start to the last one's end."""
        return self.spans[-1].stop_s - self.spans[0].start_s if self.spans else 0.0


class Executor:
    """One device's part of a step.

    Args:
        transport: Carries the messages.
        edges: This device's edges.
        program: What its stage computes.
        last: Whether its stage is the last one.
        device: Where its tensors live.
        clock: Monotonic seconds.
        heap: Where tensors of the processor live.
    """

    def __init__(
        self,
        transport: Transport,
        edges: Edges,
        program: Program,
        last: bool,
        device: torch.device,
        clock: Callable[[], float] = time.perf_counter,
        heap: Heap | None = None,
    ) -> None:
        self._transport, self._edges, self._program = transport, edges, program
        self._last, self._device, self._clock = last, device, clock
        self._heap = heap or this_heap()
        self._sent: dict[int, list[Value]] = {}

    def run(self, instructions: Sequence[Instruction], layout: Layout, step: int) -> StepTimes:
        """Execute the list for one batch.

        Args:
            instructions: This device's list.
            layout: The rows of this batch.
            step: Number of the batch, equal on all devices.

        Raises:
            TransportError: When a neighbour failed or did not answer in time.
        """
        times = StepTimes()
        self._edges.start(layout, step)
        self._sent.clear()
        self._heap.look()
        rank = self._transport.rank
        for instruction in instructions:
            start = self._clock()
            waited, communicated = self._counted()
            m = instruction.micro_batch
            if instruction.op is Op.REDUCE:
                self._program.reduce()
            elif instruction.op is Op.STEP:
                self._program.step()
            else:
                assert m is not None
                first, stop = layout.mine(rank, m)
                if first == stop:
                    continue  # none of its rows are ours
                if instruction.op is Op.FORWARD:
                    self._forward(m)
                else:
                    self._backward(m)
            self._heap.relieve()
            end = self._clock()
            waited_by_now, communicated_by_now = self._counted()
            waited = waited_by_now - waited
            communicated = communicated_by_now - communicated
            times.wait_s += waited
            times.communication_s += communicated
            if m is not None:
                times.compute_s += end - start - waited - communicated
            times.spans.append(Span(instruction, start, end, waited, communicated))
        return times

    def _counted(self) -> tuple[float, float]:
        """Seconds waited for messages, and seconds packing and reducing, so far."""
        counters = self._transport.counters
        waited = counters.receive_wait_s + counters.send_wait_s
        return waited, counters.pack_s + counters.unpack_s + counters.reduce_wait_s

    def _forward(self, m: int) -> None:
        outputs = self._program.forward(m, lambda: self._edges.receive_values(m, self._device))
        if outputs is not None:
            self._edges.send_values(m, outputs)
            if any(value.requires_grad for value in outputs):
                self._sent[m] = outputs

    def _backward(self, m: int) -> None:
        gradients = None
        if not self._last:
            gradients = self._edges.receive_gradients(m, self._sent.pop(m, []))
        received, made = self._program.backward(m, gradients)
        if received:
            self._edges.send_gradients(m, received, made)
