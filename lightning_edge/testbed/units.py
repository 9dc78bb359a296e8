"""Quantities as people write them (`60%`, `2G`, `100mbit`, `5ms`) to plain numbers and back."""

from __future__ import annotations

import math
import re

__all__: list[str] = []

# As in container tools and in tc: memory counts in powers of 1024, rates in powers of 1000.
_MEMORY = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_MBIT = {"kbit": 1e-3, "mbit": 1.0, "gbit": 1e3}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}


def fraction(text: object) -> float:
    """Read `60%` or `0.6`, both as 0.6."""
    number, unit = _split(text, "60% or 0.6")
    if unit not in ("", "%"):
        raise ValueError(f"{text!r} is not a fraction; write 60% or 0.6")
    return number / 100 if unit else number


def memory_bytes(text: object) -> int:
    """Read `2G`, `512M` or `1.5GiB` (powers of 1024) as bytes."""
    number, unit = _split(text, "2G or 512M")
    factor = _MEMORY.get(re.sub(r"i?b$", "", unit))
    if factor is None:
        raise ValueError(f"{text!r} is not an amount of memory; write 2G or 512M")
    return round(number * factor)


def rate_mbit(text: object) -> float:
    """Read `100mbit`, `1gbit` or `800kbit` as megabits per second."""
    number, unit = _split(text, "100mbit or 1gbit")
    factor = _MBIT.get(unit)
    if factor is None:
        raise ValueError(f"{text!r} is not a rate; write 100mbit or 1gbit")
    return number * factor


def seconds(text: object) -> float:
    """Read `5ms`, `2s`, `1min` or a bare number of seconds."""
    number, unit = _split(text, "5ms or 2s")
    factor = _SECONDS.get(unit or "s")
    if factor is None:
        raise ValueError(f"{text!r} is not a time; write 5ms or 2s")
    return number * factor


def watts(text: object) -> float:
    """Read `7.5W` or a bare number of watts."""
    number, unit = _split(text, "7.5W")
    if unit not in ("", "w"):
        raise ValueError(f"{text!r} is not a power; write 7.5W")
    return number


def show_bytes(count: float) -> str:
    """Write bytes with three digits, in powers of 1024: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def show_rate(mbit: float) -> str:
    """Write a rate as tc reads it, without loss of precision: `2500kbit`."""
    return f"{max(1, round(mbit * 1e6))}bit"


def _split(text: object, example: str) -> tuple[float, str]:
    found = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?\d+)?)\s*([a-z%]*)\s*", str(text).lower())
    try:
        number = float(found[1]) if found else math.nan
    except ValueError:
        number = math.nan
    if found is None or not math.isfinite(number):
        raise ValueError(f"{text!r} is not a quantity; write {example}")
    return number, found[2]
