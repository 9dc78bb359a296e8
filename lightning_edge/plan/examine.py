"""Every problem of a plan in its mapping form, as read from a file or given in Python.

Nothing here raises: whatever the values are, the answer is a list of problems, all of them at once.
What needs to know more than the plan (the model, the devices present) is in `checks.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning_edge.plan import values
from lightning_edge.plan.depth import auto_micro_batches, conflicts
from lightning_edge.plan.problems import Path, Problem, shown, spell, unknown_keys

__all__: list[str] = []

PLAN_KEYS = ("pipelines", "micro_batches", "power_modes")
PIPELINE_KEYS = ("share", "stages")
STAGE_KEYS = ("start", "devices", "parallelism", "in_flight", "checkpoint")
TOLERANCE = 1e-6
"""How far shares may be from adding up to 1."""

_FORM = 'write "pipelines: [{stages: [...]}]"'


def examine(tree: object) -> list[Problem]:
    """Return everything that is wrong with a plan given as a mapping; empty if it is sound."""
    if not isinstance(tree, Mapping):
        return [Problem((), f"a plan is a mapping with the key pipelines, found {shown(tree)}")]
    problems: list[Problem] = []
    if "stages" in tree and "pipelines" not in tree:
        problems.append(Problem(("stages",), f"stages are part of a pipeline: {_FORM}"))
        tree = {key: value for key, value in tree.items() if key != "stages"}
    elif "pipelines" not in tree:
        problems.append(Problem((), f"the key pipelines is missing: {_FORM}"))
    problems += unknown_keys((), tree, PLAN_KEYS)
    asked = tree.get("micro_batches", "auto")
    micro_batches = values.count(("micro_batches",), asked, "the number of micro-batches")
    if isinstance(micro_batches, Problem):
        problems.append(micro_batches)
        micro_batches = None
    if "pipelines" in tree:
        problems += _pipelines(tree["pipelines"], micro_batches)
    return problems + _power_modes(tree.get("power_modes", {}))


def device_shares(path: Path, given: object) -> tuple[dict[int | str, float], list[Problem]]:
    """Return the shares of a stage's devices (equal for a list), and what is wrong with them."""
    entries: list[tuple[Path, object, object]]
    if isinstance(given, Mapping):
        entries = [(_step(path, key), key, value) for key, value in given.items()]
    elif values.is_list(given):
        entries = [((*path, i), key, 1 / len(given)) for i, key in enumerate(given)]
    else:
        example = "such as {0: 0.6, 1: 0.4} or [0, 1]"
        return {}, [Problem(path, f"must be devices {example}, found {shown(given)}")]
    if not entries:
        return {}, [Problem(path, "must name at least one device")]
    shares: dict[int | str, float] = {}
    problems: list[Problem] = []
    for where, key, value in entries:
        device, amount = values.device(where, key), values.share(where, value)
        problems += [found for found in (device, amount) if isinstance(found, Problem)]
        if isinstance(device, Problem):
            continue
        if device in shares:
            problems.append(Problem(where, f"device {shown(device)} is listed twice"))
        shares[device] = 0.0 if isinstance(amount, Problem) else amount
    if not problems and abs(sum(shares.values()) - 1) > TOLERANCE:
        problems.append(Problem(path, _sum_off(shares)))
    return shares, problems


def _pipelines(given: object, micro_batches: int | None) -> list[Problem]:
    path: Path = ("pipelines",)
    if not values.is_list(given):
        return [Problem(path, f"must be a list of pipelines, found {shown(given)}; {_FORM}")]
    if not given:
        return [Problem(path, f"a plan needs at least one pipeline: {_FORM}")]
    problems: list[Problem] = []
    shares: list[float | Problem] = []
    devices: list[tuple[Path, int | str]] = []
    for index, pipeline in enumerate(given):
        where = (*path, index)
        if not isinstance(pipeline, Mapping):
            text = f"a pipeline is a mapping with the key stages, found {shown(pipeline)}"
            problems.append(Problem(where, text))
            continue
        problems += unknown_keys(where, pipeline, PIPELINE_KEYS)
        asked = pipeline.get("share")
        share = 1 / len(given) if asked is None else values.share((*where, "share"), asked)
        shares.append(share)
        if isinstance(share, Problem):
            problems.append(share)
        if "stages" in pipeline:
            found, placed = _stages((*where, "stages"), pipeline["stages"], micro_batches)
            problems += found
            devices += placed
        else:
            problems.append(Problem(where, "the key stages is missing"))
    numbers = [share for share in shares if not isinstance(share, Problem)]
    if len(numbers) == len(given) and abs(sum(numbers) - 1) > TOLERANCE:
        total = f"{sum(numbers):.6g}"
        text = f"the shares of the pipelines add up to {total}, not 1{_remedy(numbers)}"
        problems.append(Problem(path, text))
    return problems + _placed_twice(devices)


