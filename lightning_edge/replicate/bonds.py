"""What a cut may not part, since it does not travel with a micro-batch.

    self.scale.mul_(0.9).add_(x.mean())       a buffer that one stage changes and another one uses
    slope = torch.autograd.grad(y.sum(), x)   a gradient in the step, of what another stage computed
    first = h[:, 0]; ...; h.mul_(2)           a view that is changed with its base

Each is known by the positions in the step that it binds together (see `replicate.probe`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils._pytree import tree_leaves

from lightning_edge.replicate.placeholder import is_fake

__all__: list[str] = []

# They update running statistics, which their schemas do not say
_NORMS = ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")


@dataclass(frozen=True)
class Change:
    """A buffer, or a tensor in an attribute, is changed in place.

    Attributes:
        position: When.
        made_in: The module whose code does it ("" is the step itself).
        plain: It depends on no parameter: whoever comes by can do it.
    """

    position: int
    made_in: str
    plain: bool


@dataclass(frozen=True)
class Slope:
    """A gradient is taken inside the step.

    Attributes:
        since: The earliest position at which one of the tensors it is taken of was made.
        position: When it is taken.
        made_in: The module whose code does it.
    """

    since: int
    position: int
    made_in: str


@dataclass(frozen=True)
class Bonds:
    """All of a step.

    Attributes:
        changes: By the name of a buffer or attribute.
        replaced: Names of those that were another tensor behind the step.
        slopes: Gradients taken inside the step.
        writes: By the memory of an intermediate result, the last position it is changed at.
    """

    changes: Mapping[str, tuple[Change, ...]] = field(default_factory=dict)
    replaced: frozenset[str] = frozenset()
    slopes: tuple[Slope, ...] = ()
    writes: Mapping[int, int] = field(default_factory=dict)

    def parted(
        self,
        cut: str,
        position: int,
        touches: Mapping[str, tuple[int, ...]],
        crossing: Iterable[tuple[int, str]],
    ) -> Iterator[str]:
        """What a cut would part, as sentences.

        Args:
            cut: The module that would begin a stage.
            position: When it is called.
            touches: The positions at which each parameter, buffer and attribute is used.
            crossing: The memory of each value that crosses, and the module that made it.
        """
        for name in sorted({*self.changes, *self.replaced}):
            used = touches.get(name, ())
            if any(u < position for u in used) and any(u >= position for u in used):
                bad = [c for c in self.changes.get(name, ()) if not _repeated(c, cut, position)]
                if bad or name in self.replaced:
                    where = f" in {bad[0].made_in!r}" if bad and bad[0].made_in else ""
                    yield (
                        f"{name!r} is changed{where} and used on both sides of it: the devices in "
                        f"front would not know of changes behind, nor the other way round. Keep "
                        f"changing and using it on one side (or pass the value on as a tensor)"
                    )
        for slope in self.slopes:
            if slope.since < position <= slope.position:
                yield (
                    f"the gradient taken in {slope.made_in or 'the step'!r} (torch.autograd.grad) "
                    f"goes through it, and each device has the graph of its own stage only. Take "
                    f"it of tensors that are made behind the cut, or use a plan of one stage, "
                    f"whose devices share the rows"
                )
        memories = list(crossing)
        for memory, made_in in dict(memories).items():
            shared = sum(memory == other for other, _ in memories) > 1
            if shared and self.writes.get(memory, -1) >= position:
                yield (
                    f"a tensor made in {made_in or 'the step'!r} and a view of it cross it one by "
                    f"one, and one of them is changed in place behind it, which would not change "
                    f"the other. Make the view behind the cut, or a copy (clone) of it"
                )


def _repeated(change: Change, cut: str, position: int) -> bool:
    """Whether a stage that begins at the cut makes the change as well, on its way there."""
    runs_there = not change.made_in or cut.startswith(f"{change.made_in}.")
    return change.plain and runs_there and change.position < position


class BondsWatch:
    """Writes down what a step changes.

    Args:
        module: Its buffers and the tensors in its attributes are watched.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.tensors = dict(_kept_tensors(module))
        self._storages = {
            tensor.untyped_storage()._cdata: name
            for name, tensor in self.tensors.items()
            if tensor.layout == torch.strided
        }
        self._changes: dict[str, list[Change]] = {}
        self._slopes: list[Slope] = []
        self._writes: dict[int, tuple[Any, int]] = {}

    def operation(
        self, func: Any, args: tuple[Any, ...], kwargs: Any, position: int, made_in: str
    ) -> None:
        """An operation is about to run."""
        changed: set[str] = set()
        for tensor in written(func, args, kwargs):
            if tensor.layout != torch.strided:
                continue
            storage = tensor.untyped_storage()
            if storage._cdata in self._storages:
                changed.add(self._storages[storage._cdata])
            elif is_fake(tensor):
                self._writes[storage._cdata] = (storage, position - 1)
        if changed:
            plain = not any(is_fake(leaf) for leaf in tree_leaves((args, kwargs)))
            for name in changed:
                self._changes.setdefault(name, []).append(Change(position - 1, made_in, plain))

    def gradient(self, inputs: Any, since: Callable[[Tensor], int], at: int, made_in: str) -> None:
        """`torch.autograd.grad` is about to run."""
        made = [
            since(leaf)
            for leaf in tree_leaves(inputs)
            if isinstance(leaf, Tensor) and not is_functorch_wrapped_tensor(leaf)
        ]
        if made:
            self._slopes.append(Slope(min(made) - 1, at - 1, made_in))

    def end_at(self, position: int) -> None:
        """What was written down of later positions was done at this one."""
        for name, changes in self._changes.items():
            last = position - 1
            self._changes[name] = [replace(c, position=min(c.position, last)) for c in changes]
        for memory, (storage, at) in self._writes.items():
            self._writes[memory] = (storage, min(at, position - 1))

    def found(self) -> Bonds:
        """All there was; called behind the step."""
        now = dict(_kept_tensors(self._module, fakes=True))
        replaced = {name for name, tensor in self.tensors.items() if now.get(name) is not tensor}
        changes = {name: tuple(all_of_it) for name, all_of_it in self._changes.items()}
        writes = {memory: position for memory, (_, position) in self._writes.items()}
        return Bonds(changes, frozenset(replaced), tuple(self._slopes), writes)


def _kept_tensors(module: nn.Module, fakes: bool = False) -> Iterator[tuple[str, Tensor]]:
    for prefix, child in module.named_modules():
        for table in (child._buffers, child.__dict__):
            for key, value in table.items():
                if isinstance(value, Tensor) and (fakes or not is_fake(value)):
                    yield (f"{prefix}.{key}" if prefix else key), value


def written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that an operation changes."""
    found: list[Any] = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += tree_leaves(args[i] if i < len(args) else kwargs.get(argument.name))
    if func.overloadpacket.__name__ in _NORMS and _trains(func, args, kwargs):
        found += args[3:5]
    return [leaf for leaf in found if isinstance(leaf, Tensor)]


def _trains(func: Any, args: Any, kwargs: Any) -> bool:
    names = [argument.name for argument in func._schema.arguments]
    place = names.index("training")
    return bool(args[place] if place < len(args) else kwargs.get("training"))
