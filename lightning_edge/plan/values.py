"""The single values of a plan: what each may be, and what to say if it is not.

Every function takes any object and returns the value as the plan keeps it, or a `Problem`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import TypeGuard

from lightning_edge.plan.problems import Path, Problem, did_you_mean, shown

__all__: list[str] = []

PARALLELISMS = ("data", "tensor", "sequence")
MOST_MICRO_BATCHES = 100_000
"""More than any batch has rows; a larger number is a slip and would only fill the memory."""
_MOST_RANK = 2**31 - 1


def is_list(value: object) -> TypeGuard[Sequence[object]]:
    """Tell whether a value is a list of things (a text is not)."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def device(path: Path, value: object) -> int | str | Problem:
    """Return a rank as an int (also from a text of digits, as JSON has no other keys) or a name."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 10:
        value = int(value)
    rank = _whole(value)
    if rank is not None and 0 <= rank <= _MOST_RANK:
        return rank
    if isinstance(value, str) and _is_name(value):
        return value
    hint = "; YAML reads on, off, yes and no as such: quote them" if isinstance(value, bool) else ""
    text = f"{shown(value)} is not a device: write a rank (0, 1, ...) or a device name{hint}"
    return Problem(path, text)


def share(path: Path, value: object) -> float | Problem:
    """Return a share, a number from 0 to 1."""
    number = _real(value)
    if number is not None and 0 <= number <= 1 + 1e-6:
        return number + 0.0  # adding turns -0.0 into 0.0
    hint = ""
    if isinstance(value, str):
        hint = _as_number(value)
    elif number is not None and 1 < number <= 100:
        hint = f"; for {_decimal(number)} % write {_decimal(number / 100)}"
    return Problem(path, f"a share is a number from 0 to 1, found {shown(value)}{hint}")


def count(path: Path, value: object, what: str) -> int | None | Problem:
    """Return a number of micro-batches, or `None` for "auto"."""
    if isinstance(value, str) and value == "auto":
        return None
    number = _whole(value)
    if number is not None and 1 <= number <= MOST_MICRO_BATCHES:
        return number
    hint = did_you_mean(value, ["auto"])
    if isinstance(value, str):
        hint = hint or _as_number(value)
    limits = f'a whole number from 1 to {MOST_MICRO_BATCHES} or "auto"'
    return Problem(path, f"{what} is {limits}, found {shown(value)}{hint}")


def parallelism(path: Path, value: object) -> str | Problem:
    """Return how the devices of a stage work together."""
    if isinstance(value, str) and value in PARALLELISMS:
        return value
    known = ", ".join(PARALLELISMS)
    hint = did_you_mean(value, PARALLELISMS)
    return Problem(path, f"parallelism is one of {known}, found {shown(value)}{hint}")


def flag(path: Path, value: object) -> bool | Problem:
    """Return true or false."""
    if isinstance(value, bool):
        return value
    return Problem(path, f"must be true or false, found {shown(value)}")


def module_name(path: Path, value: object) -> str | None | Problem:
    """Return the name of the sub-module at which a stage starts, or `None`."""
    if value is None:
        return None
    if isinstance(value, str) and _is_name(value):
        return value
    return Problem(path, f'must name a sub-module such as "model.blocks.5", found {shown(value)}')


def power_mode(path: Path, value: object) -> str | Problem:
    """Return the name of a power mode; boards number theirs, so a whole number is a name too."""
    number = _whole(value)
    if number is not None and 0 <= number < 1000:
        return str(number)
    if isinstance(value, str) and _is_name(value):
        return value
    return Problem(path, f'a power mode is a name such as "15W", found {shown(value)}')


def tidy(shares: Sequence[float]) -> list[float]:
    """Return the shares scaled and rounded so that they add up to 1 and can be written down."""
    total = sum(shares)
    scaled = [value / total for value in shares]
    digits = 4
    units = [math.floor(value * 10**digits) for value in scaled]
    order = sorted(range(len(shares)), key=lambda i: units[i] - scaled[i] * 10**digits)
    for i in order[: 10**digits - sum(units)]:
        units[i] += 1
    return [value / 10**digits for value in units]


def _whole(value: object) -> int | None:
    """Return a whole number as an int; `True` is none."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        return None
    return int(value)


def _real(value: object) -> float | None:
    """Return a real number as a float, also infinity and nan; `True` is none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _is_name(text: str) -> bool:
    """Tell whether a text can name something in tables and messages."""
    return text.strip() == text != "" and text.isprintable()


def _as_number(text: str) -> str:
    """Return `; write 0.001` for a text such as "1e-3", which YAML does not take for a number."""
    try:
        number = float(text)
    except ValueError:
        return ""
    if not math.isfinite(number) or abs(number) > MOST_MICRO_BATCHES:
        return ""
    return f"; write {_decimal(number)}"


def _decimal(number: float) -> str:
    text = f"{number:.6f}".rstrip("0").rstrip(".")
    return text or "0"
