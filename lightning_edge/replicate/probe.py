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

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten_with_path, tree_leaves

from lightning_edge.replicate.placeholder import (
    fake_mode,
    is_fake,
    placeholder_like,
    swap_parameters,
)
from lightning_edge.replicate.randomness import host_states, kept
from lightning_edge.replicate.snapshot import untouched

__all__: list[str] = []

# questions about a tensor that need no data: asking a parameter for its dtype is not using it
_DATA_ATTRIBUTES = frozenset({"data", "grad", "T", "mT", "H", "mH", "real", "imag"})
_METADATA_METHODS = frozenset(
    [
        "size",
        "dim",
        "ndimension",
        "stride",
        "numel",
        "nelement",
        "element_size",
        "storage_offset",
        "get_device",
        "is_contiguous",
        "is_floating_point",
        "is_complex",
        "is_signed",
        "__len__",
        "__hash__",
        "__repr__",
        "__format__",
        "is_same_size",
        "is_inference",
    ]
)


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
    """

    path: str
    fake: bool
    shape: tuple[int, ...]
    row_dim: int | None
    per_row: int
    requires_grad: bool


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
        created: Position it was made at.
        made_in: The module whose code made it ("" is the step itself).
        uses: Later positions it was used at, each with the module whose code used it.
        passed_to: Modules that were given it as an argument.
    """

    created: int
    made_in: str
    uses: tuple[tuple[int, str], ...]
    passed_to: frozenset[str]


@dataclass(frozen=True)
class Probe:
    """What one step of a module does.

    Attributes:
        calls: Module calls in order (a module that runs twice stands there twice).
        touches: Parameter or buffer name (the first of tied ones) to the positions it is used at.
        values: Intermediate results that are used at a later position than the one they were made
            at.
        draws: Names of the innermost modules that draw random numbers; "" is the step itself.
        weighted: Whether the step returns a "loss_weight".
        failure: What the user's code raised on data-less tensors behind the last call, if it did.
    """

    calls: tuple[Call, ...]
    touches: Mapping[str, tuple[int, ...]]
    values: tuple[Value, ...] = ()
    draws: frozenset[str] = frozenset()
    weighted: bool = False
    failure: str | None = None

    def once(self) -> dict[str, Call]:
        """The calls of modules that run exactly once, by name, in order."""
        counts: dict[str, int] = {}
        for call in self.calls:
            counts[call.name] = counts.get(call.name, 0) + 1
        return {call.name: call for call in self.calls if counts[call.name] == 1}


@dataclass
class _Result:
    """An intermediate result that is watched; holding the tensor keeps its id its own."""

    tensor: Tensor
    created: int
    made_in: str
    uses: list[tuple[int, str]] = field(default_factory=list)
    passed_to: set[str] = field(default_factory=set)


@dataclass
class _Trace:
    """What one run of the step wrote down."""

    calls: list[tuple[str, list[tuple[str, Tensor]]]] = field(default_factory=list)
    stack: list[str] = field(default_factory=lambda: [""])
    touches: dict[str, list[int]] = field(default_factory=dict)
    draws: set[str] = field(default_factory=set)
    values: dict[int, _Result] = field(default_factory=dict)
    output: Any = None
    failure: str | None = None


