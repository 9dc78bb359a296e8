"""Build a model without its weights, and compute later those that this device holds.

While the user's `configure_model` runs, large tensors are FakeTensors. Whatever writes into them is
put on a tape, and whatever draws random numbers draws them into scratch, so that the stream is the
one a single process would have gone through:

    tape    0  empty    -> A         A = embedding          state of the stream
            1  normal_     A                                   before 1
            2  empty    -> B         B = a block's matrix
            3  normal_     B                                   before 3
            4  clone       B -> C    C = a copy of it in the next block

    materialize(C)  runs 2, 3 (from the stream's state then) and 4: bit for bit what one process has

Nothing else of the model is computed, and no more memory is used than C and B need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from lightning_edge.errors import UnsupportedError
from lightning_edge.replicate import placeholder
from lightning_edge.replicate.placeholder import fake_mode
from lightning_edge.replicate.snapshot import version

__all__: list[str] = []

_CHUNK_ENTRIES = 1 << 20  # a multiple of 16, in which the stream's normal numbers are drawn
_OVERWRITES = ("normal_", "uniform_", "zero_", "fill_", "copy_", "trunc_normal_")

aten = torch.ops.aten


class _Ref(NamedTuple):
    """A placeholder as it was when it was used."""

    storage: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype


@dataclass(frozen=True)
class _Step:
    """One operation on the tape; storages by number."""

    func: Callable[..., Any]
    args: Any
    kwargs: Any
    made: tuple[_Ref | None, ...]
    fresh: frozenset[int]
    written: frozenset[int]
    read: frozenset[int]
    overwrites: bool
    state: Tensor | None
    generator: torch.Generator | None
    real: tuple[tuple[Tensor, int], ...]


class Deferred(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Entered round the code that builds a model."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.mode: FakeTensorMode = fake_mode(lenient=True)
        self._tape: list[_Step] = []
        self._storages: dict[int, Any] = {}  # keeps their numbers from being reused
        self._absent: dict[int, str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        written = _written(func, args, kwargs)
        fakes = any(isinstance(t, FakeTensor) for t in tensors)
        if any(not isinstance(t, FakeTensor) for t in written) or (not fakes and _is_view(func)):
            return self._for_real(func, args, kwargs)
        try:
            with self.mode:
                out = func(*args, **kwargs)
        except Exception:  # asks for values
            return self._for_real(func, args, kwargs)
        if not fakes and not any(_is_large(leaf) for leaf in tree_leaves(out)):
            return func(*args, **kwargs)
        self._record(func, args, kwargs, out, written, tensors)
        return out

    def _for_real(self, func: Any, args: Any, kwargs: Any) -> Any:
        def real(leaf: Any) -> Any:
            return self.materialize(leaf) if isinstance(leaf, FakeTensor) else leaf

        return func(*tree_map(real, args), **tree_map(real, kwargs))

    def _record(
        self, func: Any, args: Any, kwargs: Any, out: Any, written: list[Tensor], tensors: Any
    ) -> None:
        made = [leaf if isinstance(leaf, FakeTensor) else None for leaf in tree_leaves(out)]
        known = set(self._storages)
        new = {self._number(t) for t in made if t is not None} - known
        state, generator = None, kwargs.get("generator")
        if torch.Tag.nondeterministic_seeded in func.tags:
            state = generator.get_state() if generator is not None else torch.get_rng_state()
            _draw(func, args, kwargs)
        elif not new and not written:
            return  # a view: its place in the storage says everything
        reals = [t for t in tensors if not isinstance(t, FakeTensor)]
        keep = {id(t): t.detach().clone() for t in reals if t.numel() <= placeholder.SMALL_ENTRIES}

        def kept(leaf: Any) -> Any:
            if isinstance(leaf, FakeTensor):
                return self._ref(leaf)
            return keep.get(id(leaf), leaf) if isinstance(leaf, Tensor) else leaf

        self._tape.append(
            _Step(
                func,
                tree_map(kept, args),
                tree_map(kept, kwargs),
                tuple(self._ref(t) if t is not None else None for t in made),
                frozenset(new),
                frozenset(self._number(t) for t in written),
                frozenset(self._number(t) for t in tensors if isinstance(t, FakeTensor)),
                func.overloadpacket.__name__ in _OVERWRITES and _fills_its_storage(written[0]),
                state,
                generator,
                tuple((t, version(t)) for t in reals if id(t) not in keep),
            )
        )

    def _number(self, fake: Tensor) -> int:
        storage = fake.untyped_storage()
        number: int = storage._cdata
        self._storages.setdefault(number, storage)
        return number

    def _ref(self, fake: Tensor) -> _Ref:
        return _Ref(
            self._number(fake),
            tuple(fake.shape),
            tuple(fake.stride()),
            int(fake.storage_offset()),
            fake.dtype,
        )

    def stand_in(self, name: str, shape: Iterable[int], dtype: torch.dtype) -> Tensor:
        """A placeholder for a tensor that another device has, to be given to `materialize`."""
        with self.mode:
            fake = torch.empty(tuple(shape), dtype=dtype)
        self._absent[self._number(fake)] = name
        return fake

    def absent_for(self, fake: Tensor) -> list[str]:
        """The names of the stand-ins that a placeholder is computed from."""
        _, needed = self._steps_to(self._number(fake))
        return sorted(self._absent[number] for number in needed if number in self._absent)

    @torch.no_grad()
    def materialize(self, fake: Tensor, absent: Mapping[str, Tensor] | None = None) -> Tensor:
        """Compute a placeholder.

        Args:
            fake: Made while this mode was entered.
            absent: What stand-ins stand for, by name.

        Returns:
            A tensor of its own memory.

        Raises:
            UnsupportedError: When a tensor it is computed from has been changed since.
        """
        target = self._ref(fake)
        steps, needed = self._steps_to(target.storage)
        stores: dict[int, Any] = {}
        for number in needed & set(self._absent):
            stores[number] = (absent or {})[self._absent[number]].untyped_storage()
        with _own_streams(steps):
            for step in steps:
                self._run(step, stores)
        return _view(stores[target.storage], target)

    def _steps_to(self, storage: int) -> tuple[list[_Step], set[int]]:
        """The steps that lead to a storage's content, and all storages on the way."""
        needed, settled, steps = {storage}, set[int](), []
        for step in reversed(self._tape):
            hit = (step.fresh | step.written) & needed
            if not hit or not (step.fresh & needed or hit - settled):
                continue
            steps.append(step)
            settled -= step.read - step.written
            if step.overwrites:
                settled |= step.written
            needed |= step.read
        return steps[::-1], needed

    def _run(self, step: _Step, stores: dict[int, Any]) -> None:
        for tensor, seen in step.real:
            if version(tensor) != seen:
                raise UnsupportedError(
                    f"configure_model computed weights from a tensor of shape "
                    f"{list(tensor.shape)} and changed that tensor afterwards; copy it first"
                )

        def real(leaf: Any) -> Any:
            return _view(stores[leaf.storage], leaf) if isinstance(leaf, _Ref) else leaf

        if step.state is not None:
            (step.generator or torch.default_generator).set_state(step.state)
        is_ref = lambda leaf: isinstance(leaf, _Ref)  # noqa: E731
        args = tree_map(real, step.args, is_leaf=is_ref)
        kwargs = tree_map(real, step.kwargs, is_leaf=is_ref)
        out = tree_leaves(step.func(*args, **kwargs))
        for ref, leaf in zip(step.made, out, strict=True):
            if ref is not None and ref.storage in step.fresh and ref.storage not in stores:
                if leaf.stride() != ref.stride or leaf.storage_offset() != ref.offset:
                    leaf = torch.empty_strided(ref.size, ref.stride, dtype=ref.dtype).copy_(leaf)
                stores[ref.storage] = leaf.untyped_storage()

    def settle_buffers(self, module: nn.Module) -> None:
        """Compute what is not a parameter: buffers, and tensors kept in attributes."""
        done: dict[int, Tensor] = {}

        def real(value: Any) -> Any:
            if isinstance(value, FakeTensor) and not isinstance(value, nn.Parameter):
                if id(value) not in done:
                    done[id(value)] = self.materialize(value)
                return done[id(value)]
            if type(value) in (list, tuple, dict) and any(
                isinstance(leaf, FakeTensor) for leaf in tree_leaves(value)
            ):
                return tree_map(real, value)
            return value

        for child in module.modules():
            for table in (child.__dict__, child._buffers):
                for key, value in list(table.items()):
                    if key not in ("_parameters", "_buffers", "_modules"):
                        table[key] = real(value)

    def forget(self) -> None:
        """Free the tape and what it refers to; nothing can be computed any more."""
        self._tape.clear()
        self._storages.clear()


