"""Where a model can be cut, what crosses there, which stage uses what: functions of a `Probe`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from torch import nn

from lightning_edge.errors import SplitError
from lightning_edge.replicate.probe import Leaf, Probe, Value

__all__ = ["Cut", "cuts", "owners"]


@dataclass(frozen=True)
class Cut:
    """A module a stage may begin with.

    Attributes:
        name: Its name, as in `module.named_modules()`.
        position: When it is called (see `replicate.probe`).
        leaves: The arguments that have to be sent to a stage that begins here.
        parameters: Numbers of parameter entries first used from here up to the next cut.
    """

    name: str
    position: int
    leaves: tuple[Leaf, ...]
    parameters: int = 0


def crossing(probe: Probe, name: str) -> tuple[Leaf, ...]:
    """The tensors among a module's arguments that depend on parameters."""
    return tuple(leaf for leaf in probe.once()[name].leaves if leaf.fake)


def beside(probe: Probe, name: str) -> tuple[Value, ...]:
    """Values from in front of a cut, used behind it, that are not its module's arguments."""
    position = probe.once()[name].position
    return tuple(
        value
        for value in probe.values
        if value.created < position <= value.uses[-1][0] and name not in value.passed_to
    )


def reused(probe: Probe, name: str) -> bool:
    """Whether code behind a cut uses an argument of the cut module again by itself."""
    position = probe.once()[name].position
    return any(
        used >= position and where != name and not where.startswith(f"{name}.")
        for value in probe.values
        if name in value.passed_to
        for used, where in value.uses
    )


def cuts(probe: Probe, module: nn.Module, blocks_only: bool = False) -> tuple[Cut, ...]:
    """All legal cut points in the order they run.

    Args:
        probe: Of the step to be cut.
        module: The probed module.
        blocks_only: Only children of `nn.ModuleList` and `nn.Sequential`, the places people cut at.
    """
    blocks = {
        f"{name}.{child}" if name else child
        for name, parent in module.named_modules()
        if isinstance(parent, (nn.ModuleList, nn.Sequential))
        for child, _ in parent.named_children()
    }
    legal = [
        call
        for name, call in probe.once().items()
        if (not blocks_only or name in blocks)
        and any(leaf.fake for leaf in call.leaves)
        and not beside(probe, name)
    ]
    # of modules entered with the same call (a container and its first child) the outermost comes
    # first: keep all,
    # positions differ and either is legal
    positions = [call.position for call in legal]
    sizes = _first_used(probe, module)
    weights = [0] * (len(legal) + 1)
    for position, size in sizes:
        weights[bisect_right(positions, position)] += size
    return tuple(
        Cut(
            call.name,
            call.position,
            tuple(leaf for leaf in call.leaves if leaf.fake),
            weights[i + 1],
        )
        for i, call in enumerate(legal)
    )


def _first_used(probe: Probe, module: nn.Module) -> list[tuple[int, int]]:
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    return [(used[0], sizes[name]) for name, used in probe.touches.items() if name in sizes]


def parameters_in_front(probe: Probe, module: nn.Module, legal: Sequence[Cut]) -> int:
    """Parameter entries first used in front of the first cut."""
    first = legal[0].position if legal else len(probe.calls)
    return sum(size for position, size in _first_used(probe, module) if position < first)


def check_starts(probe: Probe, module: nn.Module, starts: Sequence[str]) -> None:
    """Raise when a plan's stages cannot begin where it says.

    Raises:
        SplitError: Naming every start that cannot be cut at, why, and what is near it.
    """
    once = probe.once()
    legal = [cut.name for cut in cuts(probe, module)]
    known = {name for name, _ in module.named_modules()}
    problems = []
    for start in starts:
        near = get_close_matches(start, legal, n=3, cutoff=0.4)
        hint = f"; cuts that work nearby: {', '.join(near)}" if near else ""
        if start not in known:
            problems.append(f"start: {start!r} is not a module of {type(module).__name__}{hint}")
        elif start not in once:
            times = sum(call.name == start for call in probe.calls)
            why = f" (the step ended early: {probe.failure})" if probe.failure and not times else ""
            problems.append(
                f"start: {start!r} runs {times} times in a step; a stage can begin only at a "
                f"module that runs "
                f"once{why}{hint}"
            )
        elif start not in legal:
            values = beside(probe, start)
            if values:
                value = values[0]
                used_in = next(where for used, where in value.uses if used >= once[start].position)
                problems.append(
                    f"start: {start!r} cannot begin a stage: a value computed in "
                    f"{value.made_in or 'the step'!r} is used behind it in "
                    f"{used_in or 'the step'!r} without being one of its arguments (a long skip "
                    f"connection?){hint}"
                )
            else:
                problems.append(
                    f"start: {start!r} is given no tensor that depends on a parameter: nothing "
                    f"in front of it is worth a stage{hint}"
                )
    positions = [once[start].position for start in starts if start in once]
    if positions != sorted(positions):
        order = sorted((s for s in starts if s in once), key=lambda s: once[s].position)
        problems.append(f"starts are out of order: they run as {', '.join(order)}")
    if problems:
        raise SplitError("\n".join(problems))


def owners(probe: Probe, module: nn.Module, starts: Sequence[str]) -> Mapping[str, tuple[int, ...]]:
    """Which stages hold each parameter and buffer.

    Args:
        probe: Of the training step.
        module: The probed module.
        starts: The modules at which stages 1, 2, ... begin.

    Returns:
        By name (the first of tied ones) the stages that touch it, ascending. What no stage touches
        belongs to the last.
    """
    positions = [probe.once()[start].position for start in starts]
    names = [name for name, _ in module.named_parameters()] + [
        name for name, _ in module.named_buffers()
    ]
    last = (len(starts),)
    return {
        name: tuple(sorted({bisect_right(positions, used) for used in probe.touches[name]}))
        if name in probe.touches
        else last
        for name in names
    }