def _is_metadata(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return getattr(getattr(func, "__self__", None), "__name__", "") not in _DATA_ATTRIBUTES
    return name in _METADATA_METHODS


class _Watch(TorchFunctionMode):
    """Writes down every use of a named tensor and of an intermediate result."""

    def __init__(self, trace: _Trace, names: dict[int, str]) -> None:
        super().__init__()
        self._trace, self._names = trace, names

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        trace, position = self._trace, len(self._trace.calls)
        if not _is_metadata(func):
            for leaf in tree_leaves((args, kwargs)):
                if not isinstance(leaf, Tensor):
                    continue
                name = self._names.get(id(leaf))
                if name is not None:
                    used = trace.touches.setdefault(name, [])
                    if not used or used[-1] != position:
                        used.append(position)
                value = trace.values.get(id(leaf))
                if value is not None and position > value.created:
                    value.uses.append((position, trace.stack[-1]))
        out = func(*args, **kwargs)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and is_fake(leaf) and id(leaf) not in self._names:
                trace.values.setdefault(id(leaf), _Result(leaf, position, trace.stack[-1]))
        return out


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down which module draws random numbers."""

    def __init__(self, trace: _Trace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._trace = trace

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags and not _draws_nothing(
            func, args, kwargs
        ):
            self._trace.draws.add(self._trace.stack[-1])
        return func(*args, **kwargs)


def _draws_nothing(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Attention and dropout carry the tag also when their probability is zero."""
    for i, argument in enumerate(func._schema.arguments):
        if argument.name in ("dropout_p", "p", "dropout"):
            value = args[i] if i < len(args) else kwargs.get(argument.name, argument.default_value)
            return value in (0, 0.0, None)
    return False


def _hooks(module: nn.Module, trace: _Trace) -> Iterator[Any]:
    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            trace.calls.append((name, _tensor_leaves((args, kwargs))))
            trace.stack.append(name)
            for _, leaf in trace.calls[-1][1]:
                if id(leaf) in trace.values:
                    trace.values[id(leaf)].passed_to.add(name)

        return hook

    def after(*_: Any) -> None:
        trace.stack.pop()

    for path, child in module.named_modules():
        if path:
            yield child.register_forward_pre_hook(before(path), with_kwargs=True)
            yield child.register_forward_hook(after, always_call=True)


def _tensor_leaves(tree: Any) -> list[tuple[str, Tensor]]:
    return [(path, leaf) for path, leaf in paths_and_leaves(tree) if isinstance(leaf, Tensor)]


def paths_and_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Leaves of a pytree with their places as text: `[0][0]`, `[1]['mask']`."""
    return [
        ("".join(str(key) for key in path), leaf) for path, leaf in tree_flatten_with_path(tree)[0]
    ]


def _run(
    module: nn.Module,
    step: Callable[[Any], Any],
    batch: Any,
    context: Callable[[], AbstractContextManager[Any]],
) -> _Trace:
    trace = _Trace()
    mode = fake_mode()
    with untouched(module), kept(seed=0), ExitStack() as stack:
        fakes = swap_parameters(module, lambda _, parameter: placeholder_like(parameter, mode))
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        names.update({id(buffer): name for name, buffer in module.named_buffers()})
        for handle in _hooks(module, trace):
            stack.callback(handle.remove)
        for attribute in ("log", "log_dict", "print"):
            module.__dict__[attribute] = _ignore
        stack.enter_context(context())
        stack.enter_context(_Draws(trace))
        stack.enter_context(_Watch(trace, names))
        before = host_states()
        try:
            trace.output = step(batch)
        except (
            Exception
        ) as error:  # code behind the model may want numbers; what counts ran before it
            trace.failure = f"{type(error).__name__}: {error}"
        if host_states() != before:
            trace.draws.add("")  # Python's or NumPy's stream, whoever drew
        del fakes
    return trace


def _ignore(*_: Any, **__: Any) -> None:
    return None


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
    """
    first, second = (_run(module, step, batch, context) for batch in batches)
    calls = []
    for position, (name, leaves) in enumerate(first.calls):
        other = dict(second.calls[position][1]) if position < len(second.calls) else {}
        calls.append(
            Call(
                name,
                position,
                tuple(_leaf(path, leaf, other.get(path), rows) for path, leaf in leaves),
            )
        )
    values = tuple(
        Value(
            result.created - 1,
            result.made_in,
            tuple((position - 1, module) for position, module in dict.fromkeys(result.uses)),
            frozenset(result.passed_to),
        )
        for result in first.values.values()
        if result.uses
    )
    weighted = isinstance(first.output, Mapping) and "loss_weight" in first.output
    return Probe(
        calls=tuple(calls),
        touches={name: tuple(p - 1 for p in used) for name, used in first.touches.items()},
        values=values,
        draws=frozenset(first.draws),
        weighted=weighted,
        failure=first.failure,
    )


def _leaf(path: str, leaf: Tensor, other: Tensor | None, rows: tuple[int, int]) -> Leaf:
    if other is not None and leaf.shape == other.shape:
        return Leaf(path, is_fake(leaf), tuple(leaf.shape), None, 0, leaf.requires_grad)
    row_dim, per_row = None, -1
    if other is not None and leaf.ndim == other.ndim:
        grown = [d for d in range(leaf.ndim) if leaf.shape[d] != other.shape[d]]
        if len(grown) == 1 and leaf.shape[grown[0]] % rows[0] == 0:
            size = leaf.shape[grown[0]] // rows[0]
            if other.shape[grown[0]] == size * rows[1]:
                row_dim, per_row = grown[0], size
    return Leaf(path, is_fake(leaf), tuple(leaf.shape), row_dim, per_row, leaf.requires_grad)
