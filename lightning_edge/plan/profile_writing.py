"""From a profile to its mapping form: what has its default is left out, what is alike is together.

Reading the mapping gives an equal profile, whoever made it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lightning_edge.plan.participants import ALL, Device, Known, Link, PowerMode
from lightning_edge.plan.workload import Block, Model, Shared, Timing

if TYPE_CHECKING:
    from lightning_edge.plan.profile import Profile

__all__: list[str] = []


def write_profile(profile: Profile) -> dict[str, Any]:
    """Return a profile as mappings, lists and scalars."""
    tree: dict[str, Any] = {"version": profile.version}
    if profile.software:
        tree["software"] = dict(profile.software)
    tree["devices"] = _together([(d.name, _device(d)) for d in profile.devices])
    tree["model"] = _model(profile.model)
    links = _links(profile.links, [device.name for device in profile.devices])
    return tree | ({"links": links} if links else {})


def _differing(values: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is not as usual."""
    return {key: value for key, value in values.items() if value != usual.get(key)}


def _provenance(known: Known) -> dict[str, Any]:
    if not known.provenance:
        return {}
    if set(known.provenance) == {ALL}:
        return {"provenance": known.provenance[ALL]}
    return {"provenance": dict(known.provenance)}


def _together(entries: Sequence[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Put consecutive entries that differ in their names only into one."""
    groups: list[tuple[list[str], dict[str, Any]]] = []
    for name, entry in entries:
        if groups and groups[-1][1] == entry:
            groups[-1][0].append(name)
        else:
            groups.append(([name], entry))
    return [
        ({"name": names[0]} if len(names) == 1 else {"names": names}) | entry
        for names, entry in groups
    ]


def _device(device: Device) -> dict[str, Any]:
    names = ("memory_bytes", "cores", "accelerator", "battery_j", "power_cap_w")
    costs = ("instruction_s", "step_s", "copy_s_per_byte", "holes_bytes", "holes_ratio")
    plain = Device("", device.kind)
    entry: dict[str, Any] = {"kind": device.kind}
    entry |= _differing({"timing": device.timing}, {"timing": device.kind})
    entry |= _differing({name: getattr(device, name) for name in (*names, *costs)}, vars(plain))
    if device.modes != (PowerMode("default"),):
        entry["modes"] = {mode.name: _mode(mode) for mode in device.modes}
    if device.modes and device.mode != device.modes[0].name:
        entry["mode"] = device.mode
    return entry | _provenance(device)


def _mode(mode: PowerMode) -> dict[str, Any]:
    names = ("speed", "timing", "idle_w", "compute_w", "communication_w")
    entry = _differing({name: getattr(mode, name) for name in names}, vars(PowerMode("")))
    return entry | _provenance(mode)


def _model(model: Model) -> dict[str, Any]:
    names = ("signature", "batch_bytes", "least_rows")
    entry: dict[str, Any] = {"name": model.name}
    entry |= _differing({name: getattr(model, name) for name in names}, vars(Model("", ())))
    entry["blocks"] = _together([(block.name, _block(block)) for block in model.blocks])
    if model.shared:
        entry["shared"] = [_shared(shared) for shared in model.shared]
    return entry | _provenance(model)


def _shared(shared: Shared) -> dict[str, Any]:
    entry = {"name": shared.name, "blocks": list(shared.blocks)}
    return entry | _sizes(shared, Shared("", (), shared.parameter_bytes)) | _provenance(shared)


def _sizes(part: Block | Shared, usual: Block | Shared) -> dict[str, Any]:
    entry = {"parameter_bytes": part.parameter_bytes}
    if part.gradient_bytes != usual.gradient_bytes:
        entry["gradient_bytes"] = part.gradient_bytes
    if part.optimizer_bytes != 2 * part.gradient_bytes:
        entry["optimizer_bytes"] = part.optimizer_bytes
    return entry


def _block(block: Block) -> dict[str, Any]:
    rates = ("activation_bytes", "checkpoint_bytes", "workspace_bytes")
    names = (*rates, "forward_bytes", "backward_bytes", "cut")
    usual = Block(
        "",
        parameter_bytes=block.parameter_bytes,
        activation_bytes=block.activation_bytes,
        forward_bytes=block.forward_bytes,
    )
    entry: dict[str, Any] = {}
    if block.timings:
        entry["timings"] = {key: _timing(timing) for key, timing in block.timings.items()}
    entry |= _sizes(block, usual)
    plain = vars(usual) | {"activation_bytes": 0.0, "forward_bytes": 0.0}
    entry |= _differing({name: getattr(block, name) for name in names}, plain)
    return entry | _provenance(block)


def _timing(timing: Timing) -> dict[str, Any]:
    columns = ("rows", "forward_s", "backward_s")
    entry: dict[str, Any] = {name: list(getattr(timing, name)) for name in columns}
    if timing.step_s:
        entry["step_s"] = timing.step_s
    return entry | _provenance(timing)


def _links(links: Sequence[Link], names: Sequence[str]) -> list[dict[str, Any]]:
    """Write all equal links as one, pairs that are equal both ways as one, others by direction."""
    everywhere = {(a, b) for a in names for b in names if a != b}
    by_pair = {(link.source, link.target): link for link in links}
    bare = [replace(link, source="", target="") for link in links]
    if len(links) > 2 and set(by_pair) == everywhere and all(link == bare[0] for link in bare):
        return [{"between": "all"} | _link(links[0])]
    entries = []
    for (source, target), link in by_pair.items():
        back = by_pair.get((target, source))
        alike = back is not None and _link(back) == _link(link)
        if not alike:
            entries.append({"from": source, "to": target} | _link(link))
        elif names.index(source) < names.index(target):
            entries.append({"between": [source, target]} | _link(link))
    return entries


def _link(link: Link) -> dict[str, Any]:
    entry: dict[str, Any] = {"seconds_per_byte": link.seconds_per_byte}
    if link.latency_s:
        entry["latency_s"] = link.latency_s
    if link.media:
        entry["media"] = list(link.media)
    return entry | _provenance(link)
