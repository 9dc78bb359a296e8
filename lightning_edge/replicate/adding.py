"""Does a value add up over rows, or is it a mean? Told from a step's operations, without data.

Micro-batches are put together by it: means weighted by rows, sums added. How a value would grow
with the rows of a batch is a power of their number, followed operation by operation:

    logits   nll_loss(reduction=2)   / x.shape[0]     a loss      rows ** 1 (sum), then rows ** 0
    per row  sum()                   + penalty        a loss      {1}, then {0, 1}: neither
    per row  sum()                   / mask.sum()     a loss      {1}, then {0}, but by a weight

A step is tried on two numbers of rows, so that dimensions and numbers that grow with them show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__: list[str] = []

Kind = Literal["mean", "weighed", "sum", "mixed", "unknown"]
Powers: TypeAlias = "frozenset[float] | None"
"""The powers of the number of rows among a value's terms; None if they are not known."""

CONSTANT: Powers = frozenset({0.0})
SUM: Powers = frozenset({1.0})
NOTHING: Powers = frozenset()  # a zero that terms are added to
SMALL = 1e-3  # numbers below are added to keep a division from failing


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# the first argument in another shape, a part of it, or a value of it
_SAME = _names(
    "mean amax amin max min median clone detach alias _to_copy lift_fresh view _unsafe_view reshape"
    " _reshape_alias expand as_strided select slice squeeze unsqueeze permute transpose t index"
    " index_select gather split split_with_sizes unbind diagonal neg abs relu clamp clamp_min"
    " clamp_max nan_to_num any all"
)
_TERMS = _names("add sub rsub where maximum minimum stack cat lerp masked_fill")
_ACROSS = _names("_softmax _log_softmax logsumexp cumsum sort topk")
_ZEROS = _names("zeros zeros_like new_zeros zero")
_KNOWN = _SAME | _TERMS | _names("sum nansum mul div mm bmm dot vdot mv copy")


@dataclass(frozen=True)
class Operand:
    """A tensor of an operation.

    Attributes:
        serial: Tells it from others of this trial.
        shape: Its sizes.
        value: Of a real tensor with one entry.
        strange: It came from nowhere, without data.
    """

    serial: int
    shape: tuple[int, ...]
    value: float | None = None
    strange: bool = False


@dataclass(frozen=True)
class Operation:
    """What was done to what: tensors are `Operand`s, other arguments as they are.

    Attributes:
        name: Of the operation, without what tells its variants apart.
        arguments: By their names.
        results: The tensors it gave.
        number: The number it gave instead.
        inside: The function that the step called for it.
    """

    name: str
    arguments: Mapping[str, Any]
    results: tuple[Operand, ...]
    number: float | None = None
    inside: str = ""


