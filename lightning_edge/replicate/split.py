"""Where a model can be cut, what crosses there, which stage uses what: functions of a `Probe`."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from torch import nn

from lightning_edge.errors import SplitError
from lightning_edge.replicate.probe import Call, Leaf, Probe, Value

__all__ = ["Cut", "cuts", "owners"]


@dataclass(frozen=True)
class Cut:
    """A module a stage may begin with.

    Attributes:
        name: Its name, as in `module.named_modules()`.
        position: When it is called (see `replicate.probe`).
        leaves: The arguments that have to be sent to a stage that begins here.
        carried: Further values that have to be sent, because the step uses them later.
        parameters: Numbers of parameter entries first used from here up to the next cut.
        flops: Floating-point operations of one row's forward from here up to the next cut:
            products of matrices, convolutions and attention.
    """

    name: str
    position: int
    leaves: tuple[Leaf, ...]
    carried: tuple[Leaf, ...] = ()
    parameters: int = 0
    flops: float = 0.0

    @property
    def crossing_bytes(self) -> int:
        """What is sent for one row; the gradient takes the same way back."""
        return sum(leaf.bytes_of(1) for leaf in (*self.leaves, *self.carried))


def crossing(probe: Probe, name: str) -> tuple[Leaf, ...]:
    """The tensors among a module's arguments that depend on parameters."""
    return tuple(leaf for leaf in probe.once()[name].leaves if leaf.fake)


def across(probe: Probe, name: str) -> tuple[Value, ...]:
    """All values from in front of a cut that are used behind it."""
    position = probe.once()[name].position
    return tuple(v for v in probe.values if v.created < position <= v.last_use)


def beside(probe: Probe, name: str) -> tuple[Value, ...]:
    """Those of them that are not among its module's arguments."""
    return tuple(value for value in across(probe, name) if name not in value.passed_to)


def carried(probe: Probe, name: str) -> tuple[Value, ...]:
    """Those beside the arguments that both sides of a cut can find (see `replicate.sites`)."""
    return tuple(value for value in beside(probe, name) if value.leaf.path)


def lost(probe: Probe, name: str) -> tuple[Value, ...]:
    """Those that they cannot find: the module cannot begin a stage."""
    return tuple(value for value in beside(probe, name) if not value.leaf.path)


