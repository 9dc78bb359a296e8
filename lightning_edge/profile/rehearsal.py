"""Some blocks of a model run on real rows, as a stage of a pipeline would, and timed.

    whole model        step(batch) -> loss, backward
    blocks 3 .. 4      placeholders | received values -> h.3, h.4 -> left | backward from gradients

It is the executor's own replay of the user's step, with moments taken between the blocks. Behind it
the module is as before: parameters, gradients, buffers, attributes, hooks and random streams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_edge.errors import UnsupportedError
from lightning_edge.profile.blocks import Sites
from lightning_edge.profile.clock import Clock
from lightning_edge.profile.marks import Kept, Marks, Seconds
from lightning_edge.replicate.placeholder import (
    fake_mode,
    is_fake,
    materialize,
    placeholder_like,
    swap_parameters,
)
from lightning_edge.replicate.probe import Probe
from lightning_edge.replicate.randomness import kept as streams_kept
from lightning_edge.replicate.snapshot import untouched
from lightning_edge.train.masks import Masks
from lightning_edge.train.microbatch import batch_leaves
from lightning_edge.train.phases import phase_between
from lightning_edge.train.replay import MicroBatch, Replay
from lightning_edge.train.skip import Prefix
from lightning_edge.train.values import Value

__all__: list[str] = []

SEED = 20_26


@dataclass(frozen=True)
class Subject:
    """What is profiled.

    Attributes:
        module: The user's; with real parameters, or placeholders where this device has none.
        probe: Of its training step.
        step: Takes a batch and gives a loss, or a mapping with "loss".
        batch: Gives a batch of so many rows.
        rows: Of the whole batch.
        sites: The module's blocks.
        device: Where it computes.
        context: Entered around each forward (autocast).
    """

    module: nn.Module
    probe: Probe
    step: Callable[[Any], Any]
    batch: Callable[[int], Any]
    rows: int
    sites: Sites
    device: torch.device
    context: Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Pass:
    """One forward and backward.

    Attributes:
        seconds: Where the time went.
        outputs: What goes to the next stage, without its graph; None at the model's end.
        kept: What the forward kept, if it was asked for.
    """

    seconds: Seconds
    outputs: list[Value] | None
    kept: Kept | None = None


class Rehearsal:
    """Blocks ``first`` to ``stop - 1``, ready to run; made by `rehearse`."""

    def __init__(self, subject: Subject, first: int, stop: int, replay: Replay, marks: Marks):
        self._subject, self._first, self._stop = subject, first, stop
        self._replay, self._marks = replay, marks
        sites = subject.sites.blocks
        leave = sites[stop].name if stop < len(sites) else None
        self._phase = phase_between(subject.probe, sites[first].start, leave)
        self._number = 0
        self.batch = (SEED, 0)

    def run(self, clock: Clock, rows: int, inputs: list[Value] | None, keep: bool = False) -> Pass:
        """Run the blocks forwards and backwards once.

        Args:
            clock: Takes the moments.
            rows: Rows of the batch.
            inputs: What the blocks in front gave for them.
            keep: Count what autograd keeps as well, which disturbs the times.
        """
        subject, replay = self._subject, self._replay
        self._number += 1
        self.batch = (SEED, self._number)
        data = subject.batch(rows)
        values = [replace(v, tensor=v.tensor.clone()) for v in inputs or ()]
        micro_batch = MicroBatch(0, data, rows, 0, 1.0)
        replay.start(self._phase, self._call, [micro_batch], *self.batch)
        with ExitStack() as stack, torch.enable_grad():
            kept = None
            if keep:
                there = _storages(subject.module, data)
                kept = stack.enter_context(self._marks.keeping(there))
            stack.enter_context(self._marks.forward())
            start = clock.mark()
            outputs = replay.forward(0, lambda: values)
            middle = clock.mark()
        gradients = _gradients(outputs)
        behind = clock.mark()  # making up the gradients is nobody's backward
        replay.backward(0, gradients)
        end = clock.mark()
        clock.settle()
        seconds = self._marks.seconds(start, middle, behind, end)
        plain = [replace(v, tensor=v.tensor.detach()) for v in outputs] if outputs else None
        return Pass(seconds, plain, kept)

    def _call(self, data: Any, _: int) -> Any:
        active = self._replay.active
        assert active is not None
        with self._subject.context():
            output = self._subject.step(data)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss, Tensor):
            raise UnsupportedError(f"the training step returned {type(loss).__name__}, not a loss")
        active.loss = loss
        return output


@contextmanager
def rehearse(subject: Subject, first: int, stop: int, clock: Clock) -> Iterator[Rehearsal]:
    """Make blocks ``first`` to ``stop - 1`` of a module real and everything else placeholders."""
    module, sites = subject.module, subject.sites
    whole = first == 0 and stop == len(sites.blocks)
    entry = sites.blocks[first].start
    leave = sites.blocks[stop].name if stop < len(sites.blocks) else None
    with untouched(module), streams_kept(seed=SEED), _gradients_aside(module), ExitStack() as stack:
        for attribute in ("log", "log_dict", "print"):
            module.__dict__[attribute] = _ignore
        mode = None if whole else fake_mode()
        _place(module, sites.used_by(first, stop), mode, subject.device)
        marks = Marks(module, sites.blocks, first, stop, clock)
        stack.callback(marks.close)
        replay = Replay(module, mode, entry, leave)
        stack.callback(replay.close)

        def in_prefix() -> bool:
            active = replay.active
            return active is not None and (active.backward or not active.entered)

        prefix = Prefix(module, entry, in_prefix)
        stack.callback(prefix.close)
        prefix.know(subject.probe)
        rehearsal = Rehearsal(subject, first, stop, replay, marks)
        drawing = [name for name in subject.probe.draws if name]
        if drawing:
            masks = Masks(
                module, drawing, lambda: replay.active, lambda: rehearsal.batch, restore=False
            )
            stack.callback(masks.close)
        yield rehearsal


def _place(module: nn.Module, real: set[str], mode: Any, device: torch.device) -> None:
    def replacement(name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if name not in real:
            return placeholder_like(parameter, mode) if mode is not None else None
        if not is_fake(parameter):
            return None
        made = materialize(parameter, device)
        with torch.no_grad():
            made.normal_(0.0, 0.02)  # any ordinary numbers: times do not depend on them
        return made

    swap_parameters(module, replacement)


@contextmanager
def _gradients_aside(module: nn.Module) -> Iterator[None]:
    """Put the gradients that are there away, and what the body makes out of the way."""
    before = [(parameter, parameter.grad) for parameter in module.parameters()]
    for parameter, _ in before:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient


def _gradients(outputs: list[Value] | None) -> dict[str, Tensor] | None:
    if outputs is None:
        return None
    return {
        value.name: torch.randn_like(value.tensor).div_(value.tensor.numel())
        for value in outputs
        if value.requires_grad
    }


def _storages(module: nn.Module, batch: Any) -> set[int]:
    """Addresses of what is in memory whether or not a graph is kept."""
    tensors = [*module.parameters(), *module.buffers()]
    tensors += [leaf for _, leaf in batch_leaves(batch) if isinstance(leaf, Tensor)]
    return {
        tensor.untyped_storage().data_ptr()
        for tensor in tensors
        if not is_fake(tensor) and tensor.layout == torch.strided
    }


def _ignore(*_: Any, **__: Any) -> None:
    return None