@dataclass
class Operations:
    """All operations of one trial of a step, in order.

    Attributes:
        known: Whether a tensor that no operation made is a parameter or a buffer.
        is_fake: Whether a tensor has no data.
        done: The operations.
        scalars: The results with one entry.
        inside: The function that is running.
        logged: What was logged: numbers or `Operand`s by name.
    """

    known: Callable[[Tensor], bool]
    is_fake: Callable[[object], bool]
    done: list[Operation] = field(default_factory=list)
    scalars: list[Tensor] = field(default_factory=list)
    logged: dict[str, Any] = field(default_factory=dict)
    inside: str = ""

    def __post_init__(self) -> None:
        self._serials = WeakTensorKeyDictionary()
        self._count = 0

    def note(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        """Write one down."""
        names = [argument.name for argument in func._schema.arguments]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        arguments = {name: self._described(value) for name, value in given.items()}
        results = out if isinstance(out, (list, tuple)) else [out]
        name = func._schema.name.partition("::")[2]
        in_place = list(args[:1]) if name.endswith("_") else []  # placeholders come as new ones
        made = [result for result in [*results, *in_place] if isinstance(result, Tensor)]
        operands = tuple(self._operand(result, made=True) for result in made)
        self.scalars += [result for result in made if result.ndim == 0]
        number = out if isinstance(out, (int, float)) else None
        self.done.append(Operation(name.rstrip("_"), arguments, operands, number, self.inside))

    def log(self, values: Mapping[str, Any]) -> None:
        """Write down what is logged."""
        for name, value in values.items():
            if isinstance(value, (Tensor, int, float)):
                self.logged[name] = self._described(value)

    def _described(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._operand(value)
        if isinstance(value, (list, tuple)):
            return [self._described(item) for item in value]
        return value

    def _operand(self, tensor: Tensor, made: bool = False) -> Operand:
        shape, fake = tuple(tensor.shape), self.is_fake(tensor)
        serial: int | None = self._serials.get(tensor)  # type: ignore[no-untyped-call]
        new = serial is None
        if serial is None:
            self._count += 1
            serial = self._serials[tensor] = self._count
        if made or not new:
            return Operand(serial, shape)
        one = not fake and tensor.numel() == 1 and not tensor.is_complex()
        value = float(tensor.detach()) if one else None
        return Operand(serial, shape, value, fake and not self.known(tensor))

    def of(self, value: Any) -> Any:
        """A result of the step as `Growth` wants it: tensors as their operands."""
        return self._operand(value) if isinstance(value, Tensor) else value

    def last_loss(self) -> Tensor | None:
        """What a step that failed behind the model has probably computed as its loss."""
        losses = [s for s in self.scalars if s.requires_grad]
        return losses[-1] if losses else None


class Growth:
    """How the values of a step grow with its rows.

    Args:
        small: The step's operations on fewer rows.
        larger: The same on more.
        rows: The two numbers of rows.
    """

    def __init__(self, small: Operations, larger: Operations, rows: tuple[int, int]) -> None:
        self._ratio = rows[1] / rows[0]
        self._powers: dict[int, Powers] = {}
        self._numbers: dict[tuple[float, float], Powers] = {}  # of tensors, asked for by the step
        self._weighed: set[int] = set()  # means by something counted in the data
        self._small, self._larger = small, larger
        self._alike = [o.name for o in small.done] == [o.name for o in larger.done]
        if self._alike:
            for one, other in zip(small.done, larger.done, strict=True):
                self._follow(one, other)

    def kind(self, small: Any, larger: Any) -> Kind:
        """What a value is, given as it is in both trials: operands or numbers."""
        if not self._alike:
            return "unknown"
        powers = self._of(small, larger)
        if powers is None or not powers <= {0.0, 1.0}:
            return "unknown"
        if powers == SUM:
            return "sum"
        weighed = isinstance(small, Operand) and small.serial in self._weighed
        return "mixed" if len(powers) > 1 else "weighed" if weighed else "mean"

    def adding(self, small: Mapping[str, Any], larger: Mapping[str, Any]) -> frozenset[str]:
        """The names of values that add up over rows, given as they are in both trials."""
        common = small.keys() & larger.keys()
        return frozenset(name for name in common if self.kind(small[name], larger[name]) == "sum")

    def logs(self) -> frozenset[str]:
        """The names of logged values that add up over rows."""
        return self.adding(self._small.logged, self._larger.logged)

    def _of(self, small: Any, larger: Any) -> Powers:
        if isinstance(small, Operand) and isinstance(larger, Operand):
            if small.serial in self._powers:
                return self._powers[small.serial]
            if small.value is not None and larger.value is not None:
                return self._number(small.value, larger.value)
            rowless = small.shape == larger.shape
            return None if small.strange and rowless else CONSTANT
        if isinstance(small, (int, float)) and isinstance(larger, (int, float)):
            return self._number(small, larger)
        return CONSTANT

    def _number(self, small: float, larger: float) -> Powers:
        if (small, larger) in self._numbers:
            return self._numbers[small, larger]
        if small == larger:
            return NOTHING if abs(small) < SMALL else CONSTANT
        if math.isclose(small, larger * self._ratio):
            return frozenset({-1.0})
        counted = float(small).is_integer() and float(larger).is_integer() and 0 < small < larger
        rows = math.isclose(larger, small * self._ratio)
        return SUM if counted or rows else None  # counted in them, such as tokens

    def _follow(self, one: Operation, other: Operation) -> None:
        if one.number is not None and other.number is not None:
            counted = self._of(one.arguments["self"], other.arguments["self"])
            if counted == SUM and one.number > 1:
                self._numbers[one.number, other.number] = counted
            return
        powers = self._result(one, other)
        if self._weighs(one, other) or any(s.serial in self._weighed for s in _operands(one)):
            self._weighed.update(result.serial for result in one.results)
        for small, larger in zip(one.results, other.results, strict=False):
            vanished = self._has_rows(one, other) and not _grown(small, larger)
            guess = vanished and one.name not in _KNOWN and "reduction" not in one.arguments
            self._powers[small.serial] = None if guess else powers

    def _weighs(self, one: Operation, other: Operation) -> bool:
        """Whether an operation divides by what is counted in the data, such as a mask's sum."""
        a, b = one.arguments, other.arguments
        if one.name.startswith("nll_loss"):
            return a.get("reduction") == 1 and isinstance(a.get("weight"), Operand)
        if one.inside == "cross_entropy":  # smoothed, it divides by the labels that are not ignored
            return False
        divisor = a.get("self") if one.name == "reciprocal" else a.get("other")
        if one.name not in ("div", "reciprocal"):
            return False
        if isinstance(divisor, Operand):
            return divisor.value is None and self._powers.get(divisor.serial) == SUM
        return (divisor, b.get("other")) in self._numbers

    def _has_rows(self, one: Operation, other: Operation) -> bool:
        return any(_grown(*pair) for pair in _pairs(one, other))

    def _result(self, one: Operation, other: Operation) -> Powers:
        name, a, b = one.name, one.arguments, other.arguments
        if name in _ZEROS:
            return NOTHING
        inputs = [self._of(*pair) for pair in _pairs(one, other)]
        if any(powers is None for powers in inputs):
            return None
        first = inputs[0] if inputs else CONSTANT
        if "reduction" in a:
            adds = a["reduction"] == 2 and self._has_rows(one, other)
            return _times(first, 1.0 if adds else 0.0)
        if name in ("sum", "nansum"):
            return _times(first, len(_reduced(a) & _grown(a["self"], b["self"])))
        if name == "copy":
            return self._of(a["src"], b["src"])
        if name in _SAME:
            return first
        if name in ("mul", "div"):
            return self._product(first, self._of(a["other"], b["other"]), name == "div")
        if name in _TERMS:
            number = [self._of(a["other"], b["other"])] if name in ("add", "sub", "rsub") else []
            return _union([*inputs, *number])
        if name in ("mm", "bmm", "dot", "vdot", "mv"):
            left, right = _pairs(one, other)[:2]
            contracted = left[0].shape != () and (len(left[0].shape) - 1) in _grown(*left)
            product = self._product(inputs[0], inputs[1], False)
            return _times(product, 1.0 if contracted else 0.0)
        if name == "reciprocal" and first is not None:
            return frozenset(-power for power in first)
        if name == "pow" and isinstance(a.get("exponent"), (int, float)):
            return None if first is None else frozenset(p * a["exponent"] for p in first)
        if name in _ACROSS and _reduced(a) & _grown(a["self"], b["self"]):
            return None
        return CONSTANT if all(p is not None and p <= {0.0} for p in inputs) else None

    def _product(self, left: Powers, right: Powers, divide: bool) -> Powers:
        if left is None or right is None or (divide and len(right) > 1):
            return None
        sign = -1.0 if divide else 1.0
        return frozenset(p + sign * q for p in left for q in (right or {0.0}))


def _pairs(one: Operation, other: Operation) -> list[tuple[Operand, Operand]]:
    return list(zip(_operands(one), _operands(other), strict=False))


def _operands(operation: Operation) -> Iterator[Operand]:
    for name, value in operation.arguments.items():
        if name in ("condition", "mask"):
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Operand):
                yield item


def _grown(small: Operand, larger: Operand) -> frozenset[int]:
    """The dimensions that have rows."""
    sizes = enumerate(zip(small.shape, larger.shape, strict=False))
    return frozenset(place for place, (one, other) in sizes if one != other)


def _reduced(arguments: Mapping[str, Any]) -> frozenset[int]:
    """The dimensions an operation goes over; all if it does not say."""
    rank, dims = len(arguments["self"].shape), arguments.get("dim")
    if dims is None or dims == []:
        return frozenset(range(rank))
    return frozenset(dim % max(rank, 1) for dim in (dims if isinstance(dims, list) else [dims]))


def _times(powers: Powers, more: float) -> Powers:
    return None if powers is None else frozenset(power + more for power in powers)


def _union(parts: Sequence[Powers]) -> Powers:
    known = [part for part in parts if part is not None]
    return frozenset().union(*known) if len(known) == len(parts) else None
