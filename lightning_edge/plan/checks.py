"""What is wrong with a sound plan for this model, these devices and this version."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

from lightning_edge.plan.problems import Path, Problem, did_you_mean, shown, spell

if TYPE_CHECKING:
    from lightning_edge.plan.plan import Plan, Stage

__all__: list[str] = []


def unsupported(plan: Plan) -> list[Problem]:
    """Return one sentence for each thing that plans can say and this version cannot do."""
    problems = []
    if len(plan.pipelines) > 1:
        text = f"{len(plan.pipelines)} pipelines side by side are not supported yet: write one"
        problems.append(Problem(("pipelines",), text))
    for path, stage in stages_with_paths(plan):
        if stage.parallelism != "data":
            text = f'"{stage.parallelism}" is not supported yet: write "data"'
            problems.append(Problem((*path, "parallelism"), text))
    return problems


def cut_points(plan: Plan, modules: Sequence[str] | None) -> list[Problem]:
    """Return the stages that start where the model cannot be cut, or before an earlier stage."""
    problems: list[Problem] = []
    if modules is None:
        return problems
    for index, pipeline in enumerate(plan.pipelines):
        path = ("pipelines", index, "stages")
        starts = [stage.start for stage in pipeline.stages]
        named = [((*path, i, "start"), name) for i, name in enumerate(starts) if name is not None]
        problems += in_order(named, modules)
    return problems


def in_order(starts: Sequence[tuple[Path, str]], modules: Sequence[str]) -> list[Problem]:
    """Return which of some starts are no cut points, or run before one that is listed earlier."""
    order = {name: index for index, name in enumerate(modules)}
    problems = []
    last: tuple[Path, str] | None = None
    for path, start in starts:
        if start not in order:
            problems.append(Problem(path, _not_a_cut_point(start, modules)))
        elif last is not None and order[start] <= order[last[1]]:
            earlier = f"{shown(last[1])} of {spell(last[0])}"
            text = f"{shown(start)} does not run after {earlier}: list starts in execution order"
            problems.append(Problem(path, text))
        else:
            last = (path, start)
    return problems


def absent(plan: Plan, world_size: int) -> list[Problem]:
    """Return the ranks of the plan that do not exist among `world_size` devices."""
    problems = []
    for path, rank in _devices_with_paths(plan):
        if isinstance(rank, int) and rank >= world_size:
            problems.append(Problem(path, _no_such_rank(rank, world_size)))
    return problems


def to_ranks(plan: Plan, names: Sequence[str]) -> tuple[dict[int | str, int], list[Problem]]:
    """Return the rank of each device of a plan, and what is wrong with the devices.

    Args:
        plan: A plan that may name devices by rank or by name.
        names: Name of each rank's device.
    """
    ranks: dict[int | str, int] = {}
    problems = []
    first: dict[tuple[str | int, int], Path] = {}
    for path, device in _devices_with_paths(plan):
        found = find_device(device, names)
        if isinstance(found, str):
            problems.append(Problem(path, found))
            continue
        ranks[device] = found
        # The same device may be spelled twice: once by its rank, once by its name.
        other = first.setdefault((path[0], found), path)
        if other != path:
            text = f"this is rank {found} ({names[found]}) again, which {spell(other)} names"
            problems.append(Problem(path, f"{text}: a device may be given once only"))
    return ranks, problems


def find_device(device: int | str, names: Sequence[str]) -> int | str:
    """Return the rank of a device, or a sentence saying why there is none."""
    if isinstance(device, int):
        return device if device < len(names) else _no_such_rank(device, len(names))
    found = [rank for rank, name in enumerate(names) if name == device]
    if len(found) == 1:
        return found[0]
    if found:
        which = ", ".join(map(str, found))
        return f"ranks {which} are all called {shown(device)}: write the rank"
    here = ", ".join(f"{rank} ({name})" for rank, name in enumerate(names))
    hint = did_you_mean(device, names)
    return f"{shown(device)} is not a device that takes part{hint} (present: {here or 'none'})"


def stages_with_paths(plan: Plan) -> list[tuple[Path, Stage]]:
    """Return all stages of all pipelines with their paths."""
    return [
        (("pipelines", i, "stages", j), stage)
        for i, pipeline in enumerate(plan.pipelines)
        for j, stage in enumerate(pipeline.stages)
    ]


def _devices_with_paths(plan: Plan) -> list[tuple[Path, int | str]]:
    return [
        ((*path, "devices", device), device)
        for path, stage in stages_with_paths(plan)
        for device in stage.devices
    ] + [(("power_modes", device), device) for device in plan.power_modes]


def _no_such_rank(rank: int, world_size: int) -> str:
    ranks = f"ranks 0 to {world_size - 1}" if world_size > 1 else "rank 0"
    devices = "1 device takes" if world_size == 1 else f"{world_size} devices take"
    return f"there is no rank {rank}: {devices} part ({ranks})"


def _not_a_cut_point(start: str, modules: Sequence[str]) -> str:
    text = f"{shown(start)} is not a cut point"
    if not modules:
        return (
            f"{text}: this model has none, so only a plan of one stage can run it (stages begin at"
            f" modules that run once in a step: a model that is called twice has none)"
        )
    nearest = get_close_matches(start, modules, n=1, cutoff=0.0)[0]
    span = f"the model has {len(modules)}, from {shown(modules[0])} to {shown(modules[-1])}"
    return f"{text}; nearest: {shown(nearest)} ({span})"
