"""From the mapping form of a profile, as a file or a hand gives it, to its parts.

Whatever was given, all of its problems come back at once, each with the line to change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from lightning_edge.plan.fields import Fields
from lightning_edge.plan.frozen import FrozenMap
from lightning_edge.plan.participants import Device, Link, PowerMode
from lightning_edge.plan.problems import Path, Problem, did_you_mean, shown
from lightning_edge.plan.workload import Block, Model, Shared, Timing

__all__: list[str] = []

VERSION = 1
T = TypeVar("T", bound=Device | Block)


def read_profile(tree: object) -> tuple[dict[str, Any], list[Problem]]:
    """Return the fields of a `Profile` and everything that is wrong with them."""
    problems: list[Problem] = []
    fields = Fields((), tree, "a profile", problems)
    version = fields.whole("version", VERSION)
    if version != VERSION:
        text = f"this profile has version {version}, this program reads {VERSION}: profile again"
        return {}, [Problem(("version",), text)]
    devices = [
        device
        for path, given in fields.items("devices")
        for device in _named(path, given, "a device", problems, _device)
    ]
    model = _model(Fields(("model",), fields.get("model", {}), "the model", problems))
    links = _links(fields, [device.name for device in devices], problems)
    software = FrozenMap(
        {key: str(value) for _, key, value in fields.entries("software", FrozenMap())}
    )
    fields.close()
    if not devices and not problems:
        problems.append(Problem(("devices",), "a profile names at least one device"))
    problems += _repeated(("devices",), "device", [device.name for device in devices])
    parts = {"devices": tuple(devices), "model": model, "links": links, "software": software}
    return parts, problems


def _named(
    path: Path,
    given: object,
    what: str,
    problems: list[Problem],
    read: Callable[[Fields, str], T],
) -> list[T]:
    """Read an entry with a `name`, or with `names` for several that differ in nothing else."""
    fields = Fields(path, given, what, problems)
    if fields.has("names") and fields.has("name"):
        problems.append(Problem(path, "write name for one, or names for several alike, not both"))
    names = fields.texts("names") if fields.has("names") else (fields.text("name"),)
    first = read(fields, names[0])
    fields.close()
    return [first, *(replace(first, name=name) for name in names[1:])]


def _device(fields: Fields, name: str) -> Device:
    kind = fields.text("kind", "cpu")
    modes = []
    for path, mode_name, given in fields.entries("modes", FrozenMap()):
        own = Fields(path, given, "a power mode", fields.problems)
        modes.append(_power_mode(own, mode_name))
    if not modes:
        modes = [_power_mode(fields, "default", inside_device=True)]
    mode = fields.text("mode", modes[0].name)
    known = [m.name for m in modes]
    if mode not in known:
        text = f"{shown(mode)} is not one of its modes ({', '.join(known)})"
        hint = did_you_mean(mode, known)
        fields.problems.append(Problem((*fields.path, "mode"), text + hint))
    return Device(
        name,
        kind,
        timing=fields.text("timing", kind),
        memory_bytes=fields.whole("memory_bytes", None, positive=True),
        cores=fields.whole("cores", None, positive=True),
        accelerator=fields.text("accelerator", "") or None,
        modes=tuple(modes),
        mode=mode,
        battery_j=fields.number("battery_j", None),
        power_cap_w=fields.number("power_cap_w", None, positive=True),
        instruction_s=fields.number("instruction_s", 0.0),
        step_s=fields.number("step_s", 0.0),
        copy_s_per_byte=fields.number("copy_s_per_byte", 0.0),
        holes_bytes=fields.number("holes_bytes", 0.0),
        holes_ratio=fields.number("holes_ratio", 0.0),
        provenance=fields.provenance(),
    )


def _power_mode(fields: Fields, name: str, inside_device: bool = False) -> PowerMode:
    """Read a mode; a device with one mode only may say its watts itself."""
    mode = PowerMode(
        name,
        speed=fields.number("speed", 1.0, positive=True),
        timing=None if inside_device else fields.text("timing", "") or None,
        idle_w=fields.number("idle_w", None),
        compute_w=fields.number("compute_w", None),
        communication_w=fields.number("communication_w", None),
        provenance=fields.provenance(),
    )
    if not inside_device:
        fields.close()
    return mode


def _model(fields: Fields) -> Model:
    problems = fields.problems
    blocks = [
        block
        for path, given in fields.items("blocks")
        for block in _named(path, given, "a block", problems, _block)
    ]
    names = [block.name for block in blocks]
    if not blocks and not problems:
        problems.append(Problem((*fields.path, "blocks"), "a model has at least one block"))
    problems += _repeated((*fields.path, "blocks"), "block", names)
    shared = []
    for path, given in fields.items("shared", ()):
        own = Fields(path, given, "shared parameters", problems)
        users = own.texts("blocks")
        for user in users:
            if user not in names and user != "?":
                text = f"{shown(user)} is not a block{did_you_mean(user, names)}"
                problems.append(Problem((*path, "blocks"), text))
        if len(set(users)) < 2 and users != ("?",):
            problems.append(Problem((*path, "blocks"), "shared parameters have two blocks or more"))
        shared.append(Shared(own.text("name", "shared"), users, *_sizes(own)))
        own.close()
    model = Model(
        fields.text("name", "model"),
        tuple(blocks),
        tuple(shared),
        batch_bytes=fields.number("batch_bytes", 0.0),
        least_rows=fields.whole("least_rows", 1, positive=True),
        signature=fields.text("signature", ""),
        provenance=fields.provenance(),
    )
    fields.close()
    return model


def _sizes(fields: Fields) -> tuple[int, int, int]:
    return (
        fields.whole("parameter_bytes", 0),
        fields.whole("gradient_bytes", -1),
        fields.whole("optimizer_bytes", -1),
    )


def _block(fields: Fields, name: str) -> Block:
    timings = {}
    for path, key, given in fields.entries("timings", FrozenMap()):
        timings[key] = _timing(Fields(path, given, "a timing", fields.problems))
    parameters, gradients, optimizer = _sizes(fields)
    return Block(
        name,
        timings,
        parameters,
        gradients,
        optimizer,
        activation_bytes=fields.number("activation_bytes", 0.0),
        checkpoint_bytes=fields.number("checkpoint_bytes", -1.0),
        workspace_bytes=fields.number("workspace_bytes", 0.0),
        forward_bytes=fields.number("forward_bytes", 0.0),
        backward_bytes=fields.number("backward_bytes", -1.0),
        cut=fields.flag("cut", True),
        provenance=fields.provenance(),
    )


def _timing(fields: Fields) -> Timing:
    rows = tuple(round(number) for number in fields.numbers("rows", positive=True))
    forward, backward = fields.numbers("forward_s"), fields.numbers("backward_s")
    if list(rows) != sorted(set(rows)) or rows[0] < 1:
        text = f"rows must be whole numbers, ascending, found {list(rows)}"
        fields.problems.append(Problem((*fields.path, "rows"), text))
    for name, column in (("forward_s", forward), ("backward_s", backward)):
        if len(column) != len(rows) and fields.has(name) and fields.has("rows"):
            text = f"lists {len(column)} where rows lists {len(rows)}"
            fields.problems.append(Problem((*fields.path, name), text))
    step_s, provenance = fields.number("step_s", 0.0), fields.provenance()
    fields.close()
    shortest = min(len(rows), len(forward), len(backward))
    columns = (rows[:shortest], forward[:shortest], backward[:shortest])
    return Timing(*columns, step_s, provenance=provenance)


def _links(fields: Fields, names: Sequence[str], problems: list[Problem]) -> tuple[Link, ...]:
    """Read links; a later entry for the same two devices replaces an earlier one."""
    found: dict[tuple[str, str], Link] = {}
    for path, given in fields.items("links", ()):
        own = Fields(path, given, "a link", problems)
        pairs = _ends(own, names)
        if own.has("mbit_per_s") == own.has("seconds_per_byte"):
            text = "say how fast it is, once: mbit_per_s or seconds_per_byte"
            problems.append(Problem(path, text))
        mbit = own.number("mbit_per_s", None, positive=True)
        per_byte = 0.0 if mbit is None else 8e-6 / mbit
        per_byte = own.number("seconds_per_byte", per_byte)
        latency, media = own.number("latency_s", 0.0), own.texts("media", ())
        half, provenance = own.flag("half_duplex", False), own.provenance()
        own.close()
        for source, target in pairs:
            shared = media
            if half:
                shared = (*media, "--".join(sorted((source, target))))
            link = Link(source, target, per_byte, latency, shared, provenance=provenance)
            found[source, target] = link
    order = {name: index for index, name in enumerate(names)}
    return tuple(
        found[pair] for pair in sorted(found, key=lambda p: [order.get(name, 0) for name in p])
    )


def _ends(fields: Fields, names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs (source, target) that an entry of `links` is about."""
    if fields.has("between"):
        members = fields.texts("between")
        if members == ("all",):
            members = tuple(names)
        elif len(set(members)) < 2:
            text = 'name two devices or more, or write "all"'
            fields.problems.append(Problem((*fields.path, "between"), text))
    else:
        members = (fields.text("from"), fields.text("to"))
    for member in members:
        if member not in names and member != "?":
            text = f"{shown(member)} is not a device{did_you_mean(member, names)}"
            fields.problems.append(Problem(fields.path, text))
    pairs = [(a, b) for a in members for b in members if a != b]
    return pairs if fields.has("between") else pairs[:1]


def _repeated(path: Path, what: str, names: Sequence[str]) -> list[Problem]:
    counts: Mapping[str, int] = {name: list(names).count(name) for name in dict.fromkeys(names)}
    return [
        Problem(path, f"there are {count} {what}s called {shown(name)}")
        for name, count in counts.items()
        if count > 1 and name != "?"
    ]
