"""The model as planning sees it: blocks in a row, what each costs, and where it can be cut.

block 0          block 1          block 2
[ embedding ] -> [  layer 0  ] -> [ layer 1, head ]
^                ^
forward_bytes and backward_bytes per row cross here, the cut in front of a block
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lightning_edge.plan.frozen import FrozenMap
from lightning_edge.plan.participants import Known

__all__: list[str] = []


@dataclass(frozen=True)
class Timing(Known):
    """Seconds of one block on one kind of device, at several numbers of rows.

    Attributes:
        rows: Numbers of rows, ascending.
        forward_s: Seconds of a forward with so many rows; likewise `backward_s`.
        backward_s: Seconds of a backward. Recomputing a checkpointed forward comes on top.
        step_s: Seconds of the optimizer's step for the block's parameters.
    """

    rows: tuple[int, ...]
    forward_s: tuple[float, ...]
    backward_s: tuple[float, ...]
    step_s: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rows", "forward_s", "backward_s"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def forward(self, rows: int) -> float:
        """Seconds of a forward of `rows` rows."""
        return interpolate(self.rows, self.forward_s, rows)

    def backward(self, rows: int) -> float:
        """Seconds of a backward of `rows` rows."""
        return interpolate(self.rows, self.backward_s, rows)


@dataclass(frozen=True)
class Block(Known):
    """A part of the model that is never divided.

    Attributes:
        name: Of the sub-module at which it begins; of the first block any.
        timings: A device's or mode's `timing` key -> its timings.
        parameter_bytes: Of the parameters first used here, without those in `Model.shared`.
        gradient_bytes: Of their gradients (0 if frozen); as many as parameters if not said.
        optimizer_bytes: Of the optimizer's state; twice the gradients (Adam) if not said.
        activation_bytes: Per row, what a forward keeps until its backward.
        checkpoint_bytes: The same with activation checkpointing: the block's input.
        workspace_bytes: Per row, what is needed only while the block computes.
        forward_bytes: Per row, what crosses the cut in front of this block forwards.
        backward_bytes: Per row, what crosses it backwards; as many if not said.
        cut: Whether a stage may begin here. (The first block always begins one.)
    """

    name: str
    timings: Mapping[str, Timing] = field(default_factory=FrozenMap)
    parameter_bytes: int = 0
    gradient_bytes: int = -1
    optimizer_bytes: int = -1
    activation_bytes: float = 0.0
    checkpoint_bytes: float = -1.0
    workspace_bytes: float = 0.0
    forward_bytes: float = 0.0
    backward_bytes: float = -1.0
    cut: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "timings", FrozenMap(self.timings))
        defaults = {
            "gradient_bytes": self.parameter_bytes,
            "optimizer_bytes": 2 * max(self.gradient_bytes, 0),
            "checkpoint_bytes": min(self.forward_bytes, self.activation_bytes),
            "backward_bytes": self.forward_bytes,
        }
        if self.gradient_bytes < 0:
            defaults["optimizer_bytes"] = 2 * self.parameter_bytes
        for name, value in defaults.items():
            if getattr(self, name) == -1:
                object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Shared(Known):
    """Parameters that several blocks use, such as tied embeddings.

    Every stage with one of the blocks holds them, once; their gradients are summed over all of
    these stages.

    Attributes:
        name: Of the parameter, or of the first of several.
        blocks: Names of the blocks that use it, at least two.
        parameter_bytes: As in `Block`, with the same defaults below.
        gradient_bytes: Of the gradients.
        optimizer_bytes: Of the optimizer's state.
    """

    name: str
    blocks: tuple[str, ...]
    parameter_bytes: int
    gradient_bytes: int = -1
    optimizer_bytes: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "blocks", tuple(self.blocks))
        if self.gradient_bytes == -1:
            object.__setattr__(self, "gradient_bytes", self.parameter_bytes)
        if self.optimizer_bytes == -1:
            object.__setattr__(self, "optimizer_bytes", 2 * self.gradient_bytes)


@dataclass(frozen=True)
class Model(Known):
    """What is to be trained.

    Attributes:
        name: Of the module's class, or any.
        blocks: In the order of execution, at least one.
        shared: Parameters used by several blocks.
        batch_bytes: Per row of the batch, what its owner sends to each device of the plan.
        least_rows: Fewest rows of a micro-batch that a device should compute together: more than
            one for models that normalise over them.
        signature: Tells one model from another; "" if unknown.
    """

    name: str
    blocks: tuple[Block, ...]
    shared: tuple[Shared, ...] = ()
    batch_bytes: float = 0.0
    least_rows: int = 1
    signature: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "blocks", tuple(self.blocks))
        object.__setattr__(self, "shared", tuple(self.shared))

    @property
    def cuts(self) -> tuple[str, ...]:
        """Names of the blocks, after the first, at which a stage may begin."""
        return tuple(block.name for block in self.blocks[1:] if block.cut)

    def index(self, name: str) -> int:
        """The index of the block of that name.

        Raises:
            KeyError: If there is none.
        """
        for index, block in enumerate(self.blocks):
            if block.name == name:
                return index
        raise KeyError(name)


def interpolate(rows: Sequence[int], seconds: Sequence[float], wanted: int) -> float:
    """Return the seconds of `wanted` rows from a table of at least one entry.

    Between two entries, and beyond the last, along the line through the nearest two; below the
    first, along that line too, but between the first entry and its proportional part (a small
    batch costs less than the first entry, and not less than its rows' worth). No rows cost nothing.
    """
    if wanted <= 0:
        return 0.0
    if len(rows) == 1:
        return seconds[0] * wanted / rows[0]
    upper = min(max(bisect_left(rows, wanted), 1), len(rows) - 1)
    low, high = rows[upper - 1], rows[upper]
    slope = (seconds[upper] - seconds[upper - 1]) / (high - low)
    value = seconds[upper - 1] + slope * (wanted - low)
    if wanted < rows[0]:
        return min(max(value, seconds[0] * wanted / rows[0]), seconds[0])
    # A table that falls at its end (noise) must not lead below its last entry.
    return max(value, seconds[-1]) if wanted > rows[-1] else value
