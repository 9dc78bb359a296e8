"""A profile: what there is to plan with, measured by `EdgeProfiler` or written by hand.

    devices:                                # in the order of their ranks
      - names: [orin-a, orin-b]             # two that differ in nothing but their names
        kind: jetson-orin-nano
        memory_bytes: 5e9                   # what training may use
        modes:
          15W: {idle_w: 4.6, compute_w: 11.5, communication_w: 5.4}
          7W: {speed: 0.4, idle_w: 4.1, compute_w: 6.2, communication_w: 4.9}
      - name: laptop
        idle_w: 9                           # a device with one mode says its watts itself
        compute_w: 42
        communication_w: 12
        kind: laptop
        memory_bytes: 12e9
    model:
      blocks:
        - name: embedding
          parameter_bytes: 1048576
          activation_bytes: 65536           # per row, kept from forward to backward
          timings:                          # by a device's kind (or its `timing`, or a mode's)
            jetson-orin-nano: {rows: [1, 8], forward_s: [0.001, 0.004], backward_s: [0.001, 0.005]}
            laptop: {rows: 8, forward_s: 0.002, backward_s: 0.002}
        - names: [layers.0, layers.1, layers.2, layers.3]     # a stage may begin at each of them
          parameter_bytes: 3e6              # gradients: as many; optimizer: twice that, as for Adam
          activation_bytes: 1e6
          forward_bytes: 65536              # per row, what crosses the cut in front
          timings:
            jetson-orin-nano: {rows: [1, 8], forward_s: [0.01, 0.05], backward_s: [0.02, 0.1]}
            laptop: {rows: 8, forward_s: 0.02, backward_s: 0.04}
    links:
      - {between: all, mbit_per_s: 100, latency_s: 0.001}     # or [a, b], or from: and to:

`print(profile)` shows it as tables and `to_yaml` writes it in this form. Numbers that nobody calls
"measured" or "prior" (`provenance:` at a device, mode, block, timing or link) count as declared.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import yaml

from lightning_edge.errors import ProfileError
from lightning_edge.plan import parsing
from lightning_edge.plan.frozen import FrozenMap
from lightning_edge.plan.participants import Device, Known, Link, PowerMode
from lightning_edge.plan.problems import Origin, Problem, did_you_mean, refuse, shown
from lightning_edge.plan.profile_merging import merged
from lightning_edge.plan.profile_reading import VERSION, read_profile
from lightning_edge.plan.profile_table import tables
from lightning_edge.plan.profile_writing import write_profile
from lightning_edge.plan.workload import Block, Model, Shared, Timing

__all__ = [
    "Block",
    "Device",
    "Known",
    "Link",
    "Model",
    "PowerMode",
    "Profile",
    "Shared",
    "Timing",
]


@dataclass(frozen=True)
class Profile:
    """Devices, model and links.

    Attributes:
        devices: In the order of their ranks, at least one.
        model: What is to be trained.
        links: From device to device; pairs that are not there cannot talk.
        software: Versions and other keys that the numbers depend on.
        version: Of this form.

    Raises:
        ProfileError: With every problem.
    """

    devices: tuple[Device, ...]
    model: Model
    links: tuple[Link, ...] = ()
    software: Mapping[str, str] = field(default_factory=FrozenMap)
    version: int = VERSION

    def __post_init__(self) -> None:
        parts, problems = read_profile(write_profile(self))
        refuse(problems, error=ProfileError)
        for name in ("links", "software"):  # the same whatever their order was
            object.__setattr__(self, name, parts[name])
        object.__setattr__(self, "devices", tuple(self.devices))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Profile:
        """Return the profile that a mapping in the form above describes.

        Raises:
            ProfileError: With every problem of the mapping.
        """
        return _checked(mapping, [], None)

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> Profile:
        """Return the profile in a YAML file, or in a JSON file if its name ends in `.json`.

        Raises:
            ProfileError: With every problem of the file and its line, also if it cannot be read.
        """
        file = FilePath(path)
        source = parsing.shown_path(file)
        text = parsing.read_file(file, parsing.PROFILE)
        if file.suffix.lower() == ".json":
            return cls.from_json(text, source)
        tree, origin, problems = parsing.parse_yaml(text, source, parsing.PROFILE)
        return _checked(tree, problems, origin)

    @classmethod
    def from_json(cls, text: str, source: str = "JSON text") -> Profile:
        """Return the profile in a JSON text; `source` says in messages where it came from.

        Raises:
            ProfileError: With every problem of the text.
        """
        tree, problems = parsing.parse_json(text, source, parsing.PROFILE)
        return _checked(tree, problems, Origin(source, {}))

    def to_mapping(self) -> dict[str, Any]:
        """Return the profile as mappings, lists and scalars, without what has its default."""
        return write_profile(self)

    def to_yaml(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the profile as YAML, and write it to `path` if one is given."""
        text = yaml.safe_dump(
            self.to_mapping(), sort_keys=False, default_flow_style=None, allow_unicode=True
        )
        if path is not None:
            FilePath(path).write_text(text, encoding="utf-8")
        return text

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the profile as JSON text, and write it to `path` if one is given."""
        text = json.dumps(self.to_mapping(), indent=1)
        if path is not None:
            FilePath(path).write_text(text, encoding="utf-8")
        return text

    def __str__(self) -> str:
        return tables(self)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each rank's device."""
        return tuple(device.name for device in self.devices)

    def rank(self, device: int | str) -> int:
        """Return the rank of a device given by rank or name.

        Raises:
            ProfileError: If there is none.
        """
        if isinstance(device, int) and 0 <= device < len(self.devices):
            return device
        if device in self.names:
            return self.names.index(str(device))
        hint = did_you_mean(device, self.names)
        raise ProfileError(f"{shown(device)} is not one of its {len(self.devices)} devices{hint}")

    def link(self, source: int, target: int) -> Link | None:
        """Return the link from one rank to another, or `None` if they cannot talk."""
        return self._links.get((self.names[source], self.names[target]))

    @property
    def _links(self) -> dict[tuple[str, str], Link]:
        found: dict[tuple[str, str], Link] | None = self.__dict__.get("_links_by_pair")
        if found is None:
            found = {(link.source, link.target): link for link in self.links}
            object.__setattr__(self, "_links_by_pair", found)
        return found

    def missing(self) -> list[str]:
        """Return what planning needs and this profile does not say; profiles of one rank lack some.

        Every device needs timings of every block, in every power mode.
        """
        lacking = []
        for device in self.devices:
            for mode in device.modes:
                key = mode.timing or device.timing
                blocks = [b.name for b in self.model.blocks if key not in b.timings]
                if blocks:
                    listed = ", ".join(blocks[:3]) + (", ..." if len(blocks) > 3 else "")
                    where = f" in mode {mode.name}" if mode.timing else ""
                    lacking.append(
                        f"{device.name} has no timings{where} of {len(blocks)} blocks ({listed}): "
                        f'add the key {shown(key)} to their timings, or give it another "timing"'
                    )
        return lacking

    @classmethod
    def merge(cls, parts: Sequence[Profile], links: Sequence[Link] = ()) -> Profile:
        """Return one profile of what several devices have measured, each for itself.

        Args:
            parts: One per rank, in the order of ranks; each has its own device (first) and timings.
                Everything else that several say has to be the same.
            links: Between any of the devices, beside those that the parts have.

        Raises:
            ProfileError: With every contradiction.
        """
        fields, problems = merged(parts)
        refuse(problems, error=ProfileError)
        fields["links"] = (*fields["links"], *links)
        return cls(**fields)


def _checked(tree: object, problems: list[Problem], origin: Origin | None) -> Profile:
    """Return the profile of a tree that nobody has looked at yet."""
    parts, found = read_profile(tree)
    refuse([*problems, *found], origin, ProfileError)
    profile: Profile = object.__new__(Profile)  # not `Profile(...)`, which would check it again
    for name, value in {**parts, "version": VERSION}.items():
        object.__setattr__(profile, name, value)
    return profile