@contextmanager
def _own_streams(steps: Iterable[_Step]) -> Iterator[None]:
    generators = {id(g): g for g in (torch.default_generator, *(s.generator for s in steps)) if g}
    states = [(generator, generator.get_state()) for generator in generators.values()]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)


def _view(storage: Any, ref: _Ref) -> Tensor:
    return torch.empty(0, dtype=ref.dtype).set_(storage, ref.offset, ref.size, ref.stride)


def _is_large(leaf: Any) -> bool:
    return (
        isinstance(leaf, Tensor)
        and leaf.numel() > placeholder.SMALL_ENTRIES
        and leaf.device.type != "meta"
    )


def _is_view(func: Any) -> bool:
    return any(value.alias_info is not None for value in func._schema.returns)


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    found = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            found += [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return found


def _fills_its_storage(tensor: Tensor) -> bool:
    return (
        tensor.is_contiguous()
        and tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
    )


def _draw(func: Any, args: Any, kwargs: Any) -> None:
    """Draw what an operation draws, into scratch."""
    target: Any = args[0] if args else None
    if func in (aten.normal_.default, aten.uniform_.default) and target.is_contiguous():
        size = target.numel()
        scratch = torch.empty(min(size, _CHUNK_ENTRIES + 16), dtype=target.dtype)
        while size:
            # what is left behind a chunk may not be so small that it is drawn in another way
            take = size if size < _CHUNK_ENTRIES + 16 else _CHUNK_ENTRIES
            func(scratch[:take], *args[1:], **kwargs)
            size -= take
        return

    def real(leaf: Any) -> Any:
        if not isinstance(leaf, FakeTensor):
            return leaf
        scratch = torch.empty_strided(leaf.size(), leaf.stride(), dtype=leaf.dtype)
        return scratch.zero_()

    func(*tree_map(real, args), **tree_map(real, kwargs))
