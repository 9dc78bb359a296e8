"""How many bytes each device needs at its fullest moment.

state        parameters + gradients + optimizer state of its blocks
kept         activations x rows x micro-batches in flight (inputs of blocks if checkpointed)
passing      of the block that computes: workspace (and its activations if checkpointed)
messages     windows of posted receives, one message on its way out, rows of two batches
holes        what the device's allocator cannot use again: some, and more with what a micro-batch
             keeps; the first micro-batch leaves none, the second half as many as many do
"""

from __future__ import annotations

from lightning_edge.plan.assignment import Assignment, Part
from lightning_edge.plan.costs import Costs
from lightning_edge.plan.participants import Device

__all__: list[str] = []


def peak_bytes(assignment: Assignment, index: int, costs: Costs) -> list[float]:
    """Return the peak of each device of a stage."""
    parts = assignment.parts
    part = parts[index]
    state = costs.state_bytes(part.first, part.stop)
    kept = costs.kept_bytes(part.first, part.stop, part.checkpoint)
    per_row = part.depth * kept
    per_row += costs.passing_bytes(part.first, part.stop, part.checkpoint)
    if index:
        per_row += _boundary(costs, part.first, parts[index - 1].depth, ahead=True)
    if index + 1 < len(parts):
        per_row += _boundary(costs, part.stop, part.depth, ahead=False)
    batch = 2 * costs.profile.model.batch_bytes
    number = assignment.micro_batches
    found = []
    for i, rows in enumerate(part.rows):
        device, most = costs.devices[part.ranks[i]], most_rows(part, i, number)
        holes = device.holes_bytes + most * holes_per_row(device, kept, number)
        found.append(state + per_row * most + batch * rows + holes)
    return found


def holes_per_row(device: Device, kept_bytes: float, micro_batches: int) -> float:
    """Bytes of holes per row of a micro-batch, for what the device's blocks keep per row."""
    return device.holes_ratio * kept_bytes * (1 - 1 / micro_batches)


def most_rows(part: Part, i: int, micro_batches: int) -> int:
    """The most rows that a device has of one micro-batch: its due number, rounded up."""
    return -(-part.rows[i] // micro_batches)


def _boundary(costs: Costs, cut: int, depth: int, *, ahead: bool) -> float:
    """Per row, messages over a cut, for the stage behind it (`ahead`) or in front of it.

    The stream in from the other side has a window of `depth + 1` posted buffers.
    """
    forward, backward = costs.crossing_bytes(cut)
    incoming, outgoing = (forward, backward) if ahead else (backward, forward)
    return (depth + 1) * incoming + outgoing
