"""Profiles of single devices put together, and what sets one profile apart from another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from lightning_edge.plan.frozen import FrozenMap
from lightning_edge.plan.participants import Device
from lightning_edge.plan.problems import Path, Problem, shown, spell
from lightning_edge.plan.workload import Timing

if TYPE_CHECKING:
    from lightning_edge.plan.profile import Profile

__all__ = ["differences"]


def merged(parts: Sequence[Profile]) -> tuple[dict[str, Any], list[Problem]]:
    """Return the fields of one profile for all, and where the parts contradict each other."""
    if not parts:
        return {}, [Problem((), "there is no profile to merge")]
    first, problems = parts[0], []
    devices: dict[str, Device] = {}
    timings: dict[str, dict[str, Timing]] = {block.name: {} for block in first.model.blocks}
    links = {}
    for number, part in enumerate(parts):
        said_by = part.devices[0].name
        for device in part.devices:
            if devices.setdefault(device.name, device) != device:
                text = f"{said_by} (profile {number}) says something else of device {device.name}"
                problems.append(Problem(("devices",), text))
        for path, ours, theirs in _changes(_model_facts(first), _model_facts(part)):
            text = f"{said_by} has {shown(theirs)}, {first.devices[0].name} has {shown(ours)}"
            problems.append(Problem(("model", *path), text))
        for block in part.model.blocks:
            own = timings.setdefault(block.name, {})
            for key, timing in block.timings.items():
                if own.setdefault(key, timing) != timing:
                    text = (
                        f"two devices have measured {shown(key)} differently: give each device a "
                        'key of its own with "timing"'
                    )
                    problems.append(Problem(("model", "blocks", block.name, "timings"), text))
        links.update({(link.source, link.target): link for link in part.links})
        for key, ours, theirs in _entries(first.software, part.software):
            text = f"{said_by} has {shown(theirs)}, {first.devices[0].name} has {shown(ours)}"
            problems.append(Problem(("software", key), text))
    blocks = [
        replace(block, timings=FrozenMap(sorted(timings[block.name].items())))
        for block in first.model.blocks
    ]
    fields = {
        "devices": tuple(devices.values()),
        "model": replace(first.model, blocks=tuple(blocks)),
        "links": tuple(links.values()),
        "software": first.software,
    }
    return fields, list(dict.fromkeys(problems))


def differences(profile: Profile, present: Profile) -> list[str]:
    """Return why a profile does not describe what is present; empty if it does.

    Compares what a profile stands for, not what was measured: the devices with their kinds, current
    power modes and accelerators, the model's blocks and sizes, and the software.

    Args:
        profile: An older one, such as from a cache or from another place.
        present: What is there now; its timings, links, watts and free memory do not matter.
    """
    found = []
    for key, old, new in _entries(profile.software, present.software):
        found.append(f"{key} was {shown(old)}, is {shown(new)}")
    for old_device, new_device in zip_longest(profile.devices, present.devices):
        if old_device is None:
            found.append(f"device {new_device.name} was not there")
        elif new_device is None:
            found.append(f"device {old_device.name} is not there")
        else:
            for name in ("name", "kind", "accelerator", "cores", "mode"):
                old, new = getattr(old_device, name), getattr(new_device, name)
                if old != new:
                    found.append(
                        f"the {name} of device {old_device.name} was {shown(old)}, is {shown(new)}"
                    )
    for path, old, new in _changes(_model_facts(profile), _model_facts(present)):
        found.append(f"{spell(('model', *path))} was {shown(old)}, is {shown(new)}")
    return found


def _model_facts(profile: Profile) -> dict[str, Any]:
    """Return what a model is, whoever runs it."""
    model = profile.model
    sizes = ("parameter_bytes", "gradient_bytes", "optimizer_bytes", "forward_bytes", "cut")
    names = ("name", "signature", "least_rows")
    facts: dict[str, Any] = {name: getattr(model, name) for name in names}
    facts["blocks"] = tuple(block.name for block in model.blocks)
    for block in model.blocks:
        facts[block.name] = {name: getattr(block, name) for name in sizes}
    facts["shared"] = tuple((shared.name, shared.blocks) for shared in model.shared)
    return facts


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[Path, Any, Any]]:
    """Yield path, old and new value of what differs; blocks only if they are the same ones."""
    for key in ("name", "signature", "least_rows", "blocks", "shared"):
        if old[key] != new[key]:
            yield (key,), old[key], new[key]
    if old["blocks"] == new["blocks"]:
        for name in old["blocks"]:
            for size, value in old[name].items():
                if value != new[name][size]:
                    yield (name, size), value, new[name][size]


def _entries(
    old: Mapping[str, str], new: Mapping[str, str]
) -> Iterator[tuple[str, str | None, str | None]]:
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            yield key, old.get(key), new.get(key)
