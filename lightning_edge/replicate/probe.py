"""One step without data or compute: what runs when, which parameter is used where, what crosses.

The module's parameters are swapped for placeholders, the user's own step runs on a real batch of a
few rows, and everything that depends on a parameter comes out fake. Positions count module calls:

    position   0        1      2        3        4
    call       model    wte    h.0      h.1      lm_head
    touches             wte    h.0.*    h.1.*    wte (tied)
    a cut at h.1 (position 3) gives stage 0 what is touched before 3 and stage 1 the rest: both hold
    wte

Nothing here depends on where the model is cut, so one probe serves every plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lightning_edge.errors import UnsupportedError
from lightning_edge.replicate.adding import Growth, Kind
from lightning_edge.replicate.bonds import Bonds
from lightning_edge.replicate.placeholder import is_fake
from lightning_edge.replicate.sites import Site
from lightning_edge.replicate.trace import Seen, Trace, paths_and_leaves, run_step

__all__: list[str] = []

Runs: TypeAlias = "tuple[Trace, Trace]"


@dataclass(frozen=True)
class Leaf:
    """One tensor among a module call's arguments.

    Attributes:
        path: Where in `(args, kwargs)`, for instance `[0][0]` or `[1]['attention_mask']`.
        fake: Whether it depends on a parameter, so that a device in front has to send it.
        shape: At the probe's first number of rows.
        row_dim: The dimension that grows with the rows of the batch, None where none does.
        per_row: Entries along `row_dim` for each row; -1 where it changes with the rows by no rule
            we know.
        requires_grad: Whether a gradient goes back through it.
        itemsize: Bytes of an entry.
        floating: Whether it has a floating dtype.
        over_rows: Whether it has no rows, but depends on those of the batch: a mean over them.
        apart: Whether it has several entries for each row that may not follow one another.
        created: The position it was made at; -1 if it came into the step.
    """

    path: str
    fake: bool
    shape: tuple[int, ...]
    row_dim: int | None
    per_row: int
    requires_grad: bool
    itemsize: int = 4
    floating: bool = True
    over_rows: bool = False
    apart: bool = False
    created: int = -1

    def bytes_of(self, rows: int) -> int:
        """Its bytes for a number of rows."""
        entries = math.prod(self.shape) * self.itemsize
        if self.row_dim is None:
            return entries
        return entries * self.per_row * rows // max(self.shape[self.row_dim], 1)


@dataclass(frozen=True)
class Call:
    """One module call: its position in the step and the tensors it was given."""

    name: str
    position: int
    leaves: tuple[Leaf, ...]


@dataclass(frozen=True)
class Value:
    """A parameter-dependent result.

    Attributes:
        leaf: What it is; `path` is its name, "" when nothing tells it from others.
        sites: Every place it can be seen at.
        created: Position it was made at.
        made_in: The module whose code made it ("" is the step itself).
        uses: Later positions it was used at, each with the module whose code used it.
        passed_to: Modules that were given it as an argument.
        memory: The same number for tensors that share their memory.
    """

    leaf: Leaf
    sites: tuple[Site, ...]
    created: int
    made_in: str
    uses: tuple[tuple[int, str], ...]
    passed_to: frozenset[str]
    memory: int = 0

    @property
    def last_use(self) -> int:
        """The latest position it is used at."""
        return max(position for position, _ in self.uses)


@dataclass(frozen=True)
class Probe:
    """What one step of a module does.

    Attributes:
        calls: Module calls in order (a module that runs twice stands there twice).
        touches: Parameter or buffer name (the first of tied ones) to the positions it is used at.
        values: Intermediate results that are used at a later position than the one they were made
            at.
        draws: Names of the innermost modules that draw random numbers; "" is the step itself.
        flops: Floating-point operations of a row's forward, by the position they are done at.
        trials: Modules that need data to run (see `replicate.trial`).
        weighted: Whether the step returns a "loss_weight".
        loss: Whether the step's result is a mean over rows or adds up over them.
        adding: Names of logged values that add up over rows.
        results: Where in what the step returns numbers stand that do, for instance `['hits']`.
        bonds: What a cut may not part.
        failure: What the user's code raised on data-less tensors behind the last call, if it did.
    """

    calls: tuple[Call, ...]
    touches: Mapping[str, tuple[int, ...]]
    values: tuple[Value, ...] = ()
    draws: frozenset[str] = frozenset()
    flops: Mapping[int, float] = field(default_factory=dict)
    trials: frozenset[str] = frozenset()
    weighted: bool = False
    loss: Kind = "mean"
    adding: frozenset[str] = frozenset()
    results: frozenset[str] = frozenset()
    bonds: Bonds = Bonds()
    failure: str | None = None

    def once(self) -> dict[str, Call]:
        """The calls of modules that run exactly once, by name, in order."""
        counts: dict[str, int] = {}
        for call in self.calls:
            counts[call.name] = counts.get(call.name, 0) + 1
        return {call.name: call for call in self.calls if counts[call.name] == 1}


def probe_step(
    module: nn.Module,
    step: Callable[[Any], Any],
    batches: tuple[Any, Any],
    rows: tuple[int, int],
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Probe:
    """Run a step twice on placeholders, on two numbers of rows, and say what it does.

    Args:
        module: Its parameters are real or placeholders; it is left as it was, random streams too.
        step: Takes a batch; usually the bound `training_step`.
        batches: The same batch cut to two different numbers of rows. What grows between them has
            rows.
        rows: Those numbers.
        context: Entered around each run (autocast).

    Returns:
        The probe; parameter names are those of `module.named_parameters()`.

    Raises:
        UnsupportedError: When parts of the module cannot be run on placeholders.
    """
    _refuse_parts(module)
    runs: Runs = tuple(run_step(module, step, batch, context) for batch in batches)  # type: ignore[assignment]
    first, second = runs
    calls = []
    for position, (name, leaves) in enumerate(first.calls):
        other = dict(second.calls[position][1]) if position < len(second.calls) else {}
        calls.append(
            Call(
                name,
                position,
                tuple(_leaf(path, leaf, other.get(path), rows, runs) for path, leaf in leaves),
            )
        )
    others = {seen.sites[0].name: seen.tensor for seen in second.values.values() if seen.sites}
    values = tuple(_value(seen, others, rows, runs) for seen in first.values.values() if seen.uses)
    weighted = isinstance(first.output, Mapping) and "loss_weight" in first.output
    growth = Growth(first.operations, second.operations, rows)
    losses = [_loss(trace) for trace in (first, second)]
    return Probe(
        calls=tuple(calls),
        touches={name: tuple(p - 1 for p in used) for name, used in first.touches.items()},
        values=values,
        draws=frozenset(first.draws),
        flops={max(p - 1, 0): count / rows[0] for p, count in first.flops.items()},
        trials=first.trials,
        weighted=weighted,
        loss=growth.kind(*losses),
        adding=growth.logs(),
        results=growth.adding(*(_results(trace) for trace in (first, second))),
        bonds=first.found,
        failure=first.failure,
    )


def _loss(trace: Trace) -> Any:
    output = trace.output
    if trace.failure is not None:
        output = trace.operations.last_loss()
    return trace.operations.of(output.get("loss") if isinstance(output, Mapping) else output)


def _results(trace: Trace) -> dict[str, Any]:
    leaves = dict(paths_and_leaves(trace.output))
    return {path: trace.operations.of(leaf) for path, leaf in leaves.items()}


def _refuse_parts(module: nn.Module) -> None:
    problems = [
        f"{name!r} is compiled by torch.jit, whose weights cannot be on another device: use the "
        f"module that it was made from"
        for name, child in module.named_modules()
        if isinstance(child, torch.jit.ScriptModule) and next(child.parameters(), None) is not None
    ]
    problems += [
        f"{name!r} is a lazy parameter without a shape: run the model once on a batch before "
        f"training (in __init__ or configure_model)"
        for name, parameter in module.named_parameters()
        if isinstance(parameter, nn.parameter.UninitializedParameter)
    ]
    if problems:
        raise UnsupportedError("; ".join(problems))


def _value(seen: Seen, others: Mapping[str, Tensor], rows: tuple[int, int], runs: Runs) -> Value:
    name = seen.sites[0].name if seen.sites else ""
    return Value(
        _leaf(name, seen.tensor, others.get(name), rows, runs),
        tuple(seen.sites),
        seen.created - 1,
        seen.made_in,
        tuple((position - 1, module) for position, module in dict.fromkeys(seen.uses)),
        frozenset(seen.passed_to),
        _memory(seen.tensor),
    )


def _memory(tensor: Tensor) -> int:
    if tensor.layout != torch.strided:
        return id(tensor)
    number: int = tensor.untyped_storage()._cdata
    return number


def _leaf(path: str, leaf: Tensor, other: Tensor | None, rows: tuple[int, int], runs: Runs) -> Leaf:
    row_dim, per_row = _rows(leaf, other, rows)
    shape, known = tuple(leaf.shape), runs[0].values.get(id(leaf))
    return Leaf(
        path,
        is_fake(leaf),
        shape,
        row_dim,
        per_row,
        leaf.requires_grad,
        leaf.element_size(),
        leaf.is_floating_point(),
        row_dim is None and runs[0].rows.from_batch(leaf),
        per_row > 1 and runs[0].rows.apart(leaf, runs[1].rows),
        known.created - 1 if known is not None else -1,
    )


def _rows(leaf: Tensor, other: Tensor | None, rows: tuple[int, int]) -> tuple[int | None, int]:
    """The dimension that grows with the rows, and by how much."""
    if other is not None and leaf.shape == other.shape:
        return None, 0
    if other is not None and leaf.ndim == other.ndim:
        grown = [d for d in range(leaf.ndim) if leaf.shape[d] != other.shape[d]]
        if len(grown) == 1 and leaf.shape[grown[0]] % rows[0] == 0:
            size = leaf.shape[grown[0]] // rows[0]
            if other.shape[grown[0]] == size * rows[1]:
                return grown[0], size
    return None, -1
