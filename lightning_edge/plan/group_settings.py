"""Reading the settings that stand in for a plan: `groups`, `across` and `split_points`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lightning_edge.plan import values
from lightning_edge.plan.checks import find_device, in_order
from lightning_edge.plan.examine import device_shares
from lightning_edge.plan.problems import Path, Problem, did_you_mean, shown, unknown_keys

__all__: list[str] = []

_KEYS = ("devices", "parallelism")
_PARALLELISMS = ("auto", "data", "pipeline", "tensor", "sequence")
_ACROSS = ("auto", "pipeline", "data")


class Group(NamedTuple):
    """A group as asked for, with ranks for its devices."""

    name: str
    shares: dict[int, float]
    parallelism: str


def read_groups(groups: object, names: Sequence[str]) -> tuple[list[Group], list[Problem]]:
    """Return the groups (one of all devices for `None`) and what is wrong with them."""
    if groups is None:
        groups = {"all devices": {"devices": list(range(len(names)))}}
    path: Path = ("groups",)
    if not isinstance(groups, Mapping) or not groups:
        example = '{"orins": {"devices": [0, 1], "parallelism": "data"}}'
        return [], [Problem(path, f"must be groups such as {example}, found {shown(groups)}")]
    read: list[Group] = []
    problems: list[Problem] = []
    taken: dict[int, str] = {}
    for name, group in groups.items():
        if not isinstance(name, str):
            problems.append(Problem(path, f"the name of a group is a text, found {shown(name)}"))
            continue
        where = (*path, name)
        if not isinstance(group, Mapping):
            text = f"a group is a mapping with the key devices, found {shown(group)}"
            problems.append(Problem(where, text))
            continue
        problems += unknown_keys(where, group, _KEYS)
        if "devices" not in group:
            problems.append(Problem(where, "the key devices is missing"))
            continue
        shares, found = _ranks((*where, "devices"), group["devices"], names, name, taken)
        parallelism = group.get("parallelism", "auto")
        found += _check_parallelism((*where, "parallelism"), parallelism, group["devices"])
        problems += found
        if parallelism == "auto" and isinstance(group["devices"], Mapping):
            parallelism = "data"  # shares of rows mean nothing else
        read.append(Group(name, shares, str(parallelism)))
    return read, problems


def check_across(across: object) -> list[Problem]:
    """Return what is wrong with how groups are to combine."""
    if isinstance(across, str) and across in _ACROSS:
        return []
    text = f"must be one of {', '.join(_ACROSS)}, found {shown(across)}"
    return [Problem(("across",), text + did_you_mean(across, _ACROSS))]


def check_split_points(split_points: object, cuts: Sequence[str]) -> list[Problem]:
    """Return what is wrong with the cut points asked for."""
    path: Path = ("split_points",)
    if isinstance(split_points, str) and split_points == "auto":
        return []
    if not values.is_list(split_points):
        text = f'must be a list of cut points or "auto", found {shown(split_points)}'
        return [Problem(path, text)]
    named: list[tuple[Path, str]] = []
    problems: list[Problem] = []
    for index, given in enumerate(split_points):
        name = values.module_name((*path, index), given)
        if isinstance(name, str):
            named.append(((*path, index), name))
        else:
            text = 'must name a sub-module such as "model.blocks.5", found nothing'
            problems.append(name or Problem((*path, index), text))
    return problems + in_order(named, cuts)


def label(rank: int, names: Sequence[str]) -> str:
    """Return how messages call a device: `2 (pi)`."""
    return f"{rank} ({names[rank]})"


def _ranks(
    path: Path, devices: object, names: Sequence[str], group: str, taken: dict[int, str]
) -> tuple[dict[int, float], list[Problem]]:
    """Return rank -> share of a group's devices; `taken` collects the groups of all ranks."""
    listed, problems = device_shares(path, devices)
    shares: dict[int, float] = {}
    for device, share in listed.items():
        rank = find_device(device, names)
        if isinstance(rank, str):
            problems.append(Problem(path, rank))
        elif rank in taken:
            text = f"device {label(rank, names)} is in group {shown(taken[rank])} already"
            problems.append(Problem(path, text))
        else:
            shares[rank] = share
            taken[rank] = group
    return shares, problems


def _check_parallelism(path: Path, parallelism: object, devices: object) -> list[Problem]:
    if not isinstance(parallelism, str) or parallelism not in _PARALLELISMS:
        known = ", ".join(_PARALLELISMS)
        hint = did_you_mean(parallelism, _PARALLELISMS)
        return [Problem(path, f"must be one of {known}, found {shown(parallelism)}{hint}")]
    if parallelism in ("tensor", "sequence"):
        text = f'"{parallelism}" is not supported yet: write "data" or "pipeline"'
        return [Problem(path, text)]
    if parallelism == "pipeline" and isinstance(devices, Mapping):
        text = "each device of a pipeline has all rows: list the devices without shares"
        return [Problem(path, text)]
    return []