def _stages(
    path: Path, given: object, micro_batches: int | None
) -> tuple[list[Problem], list[tuple[Path, int | str]]]:
    """Return the problems of a list of stages, and where each device is placed."""
    if not values.is_list(given):
        return [Problem(path, f"must be a list of stages, found {shown(given)}")], []
    if not given:
        return [Problem(path, "a pipeline needs at least one stage")], []
    problems: list[Problem] = []
    devices: list[tuple[Path, int | str]] = []
    starts: list[object] = []
    depths: list[int | None] = []
    for index, stage in enumerate(given):
        where = (*path, index)
        depths.append(None)
        if not isinstance(stage, Mapping):
            text = f"a stage is a mapping with the key devices, found {shown(stage)}"
            problems.append(Problem(where, text))
            continue
        problems += unknown_keys(where, stage, STAGE_KEYS)
        problems += _start((*where, "start"), stage.get("start"), index, starts)
        if "devices" in stage:
            shares, found = device_shares((*where, "devices"), stage["devices"])
            problems += found
            devices += [((*where, "devices"), device) for device in shares]
        else:
            problems.append(Problem(where, "the key devices is missing"))
        parallelism = stage.get("parallelism", "data")
        depth = values.count(
            (*where, "in_flight"), stage.get("in_flight", "auto"), "in-flight depth"
        )
        checkpoint = values.flag((*where, "checkpoint"), stage.get("checkpoint", False))
        for value in (values.parallelism((*where, "parallelism"), parallelism), depth, checkpoint):
            if isinstance(value, Problem):
                problems.append(value)
        depths[-1] = None if isinstance(depth, Problem) else depth
    return problems + _depths(path, depths, micro_batches), devices


def _start(path: Path, given: object, index: int, starts: list[object]) -> list[Problem]:
    """Check where a stage starts; `starts` collects the names of the stages before it."""
    name = values.module_name(path, given)
    if isinstance(name, Problem):
        return [name]
    if index == 0:
        text = f"the first stage starts at the model's first module: remove start: {shown(name)}"
        return [] if name is None else [Problem(path, text)]
    if name is None:
        text = "the key start is missing: every stage but the first names its first module"
        return [Problem(path[:-1], text)]
    if name in starts:
        return [Problem(path, f"an earlier stage starts at {shown(name)} already")]
    starts.append(name)
    return []


def _depths(path: Path, depths: Sequence[int | None], micro_batches: int | None) -> list[Problem]:
    """Refuse depths with which two stages would wait for each other (see `depth.py`)."""
    if micro_batches is None:
        micro_batches = auto_micro_batches(len(depths))
    return [
        Problem(
            (*path, later, "in_flight"),
            f"{depths[later]} cannot run, as {spell((*path, earlier))} keeps {depths[earlier]} in "
            f"flight and both would wait for each other: write {depths[earlier]} or less here, or "
            f"{depths[later]} there",
        )
        for earlier, later in conflicts(depths, micro_batches)
    ]


def _placed_twice(devices: Sequence[tuple[Path, int | str]]) -> list[Problem]:
    """Refuse a device in more than one stage: it would have to do two things at once."""
    first: dict[int | str, Path] = {}
    problems = []
    for path, device in devices:
        if first.setdefault(device, path) != path:
            text = f"device {shown(device)} is in {spell(first[device][:-1])} already"
            problems.append(Problem(path, f"{text}: a device works in exactly one stage"))
    return problems


def _power_modes(given: object) -> list[Problem]:
    path: Path = ("power_modes",)
    if not isinstance(given, Mapping):
        return [Problem(path, f"must be power modes such as {{0: 15W}}, found {shown(given)}")]
    problems: list[Problem] = []
    seen: set[int | str] = set()
    for key, mode in given.items():
        where = _step(path, key)
        device = values.device(where, key)
        for value in (device, values.power_mode(where, mode)):
            if isinstance(value, Problem):
                problems.append(value)
        if not isinstance(device, Problem):
            if device in seen:
                problems.append(Problem(where, f"device {shown(device)} is listed twice"))
            seen.add(device)
    return problems


def _step(path: Path, key: object) -> Path:
    """Return the path of a key, or of the mapping around it if the key cannot be spelled."""
    return (*path, key) if isinstance(key, str | int) and not isinstance(key, bool) else path


def _sum_off(shares: Mapping[int | str, float]) -> str:
    amounts = list(shares.values())
    text = f"shares add up to {sum(amounts):.6g}, not 1"
    if len(set(amounts)) == 1 and amounts[0] > 0:
        return f"{text}; for equal shares write [{', '.join(map(str, shares))}]"
    return text + _remedy(amounts, list(shares))


def _remedy(amounts: Sequence[float], names: Sequence[object] = ()) -> str:
    if sum(amounts) == 0:
        return "; give one of them a share above 0"
    tidied = values.tidy(amounts)
    if not names:
        return f"; write {', '.join(map(str, tidied))}"
    pairs = (f"{name}: {amount}" for name, amount in zip(names, tidied, strict=True))
    return f"; write {{{', '.join(pairs)}}}"