def parted(probe: Probe, name: str) -> list[str]:
    """What may not be parted and would be if a stage began at a module, as sentences."""
    position = probe.once()[name].position
    crossing = [(value.memory, value.made_in) for value in across(probe, name)]
    return list(probe.bonds.parted(name, position, probe.touches, crossing))


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

    Of modules entered with the same call (a container and its first child) either is legal.

    Args:
        probe: Of the step to be cut.
        module: The probed module.
        blocks_only: Only the places people cut at: members of a `nn.ModuleList` or
            `nn.Sequential`, and those inside another member only where nothing has to be carried
            beside their arguments. All cuts if the model has no such place.
    """
    legal = [
        call
        for name, call in probe.once().items()
        if not lost(probe, name)
        and not parted(probe, name)
        and (any(leaf.fake for leaf in call.leaves) or carried(probe, name))
    ]
    if blocks_only:
        legal = _between_blocks(probe, module, legal) or legal
    positions = [call.position for call in legal]
    parameters, flops = [0] * (len(legal) + 1), [0.0] * (len(legal) + 1)
    for position, size in _first_used(probe, module):
        parameters[bisect_right(positions, position)] += size
    for position, count in probe.flops.items():
        flops[bisect_right(positions, position)] += count
    return tuple(
        Cut(
            call.name,
            call.position,
            crossing(probe, call.name),
            tuple(value.leaf for value in carried(probe, call.name)),
            parameters[i + 1],
            flops[i + 1],
        )
        for i, call in enumerate(legal)
    )


def _between_blocks(probe: Probe, module: nn.Module, legal: Sequence[Call]) -> list[Call]:
    outer, inner = _blocks(module)
    busy = sorted({*probe.flops, *(position for position, _ in _first_used(probe, module))})
    found: list[Call] = []
    for call in legal:
        if call.name not in outer and (call.name not in inner or carried(probe, call.name)):
            continue
        if found and call.name.startswith(f"{found[-1].name}."):
            before = bisect_left(busy, call.position) - bisect_left(busy, found[-1].position)
            if not before:  # the same place in the step, further inside
                continue
        found.append(call)
    return found


def outer_blocks(module: nn.Module) -> list[str]:
    """Members of `nn.ModuleList` and `nn.Sequential` that lie in no other member, in order."""
    outer, _ = _blocks(module)
    return [name for name, _ in module.named_modules() if name in outer]


def _blocks(module: nn.Module) -> tuple[set[str], set[str]]:
    """Members of lists of modules: those in no other member, and the others."""
    outer: set[str] = set()
    inner: set[str] = set()
    for name, parent in module.named_modules():
        if isinstance(parent, (nn.ModuleList, nn.Sequential)):
            nested = any(name == o or name.startswith(f"{o}.") for o in outer)
            members = {f"{name}.{child}" if name else child for child, _ in parent.named_children()}
            (inner if nested else outer).update(members)
    return outer, inner


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
        if start in legal:
            continue
        hint = _nearest(probe, legal, start)
        if start not in known:
            problems.append(f"start: {start!r} is not a module of {type(module).__name__}{hint}")
        elif start not in once:
            times = sum(call.name == start for call in probe.calls)
            why = ""
            if not times:
                why = " (is it called, as `module(x)`?)"
                if probe.failure:
                    why = f" (the step ended early: {probe.failure})"
            problems.append(
                f"start: {start!r} runs {times} times in a step; a stage can begin only at a "
                f"module that runs once{why}{hint}"
            )
        elif lost(probe, start):
            value = lost(probe, start)[0]
            used_in = next(where for used, where in value.uses if used >= once[start].position)
            problems.append(
                f"start: {start!r} cannot begin a stage: a tensor of shape "
                f"{list(value.leaf.shape)} computed in {value.made_in or 'the step'!r} is used "
                f"behind it in "
                f"{used_in or 'the step'!r}, and what computes it (a custom autograd function or "
                f"a scripted one) hides it from other devices. Make it in a module of its own, or "
                f"cut elsewhere{hint}"
            )
        elif parted(probe, start):
            why = "; and ".join(parted(probe, start))
            problems.append(f"start: {start!r} cannot begin a stage: {why}{hint}")
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


def check_replicas(probe: Probe, starts: Sequence[str], devices: Sequence[int]) -> None:
    """Raise when several devices would each have another value of what crosses as one.

    Args:
        probe: Of the step.
        starts: The modules at which stages 1, 2, ... begin.
        devices: Numbers of devices of all stages.

    Raises:
        SplitError: Naming each such value and the stage that has to be one device.
    """
    positions = [probe.once()[start].position for start in starts]
    problems = []
    for stage, start in enumerate(starts, 1):
        for leaf in (*crossing(probe, start), *(value.leaf for value in carried(probe, start))):
            maker = bisect_right(positions, leaf.created) if leaf.created >= 0 else stage - 1
            if leaf.row_dim is None and leaf.over_rows and devices[maker] > 1:
                problems.append(
                    f"the value {leaf.path} of shape {list(leaf.shape)}, which crosses {start!r}, "
                    f"is computed over all rows of a batch (a mean, an auxiliary loss) in stage "
                    f"{maker}, whose {devices[maker]} devices have some of the rows each. Give "
                    f"that stage one device, or keep one value per row until behind the cut"
                )
            if leaf.apart and max(devices[stage - 1 : stage + 1]) > 1:
                problems.append(
                    f"the value {leaf.path} of shape {list(leaf.shape)}, which crosses {start!r}, "
                    f"has {leaf.per_row} entries for each row of the batch that lie apart (it was "
                    f"put together by cat or repeat, or time comes first): its rows cannot be "
                    f"divided among devices. Give the stages on both sides one device each, or "
                    f"let a row's entries follow one another: [rows, n, ...].flatten(0, 1)"
                )
    if problems:
        raise SplitError("\n".join(problems))


def changing(probe: Probe, starts: Sequence[str], devices: Sequence[int]) -> list[str]:
    """Buffers and attributes that are changed by what several devices of a stage compute."""
    positions = [probe.once()[start].position for start in starts]
    return [
        name
        for name, changes in probe.bonds.changes.items()
        if any(not c.plain and devices[bisect_right(positions, c.position)] > 1 for c in changes)
    ]


def first_names(module: nn.Module, names: Sequence[str]) -> list[str]:
    """The names under which modules are known, where they are registered at several places."""
    known = {id(child): name for name, child in module.named_modules()}
    places = dict(module.named_modules(remove_duplicate=False))
    return [known[id(places[name])] if name in places else name for name in names]


def _nearest(probe: Probe, legal: Sequence[str], start: str) -> str:
    """The cuts next to a module in the order of the step, or those that are spelt alike."""
    once = probe.once()
    if start in once:
        here = once[start].position
        near = [name for name in legal if once[name].position < here][-2:]
        near += [name for name in legal if once[name].position > here][:2]
    else:
        near = get_close_matches(start, legal, n=3, cutoff=0.4)
    return f"; cuts that work nearby: {', '.join(near)}" if near else ""


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
