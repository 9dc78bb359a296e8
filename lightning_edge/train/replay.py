"""Replay with placeholders: one stage of an unmodified module, as a `Program` for the executor.

Every device runs the user's own step on each micro-batch. What it does not hold is a placeholder,
so that three stretches follow one another in the same call:

    step(batch)     prefix                     this stage                      behind it
    stage 0         -                     wte  h.0  h.1            h.2 is called: its arguments
                                                                               the step is left by
                                                                               StageExit
    stage 1         wte  h.0  h.1 (fake,       h.2  h.3  (its arguments are    -> loss
                    skipped: results kept)     replaced by what was received)

Entering and leaving hang on forward pre-hooks of the two modules at this stage's ends; nothing of
the module is rewritten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_edge.errors import EdgeError, SplitError, UnsupportedError
from lightning_edge.replicate.mode import PlaceholderMode
from lightning_edge.replicate.placeholder import eager, is_fake
from lightning_edge.replicate.probe import Leaf
from lightning_edge.replicate.randomness import mix, seed_all
from lightning_edge.replicate.told import line_of
from lightning_edge.replicate.trace import paths_and_leaves
from lightning_edge.train.carry import Carry, Substitutes, received
from lightning_edge.train.values import Arrival, Value

__all__: list[str] = []

_NO_GRAPH = "appears to not have been used in the graph"  # torch.autograd.grad in a step
_MIXED = "convert all Tensors to FakeTensors"  # torch's words when real and fake tensors meet
_PARAMETER = "Parameter(FakeTensor("  # as it shows a placeholder among them


class StageExit(BaseException):
    """Leaves the user's step at the stage's end; no `except Exception` swallows it."""

    def __init__(self, values: list[Value]) -> None:
        super().__init__("the next stage goes on from here")
        self.values = values


@dataclass(frozen=True)
class Phase:
    """What one kind of step (training, validation, ...) does at this stage's ends, from its probe.

    Attributes:
        exit_leaves: The arguments of the next stage's first module that are sent, by path; None on
            the last stage.
        substitutes: Whether code behind the entry uses received values by itself.
        carried: What is sent beside the arguments, by name.
        sites: Where values that are received or sent by name can be seen (see `train.carry`).
    """

    exit_leaves: Mapping[str, Leaf] | None
    substitutes: bool
    carried: Mapping[str, Leaf] = field(default_factory=dict)
    sites: Mapping[str, str] = field(default_factory=dict)


@dataclass
class MicroBatch:
    """One micro-batch on this device, from its forward until its backward is done.

    Attributes:
        index: Its number within the batch.
        batch: What the user's step is called with: this device's rows.
        rows: Number of those rows.
        first_row: The first of them, counted in the whole batch.
        scale: The loss is multiplied by it before backward.
    """

    index: int
    batch: Any
    rows: int
    first_row: int
    scale: float
    receive: Callable[[], list[Value]] | None = None
    arrival: Arrival | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    found: dict[str, list[Tensor]] = field(default_factory=dict)
    # holding a placeholder's result keeps its id from being reused
    substitutes: Substitutes = field(default_factory=dict)
    trained: bool = False
    entered: bool = False
    backward: bool = False
    outputs: list[Value] | None = None
    loss: Tensor | None = None
    output: Any = None


class Replay:
    """One stage of a module.

    Args:
        module: Parameters of other stages are placeholders already.
        mode: The mode those belong to; None when this device holds everything.
        entry: The module this stage begins with; None on the first stage.
        exit: The module the next stage begins with; None on the last stage.
    """

    def __init__(
        self, module: nn.Module, mode: PlaceholderMode | None, entry: str | None, exit: str | None
    ) -> None:
        self.module, self.entry, self.exit = module, entry, exit
        self._mode = mode
        self._phase = Phase(None, False)
        self._step: Callable[[Any, int], Any] = lambda batch, m: None
        self._seeds: tuple[int, ...] = ()
        self._waiting: dict[int, MicroBatch] = {}
        self._open: dict[int, MicroBatch] = {}
        self.active: MicroBatch | None = None
        self._handles: list[Any] = []
        self._carry = Carry(module)
        self._prefix = ExitStack()  # left where this stage begins
        for name, hook in ((entry, self._enter), (exit, self._leave)):
            if name is not None:
                target = module.get_submodule(name)
                # in front of the user's hooks: those belong to the stage that begins here
                self._handles.append(
                    target.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
                )

    def start(
        self,
        phase: Phase,
        step: Callable[[Any, int], Any],
        micro_batches: Sequence[MicroBatch],
        *seeds: int,
    ) -> None:
        """Get ready for one batch.

        Args:
            phase: What this kind of step sends and receives.
            step: Called with a micro-batch's batch and index; gives a loss in training, anything
                else otherwise.
            micro_batches: Those that have rows on this device.
            seeds: Of the run and of the batch.
        """
        self._phase, self._step, self._seeds = phase, step, seeds
        self._carry.look_for(phase.sites)
        self._waiting = {micro_batch.index: micro_batch for micro_batch in micro_batches}
        self._open = {}

    def forward(self, m: int, receive: Callable[[], list[Value]]) -> list[Value] | None:
        """Run the user's step on micro-batch `m` up to the end of this stage.

        Raises:
            SplitError: When a value got past a cut, or the step did not come by this stage.
        """
        micro_batch = self._waiting.pop(m)
        micro_batch.receive, micro_batch.trained = receive, torch.is_grad_enabled()
        micro_batch.entered = self.entry is None
        seed_all(mix(*self._seeds, m))
        with self._running(micro_batch, micro_batch.found):
            self._allow_mixing(self.entry is not None)
            if self.entry is not None:
                self._prefix.enter_context(eager())
            try:
                micro_batch.output = self._step(micro_batch.batch, m)
            except StageExit as leave:
                micro_batch.outputs = leave.values
            except Exception as error:
                raise self._explained(error) from error
        micro_batch.batch = None
        micro_batch.found = {}
        self._check_passed(micro_batch)
        if torch.is_grad_enabled():
            self._open[m] = micro_batch
        return micro_batch.outputs

    def backward(
        self, m: int, gradients: Mapping[str, Tensor] | None
    ) -> tuple[Sequence[Value], Mapping[str, Tensor | None]]:
        """Compute `m`'s gradients: parameters' go to `p.grad`, received values' are returned."""
        micro_batch = self._open.pop(m)
        micro_batch.backward = True
        with self._running(micro_batch, None):
            if micro_batch.outputs is None:
                assert micro_batch.loss is not None
                torch.autograd.backward([micro_batch.loss])
            else:
                made = gradients or {}
                sent = [v for v in micro_batch.outputs if v.requires_grad and v.name in made]
                if sent:
                    torch.autograd.backward(
                        [v.tensor for v in sent], [made[v.name].to(v.tensor.dtype) for v in sent]
                    )
        if micro_batch.arrival is None:
            return (), {}
        return micro_batch.arrival.values, micro_batch.arrival.gradients

    @contextmanager
    def _running(
        self, micro_batch: MicroBatch, found: dict[str, list[Tensor]] | None
    ) -> Iterator[None]:
        self.active = micro_batch
        if self._mode is not None:
            self._mode.lenient = True
        try:
            with ExitStack() as stack, self._prefix:
                if self._phase.substitutes or self._phase.sites:
                    stack.enter_context(self._carry.running(micro_batch.substitutes, found))
                yield
        finally:
            self.active = None
            self._allow_mixing(True)
            if self._mode is not None:
                self._mode.lenient = False

    def _allow_mixing(self, allowed: bool) -> None:
        if self._mode is not None:
            self._mode.allow_non_fake_inputs = allowed

    def received(self, tree: Any) -> Any:
        """A tree of values of the running micro-batch with what was received in it."""
        return tree if self.active is None else received(tree, self.active.substitutes)

    def _enter(self, _: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Pre-hook of this stage's first module: fake arguments become what was received."""
        micro_batch = self.active
        if micro_batch is None:
            return None
        leaves = paths_and_leaves((args, kwargs))
        if not micro_batch.backward:
            if micro_batch.entered:
                raise SplitError(
                    f"start: {self.entry!r} is called more than once in a step; a stage can "
                    f"begin only at a module that "
                    f"runs once"
                )
            self._receive(micro_batch, leaves)
        # under activation checkpointing the module runs again in backward: the same tensors take
        # the place
        replaced = iter([micro_batch.tensors.get(path, leaf) for path, leaf in leaves])
        result: tuple[Any, Any] = tree_map(lambda _: next(replaced), (args, kwargs))
        return result

    def _receive(self, micro_batch: MicroBatch, leaves: list[tuple[str, Any]]) -> None:
        assert micro_batch.receive is not None
        self._prefix.close()
        micro_batch.entered = True
        micro_batch.arrival = Arrival(micro_batch.receive())
        micro_batch.tensors = micro_batch.arrival.tensors()
        for name, tensor in micro_batch.tensors.items():
            for seen in micro_batch.found.get(name, ()):
                self._check_same(name, seen, tensor)
                micro_batch.substitutes[id(seen)] = (seen, tensor)
        for path, leaf in leaves:
            if path in micro_batch.tensors:
                micro_batch.substitutes[id(leaf)] = (leaf, micro_batch.tensors[path])
            elif id(leaf) in micro_batch.substitutes:
                micro_batch.tensors[path] = micro_batch.substitutes[id(leaf)][1]
            elif isinstance(leaf, Tensor) and is_fake(leaf):
                raise SplitError(
                    f"{self.entry!r} needs its argument {path}, which the stage in front did not "
                    f"send: the step takes another way through the model on this batch than on the "
                    f"first one. Choose another cut."
                )
        self._allow_mixing(False)

    def _check_same(self, name: str, seen: Tensor, received: Tensor) -> None:
        if is_fake(seen) and (seen.shape, seen.dtype) != (received.shape, received.dtype):
            raise SplitError(
                f"the value {name} that is carried to {self.entry!r} is {_kind(received)} in the "
                f"stage that made it and {_kind(seen)} here: the step takes different ways through "
                f"the model on different devices (on padding, perhaps). Choose another cut, or "
                f"give the stages the same shares."
            )

    def _leave(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        """Pre-hook of the next stage's first module: its arguments are this stage's outputs."""
        micro_batch = self.active
        if micro_batch is None or self._phase.exit_leaves is None or micro_batch.backward:
            return
        leaves = dict(paths_and_leaves((args, kwargs)))
        values: dict[int, Value] = {}
        wanted = {**self._phase.exit_leaves, **self._phase.carried}
        for path, known in wanted.items():
            leaf = (
                self._carried(micro_batch, path)
                if path in self._phase.carried
                else leaves.get(path)
            )
            if not isinstance(leaf, Tensor):
                continue
            tensor = micro_batch.substitutes.get(id(leaf), (leaf, leaf))[1]
            if is_fake(tensor):
                raise SplitError(_beside(self.exit, path))
            if id(tensor) in values:
                values[id(tensor)].aliases.append(path)
            else:
                values[id(tensor)] = self._value(
                    known, tensor, micro_batch.rows, micro_batch.trained
                )
        raise StageExit(list(values.values()))

    def _carried(self, micro_batch: MicroBatch, name: str) -> Tensor:
        if name in micro_batch.tensors:  # on its way from a stage in front
            return micro_batch.tensors[name]
        if name not in micro_batch.found:
            raise SplitError(
                f"the value {name}, which the stages behind {self.exit!r} need, was not computed: "
                f"the step takes another way through the model on this batch than on the first "
                f"one. Choose another cut."
            )
        return micro_batch.found[name][-1]

    def _value(self, known: Leaf, tensor: Tensor, rows: int, trained: bool) -> Value:
        row_dim, per_row = known.row_dim, known.per_row
        if row_dim is not None and tensor.shape[row_dim] != per_row * rows:
            row_dim, per_row = None, -1
        # not the grad mode here: reentrant activation checkpointing switches it off around a block
        needs_grad = tensor.requires_grad and trained
        return Value(known.path, tensor, row_dim, per_row, needs_grad)

    def _explained(self, error: Exception) -> Exception:
        if isinstance(error, EdgeError):
            return error
        if self.entry is not None and _NO_GRAPH in str(error):
            return UnsupportedError(
                f"a gradient was asked for with respect to a value in front of {self.entry!r},"
                f" where this device's stage begins; each device has the graph of its own stage"
                f" only: {line_of(error)}. Use a plan of one stage, whose devices share the rows."
            )
        if _MIXED not in str(error):
            return error
        if self.entry is None or _PARAMETER in str(error):
            return SplitError(
                f"a parameter that another device holds is used here, in {line_of(error)}: on the "
                f"batch that the model was tried with the step used it elsewhere or not at all. "
                f"Every step has to use the same parameters between two cuts; choose cuts that "
                f"leave the parts that take turns on one device."
            )
        return SplitError(f"{_beside(self.entry, None)} It is used in {line_of(error)}.")

    def _check_passed(self, micro_batch: MicroBatch) -> None:
        if micro_batch.outputs is None and self.exit is not None:
            raise SplitError(
                f"the step ended without calling {self.exit!r}, where the next stage begins; "
                f"every step has to come by each cut once"
            )
        if not micro_batch.entered:
            raise SplitError(
                f"the step ended without calling {self.entry!r}, where this stage begins"
            )
        needs_loss = micro_batch.outputs is None and micro_batch.trained
        if needs_loss and (micro_batch.loss is None or not micro_batch.loss.requires_grad):
            raise UnsupportedError(
                "training_step gave no loss that depends on a trainable parameter; return a loss "
                "tensor, or a dict with 'loss', for every batch"
            )

    def close(self) -> None:
        """Take the hooks off and forget what is open."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._carry.close()
        self._open, self._waiting, self.active = {}, {}, None


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {list(tensor.shape)}"


def _beside(cut: str | None, path: str | None) -> str:
    where = f" (its argument {path})" if path else ""
    return (
        f"a value computed in front of the cut {cut!r} is used behind it{where} without passing "
        f"through it (a long skip "
        f"connection?). Choose another start for this stage; lightning_edge.cuts(module, batch) "
        f"lists those that work."
    )
