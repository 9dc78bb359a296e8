"""What one run of a step on placeholders writes down; `replicate.probe` makes sense of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten_with_path, tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from lightning_edge.replicate.adding import Operations
from lightning_edge.replicate.bonds import Bonds, BondsWatch
from lightning_edge.replicate.placeholder import (
    eager,
    fake_mode,
    is_fake,
    placeholder_like,
    swap_parameters,
)
from lightning_edge.replicate.randomness import host_states, kept
from lightning_edge.replicate.rows import RowsWatch
from lightning_edge.replicate.sites import Site, Whereabouts, follow_calls, numbered
from lightning_edge.replicate.snapshot import untouched
from lightning_edge.replicate.told import told
from lightning_edge.replicate.trial import Trials

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
RESULT = "the step's result"


def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    count = sdpa_flop_count(q.shape, k.shape, v.shape)  # type: ignore[no-untyped-call]
    return int(count)


# what torch counts, and the attention that CPUs run
_FLOPS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    **flop_registry,
}


@dataclass
class Seen:
    """An intermediate result that is watched; holding the tensor keeps its id its own."""

    tensor: Tensor
    created: int
    made_in: str
    sites: list[Site] = field(default_factory=list)
    uses: list[tuple[int, str]] = field(default_factory=list)
    passed_to: set[str] = field(default_factory=set)


@dataclass
class Trace:
    """What one run of the step wrote down; positions count the calls made before."""

    bonds: BondsWatch
    rows: RowsWatch
    found: Bonds = Bonds()
    calls: list[tuple[str, list[tuple[str, Tensor]]]] = field(default_factory=list)
    where: Whereabouts = field(default_factory=Whereabouts)
    touches: dict[str, list[int]] = field(default_factory=dict)
    draws: set[str] = field(default_factory=set)
    values: dict[int, Seen] = field(default_factory=dict)
    flops: dict[int, int] = field(default_factory=dict)
    trials: frozenset[str] = frozenset()
    output: Any = None
    failure: str | None = None
    stuck_in: str | None = None  # the module that asked a placeholder for data
    operations: Operations = field(default_factory=lambda: Operations(lambda _: False, is_fake))

    @property
    def position(self) -> int:
        """Calls made so far."""
        return len(self.calls)

    def see(self, tensor: Tensor, site: str | None, inside: tuple[str, ...] = ()) -> None:
        """A result, new or known under another name already, is at a place."""
        seen = self.values.get(id(tensor))
        if seen is None:
            seen = self.values[id(tensor)] = Seen(tensor, self.position, self.where.module)
        if site is not None and all(site != known.name for known in seen.sites):
            seen.sites.append(Site(site, inside, self.position))

    def use(self, tree: Any, position: int, who: str) -> None:
        """Everything in a tree of objects is used."""
        for leaf in tree_leaves(tree):
            seen = self.values.get(id(leaf))
            if seen is not None and position > seen.created:
                seen.uses.append((position, who))

    def made_at(self, tensor: Tensor, names: Mapping[int, str]) -> int:
        """The position a result was made at; that of its first use for a parameter."""
        if id(tensor) in self.values:
            return self.values[id(tensor)].created
        if id(tensor) in names:
            return min(self.touches.get(names[id(tensor)], [self.position]))
        return self.position if is_fake(tensor) else 0

    def touch(self, name: str) -> None:
        """A parameter or buffer is used."""
        used = self.touches.setdefault(name, [])
        if not used or used[-1] != self.position:
            used.append(self.position)


def run_step(
    module: nn.Module,
    step: Callable[[Any], Any],
    batch: Any,
    context: Callable[[], AbstractContextManager[Any]],
) -> Trace:
    """Run a step on placeholders and leave the module and the random streams as they were."""
    trials: frozenset[str] = frozenset()
    while True:
        trace = _run(module, step, batch, context, trials)
        more = _alike(module, trace.stuck_in) - trials
        if not more:
            return trace
        trials |= more


def _alike(module: nn.Module, stuck_in: str | None) -> frozenset[str]:
    """The modules of one kind, when it is a small part of the model that needs data."""
    if not stuck_in:
        return frozenset()
    kind = type(module.get_submodule(stuck_in))
    alike = {name for name, child in module.named_modules() if type(child) is kind}
    size = sum(p.numel() for p in module.get_submodule(stuck_in).parameters())
    return (
        frozenset(alike) if 2 * size <= sum(p.numel() for p in module.parameters()) else frozenset()
    )


def _run(
    module: nn.Module,
    step: Callable[[Any], Any],
    batch: Any,
    context: Callable[[], AbstractContextManager[Any]],
    trials: frozenset[str],
) -> Trace:
    mode = fake_mode(lenient=True)
    with untouched(module), kept(seed=0), ExitStack() as stack:
        fakes = swap_parameters(module, lambda _, parameter: placeholder_like(parameter, mode))
        bonds = BondsWatch(module)
        named = {**bonds.tensors, **dict(module.named_buffers()), **dict(module.named_parameters())}
        names = {id(tensor): name for name, tensor in named.items()}
        trace = Trace(bonds, RowsWatch(named.values()), trials=trials)
        for handle in follow_calls(module, _entered(trace, names), _left(trace, names)):
            stack.callback(handle.remove)
        trace.operations = Operations(lambda tensor: id(tensor) in names, is_fake)
        for attribute in ("log", "log_dict", "print"):
            module.__dict__[attribute] = _log(trace, attribute)
        stack.callback(Trials(module, trials, lambda name: _tried(trace, module, name)).close)
        stack.enter_context(eager())
        stack.enter_context(context())
        stack.enter_context(_Operations(trace))
        stack.enter_context(_Watch(trace, names))
        before = host_states()
        logger = logging.getLogger("torch._subclasses.fake_tensor")  # shouts before it raises
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)
        try:
            trace.output = step(batch)
            trace.use(trace.output, trace.position + 1, RESULT)
            trace.stuck_in = None
        except (
            Exception
        ) as error:  # code behind the model may want numbers; what counts ran before it
            trace.failure = told(error)
        trace.found = bonds.found()
        if host_states() != before:
            trace.draws.add("")  # Python's or NumPy's stream, whoever drew
        del fakes
    return trace


def _entered(trace: Trace, names: dict[int, str]) -> Callable[[str, Any], None]:
    def entered(name: str, arguments: Any) -> None:
        outside = trace.where.inside
        trace.calls.append((name, tensor_leaves(arguments)))
        trace.where.enter(name)
        for path, leaf in trace.calls[-1][1]:
            if id(leaf) not in names and is_fake(leaf):
                if id(leaf) not in trace.values:  # made by something that told nobody
                    trace.see(leaf, f"{trace.where.key}|in{path}", outside)
                trace.values[id(leaf)].passed_to.add(name)

    return entered


def _left(trace: Trace, names: dict[int, str]) -> Callable[[str, Any], None]:
    def left(name: str, output: Any) -> None:
        key = trace.where.leave(name)
        for site, leaf in numbered(f"{key}|out", output):
            if is_fake(leaf) and id(leaf) not in names:
                trace.see(leaf, site, trace.where.inside)

    return left


def _tried(trace: Trace, module: nn.Module, name: str) -> None:
    """A module could not run without data: nothing inside it counts but that it ran."""
    start = max(i for i, call in enumerate(trace.calls) if call[0] == name) + 1
    del trace.calls[start:]
    for used in trace.touches.values():
        used[:] = [position for position in used if position <= start]
    for key, seen in list(trace.values.items()):
        seen.uses = [use for use in seen.uses if use[0] <= start]
        if seen.created > start:
            del trace.values[key]
    trace.bonds.end_at(start)
    for inner, _ in module.get_submodule(name).named_parameters(name):
        trace.touch(inner)


def _log(trace: Trace, attribute: str) -> Callable[..., None]:
    def log(*args: Any, **kwargs: Any) -> None:
        # carried out behind the step, on the last stage
        trace.use((args, kwargs), 1 << 30, RESULT)
        given = [*args, *kwargs.values()]
        if attribute == "log_dict" and given and isinstance(given[0], dict):
            trace.operations.log(given[0])
        elif attribute == "log":
            named = dict(zip(("name", "value"), args, strict=False)) | kwargs
            trace.operations.log({str(named.get("name")): named.get("value")})

    return log


def _is_metadata(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return getattr(getattr(func, "__self__", None), "__name__", "") not in _DATA_ATTRIBUTES
    return name in _METADATA_METHODS


class _Watch(TorchFunctionMode):
    """Writes down every use of a named tensor and of an intermediate result."""

    def __init__(self, trace: Trace, names: dict[int, str]) -> None:
        super().__init__()
        self._trace, self._names = trace, names

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        trace, position = self._trace, self._trace.position
        if not _is_metadata(func):
            for leaf in tree_leaves((args, kwargs)):
                if not isinstance(leaf, Tensor):
                    continue
                name = self._names.get(id(leaf))
                if name is not None:
                    trace.touch(name)
                    continue
                if is_fake(leaf) and id(leaf) not in trace.values:
                    trace.see(leaf, None)
                value = trace.values.get(id(leaf))
                if value is not None and position > value.created:
                    value.uses.append((position, trace.where.module))
        if func is torch.autograd.grad:
            inputs = args[1] if len(args) > 1 else kwargs.get("inputs")
            made_at = partial(trace.made_at, names=self._names)
            trace.bonds.gradient(inputs, made_at, position, trace.where.module)
        site = trace.where.function(func)
        trace.operations.inside = getattr(func, "__name__", "")
        out = func(*args, **kwargs)
        for name, leaf in numbered(site, out):
            if is_fake(leaf) and id(leaf) not in self._names:
                trace.see(leaf, name, trace.where.inside)
        return out


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down which module draws random numbers, and counts floating-point operations."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._trace = trace

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        trace = self._trace
        if torch.Tag.nondeterministic_seeded in func.tags and not _draws_nothing(
            func, args, kwargs
        ):
            trace.draws.add(trace.where.module)
        trace.bonds.operation(func, args, kwargs, trace.position, trace.where.module)
        try:
            out = func(*args, **kwargs)
        except Exception:  # it needs data, or nobody taught it to do without
            trace.stuck_in = trace.where.module
            raise
        trace.operations.note(func, args, kwargs, out)
        trace.rows.operation(func, args, kwargs, out)
        count = _FLOPS.get(func.overloadpacket)
        if count is not None:
            made = trace.flops.get(trace.position, 0)
            trace.flops[trace.position] = made + int(count(*args, **kwargs, out_val=out))
        return out


def _draws_nothing(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Attention and dropout carry the tag also when their probability is zero."""
    for i, argument in enumerate(func._schema.arguments):
        if argument.name in ("dropout_p", "p", "dropout"):
            value = args[i] if i < len(args) else kwargs.get(argument.name, argument.default_value)
            return value in (0, 0.0, None)
    return False


def tensor_leaves(tree: Any) -> list[tuple[str, Tensor]]:
    """The tensors in a pytree with their places as text."""
    return [(path, leaf) for path, leaf in paths_and_leaves(tree) if isinstance(leaf, Tensor)]


def paths_and_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Leaves of a pytree with their places as text: `[0][0]`, `[1]['mask']`."""
    return [
        ("".join(str(key) for key in path), leaf) for path, leaf in tree_flatten_with_path(tree)[0]
    ]
