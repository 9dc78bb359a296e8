"""What an error of a step on placeholders says to the user: where, and what to do."""

from __future__ import annotations

import traceback
from pathlib import Path

from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)

__all__: list[str] = []


def line_of(error: BaseException) -> str:
    """The user's line an error comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not {"torch", "lightning_edge"} & set(Path(f.filename).parts)]
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}, {frame.name}: {frame.line}"


def told(error: Exception) -> str:
    """A step's failure on placeholders, in a sentence."""
    if isinstance(error.__cause__, DataDependentOutputException):
        return (
            f"a number that depends on parameters is asked for (.item(), float(x), if x) in "
            f"{line_of(error)}. Keep it a tensor, or ask for it inside a module that can be run by "
            f"itself"
        )
    if isinstance(error, DynamicOutputShapeException):
        return (
            f"how many entries there are depends on data (nonzero, x[mask]) in {line_of(error)}. "
            f"Use torch.where, or do it inside a module that can be run by itself"
        )
    return f"{type(error).__name__}: {error}"
