"""What happens where tensors of this device meet placeholders of what others hold.

Inside a step, in front of this device's stage, everything that touches a placeholder is a
placeholder too. Between steps user code and callbacks walk over all parameters, and there:

    _foreach_lerp_([real, fake, real], ...)   the real ones are done, the fake ones are shapes
    real.copy_(fake)                          would silently change nothing: refused
    float(fake)                               has no number: refused
    torch.save(module.state_dict(), path)     would write shapes without values: refused
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensor,
    FakeTensorMode,
)
from torch.nn import Parameter

from lightning_edge.errors import UnsupportedError

__all__: list[str] = []


class PlaceholderMode(FakeTensorMode):  # type: ignore[no-untyped-call]
    """The mode that all placeholders of one module belong to; real tensors may mix in.

    Attributes:
        lenient: Real tensors may be changed by placeholders, which does nothing to them: so it is
            in a step in front of this device's stage.
    """

    def __init__(self, lenient: bool = False) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.lenient = lenient

    def __deepcopy__(self, memo: Any) -> PlaceholderMode:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        # part of every placeholder that is pickled; our own checkpoints leave it out
        raise UnsupportedError(
            "parameters that another device holds were to be saved or pickled (torch.save of a"
            " state_dict, or of the module), and their values are not here. Write the whole model"
            " with trainer.save_checkpoint(path, weights_only=True), called on all devices (not"
            " under `if trainer.is_global_zero`); or save it once trainer.fit has returned, when"
            " every device has the whole module again."
        )

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operation that a placeholder takes part in."""
        kwargs = kwargs or {}
        if func is torch.ops.aten.equal.default and _are_parameters(args):
            return args[0] is args[1]  # asked to see whether an optimizer has it already
        lists = _list_arguments(func)
        if lists and _is_mixed(args, lists):
            return _one_kind_at_a_time(func, args, kwargs, lists)
        if not self.lenient:
            _refuse_lost_changes(func, args, kwargs)
        try:
            return super().__torch_dispatch__(func, types, args, kwargs)
        except DataDependentOutputException as error:
            raise UnsupportedError(
                f"a number was asked for ({func}) that depends on a parameter which another device"
                f" holds. Ask for it in the step, where each part of the model is run, or of"
                f" gradients that are there: `for p in self.parameters(): if p.grad is not None`."
            ) from error


def _are_parameters(args: Sequence[Any]) -> bool:
    return all(isinstance(argument, Parameter) for argument in args)


@cache
def _list_arguments(func: Any) -> tuple[int, ...]:
    """Positions of the tensor lists of an element-wise operation on lists."""
    if not func._schema.name.startswith("aten::_foreach"):
        return ()
    return tuple(
        place
        for place, argument in enumerate(func._schema.arguments)
        if str(argument.type).startswith("List[Tensor]")
    )


def _is_mixed(args: Sequence[Any], lists: tuple[int, ...]) -> bool:
    kinds = {isinstance(t, FakeTensor) for place in lists if place < len(args) for t in args[place]}
    return len(kinds) > 1


def _one_kind_at_a_time(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], lists: tuple[int, ...]
) -> Any:
    """Rows of the lists that are real, and then the others; results in the rows' order."""
    given = [place for place in lists if place < len(args)]
    rows = list(zip(*(args[place] for place in given), strict=True))
    results: list[Any] = [None] * len(rows)
    by_kind: dict[bool, list[int]] = {}
    for number, row in enumerate(rows):
        by_kind.setdefault(any(isinstance(t, FakeTensor) for t in row), []).append(number)
    for numbers in by_kind.values():
        part = list(args)
        for column, place in enumerate(given):
            part[place] = [rows[number][column] for number in numbers]
        for place, value in enumerate(args):  # lists of numbers, one per tensor
            if place not in given and isinstance(value, (list, tuple)) and len(value) == len(rows):
                part[place] = [value[number] for number in numbers]
        made = func(*part, **kwargs)
        for number, result in zip(numbers, made or [None] * len(numbers), strict=True):
            results[number] = result
    return None if any(result is None for result in results) else results


@cache
def _written(func: Any) -> tuple[int | str, ...]:
    """The arguments that an operation changes: places, and names of those given by name only."""
    return tuple(
        argument.name if argument.kwarg_only else place
        for place, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def _refuse_lost_changes(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    for where in _written(func):
        if isinstance(where, str):
            target = kwargs.get(where)
        else:
            target = args[where] if where < len(args) else None
        if isinstance(target, Tensor) and not isinstance(target, FakeTensor):
            raise UnsupportedError(
                f"{func} would change a tensor of shape {list(target.shape)} by the value of a"
                f" parameter that another device holds, which is not here. Keep copies of"
                f" parameters as modules in an attribute of a Callback (as WeightAveraging does)"
                f" or parameter by parameter, so that each device has those that it holds."
            )
