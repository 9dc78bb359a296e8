"""What to plan for: what is to be least, and what must hold meanwhile.

objective="time"
objective={
    "minimize": "energy",         # time, energy or edp (energy times time)
    "max_step_s": 2.0,            # a deadline for each step, or
    "max_slowdown": 1.1,          # at most 1.1 times the fastest plan's step
    "power_caps_w": {"pi": 6},    # watts of a device on average over a step
    "battery_j": {"laptop": 9e4}, # joules that a device may spend ...
    "steps": 5000,                # ... in so many steps
    "keep": ["pi"],               # devices that must take part; likewise exclude
    "first_stage_on": ["laptop"], # who may see the inputs first
    "power_modes": "keep",        # "auto" may change them
}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lightning_edge.plan import values
from lightning_edge.plan.fields import Fields
from lightning_edge.plan.frozen import FrozenMap
from lightning_edge.plan.problems import Problem, did_you_mean, refuse, shown

__all__ = ["Objective"]

Named = int | str
"""A device, by rank or name."""
GOALS = ("time", "energy", "edp")


@dataclass(frozen=True)
class Objective:
    """What to plan for.

    Attributes:
        minimize: Seconds per step, joules per step, or their product.
        max_step_s: Longest step allowed.
        max_slowdown: Longest step allowed, as a multiple of the fastest plan's.
        power_caps_w: Device -> most watts on average over a step, beside those in the profile.
        battery_j: Device -> joules it may spend, instead of what the profile says is left.
        steps: Number of steps that batteries have to last; None does not limit them.
        keep: Devices that must take part.
        exclude: Devices that must not.
        first_stage_on: Devices that may be in the first stage; empty for any.
        split_points: Blocks at which stages begin, or "auto".
        groups: As `EdgeCollabStrategy(groups=)`.
        across: As `EdgeCollabStrategy(across=)`.
        micro_batches: How many, or "auto".
        power_modes: "auto" chooses them, "keep" leaves devices in the mode they are in.
    """

    minimize: Literal["time", "energy", "edp"] = "time"
    max_step_s: float | None = None
    max_slowdown: float | None = None
    power_caps_w: Mapping[Named, float] = field(default_factory=FrozenMap)
    battery_j: Mapping[Named, float] = field(default_factory=FrozenMap)
    steps: int | None = None
    keep: tuple[Named, ...] = ()
    exclude: tuple[Named, ...] = ()
    first_stage_on: tuple[Named, ...] = ()
    split_points: tuple[str, ...] | Literal["auto"] = "auto"
    groups: Mapping[str, Any] | None = None
    across: str = "auto"
    micro_batches: int | Literal["auto"] = "auto"
    power_modes: Literal["auto", "keep"] = "auto"

    @classmethod
    def parse(cls, given: object, **settings: object) -> Objective:
        """Return the objective that a name, a mapping or an `Objective` means.

        Args:
            given: As `EdgeCollabStrategy(objective=)`.
            settings: More keys, such as `groups`; "auto" and None in them say nothing.

        Raises:
            PlanError: With everything that is wrong.
        """
        if isinstance(given, Objective):
            given = {name: value for name, value in vars(given).items() if value is not None}
        if isinstance(given, str):
            given = {"minimize": given}
        problems: list[Problem] = []
        if not isinstance(given, Mapping):
            text = f"must be one of {', '.join(GOALS)} or a mapping, found {shown(given)}"
            refuse([Problem(("objective",), text)])
        assert isinstance(given, Mapping)
        said = {key: value for key, value in settings.items() if value is not None}
        tree = {**given, **{key: v for key, v in said.items() if key not in given or v != "auto"}}
        found = _read(Fields(("objective",), tree, "an objective", problems))
        refuse(problems)
        return cls(**found)


def _read(fields: Fields) -> dict[str, Any]:
    found: dict[str, Any] = {
        "minimize": _one_of(fields, "minimize", GOALS),
        "max_step_s": fields.number("max_step_s", None, positive=True),
        "max_slowdown": fields.number("max_slowdown", None, least=1.0),
        "power_caps_w": _by_device(fields, "power_caps_w"),
        "battery_j": _by_device(fields, "battery_j"),
        "steps": fields.whole("steps", None, positive=True),
        "keep": _devices(fields, "keep"),
        "exclude": _devices(fields, "exclude"),
        "first_stage_on": _devices(fields, "first_stage_on"),
        "groups": fields.get("groups", None),
        "across": fields.get("across", "auto"),
        "power_modes": _one_of(fields, "power_modes", ("auto", "keep")),
    }
    points = fields.get("split_points", "auto")
    found["split_points"] = tuple(points) if values.is_list(points) else points
    count = values.count(
        (*fields.path, "micro_batches"), fields.get("micro_batches", "auto"), "micro_batches"
    )
    if isinstance(count, Problem):
        fields.problems.append(count)
    found["micro_batches"] = "auto" if count is None else count
    if found["battery_j"] and found["steps"] is None:
        text = "battery_j needs steps: in how many steps may the joules be spent?"
        fields.problems.append(Problem(fields.path, text))
    if found["max_step_s"] is not None and found["max_slowdown"] is not None:
        text = "max_step_s and max_slowdown both limit the step: give one"
        fields.problems.append(Problem(fields.path, text))
    fields.close()
    return found


def _one_of(fields: Fields, key: str, known: Sequence[str]) -> str:
    given = fields.get(key, known[0])
    if isinstance(given, str) and given in known:
        return given
    text = f"must be one of {', '.join(known)}, found {shown(given)}{did_you_mean(given, known)}"
    fields.problems.append(Problem((*fields.path, key), text))
    return known[0]


def _devices(fields: Fields, key: str) -> tuple[Named, ...]:
    given = fields.get(key, ())
    listed = given if values.is_list(given) else [given]
    found = []
    for index, item in enumerate(listed):
        device = values.device((*fields.path, key, index), item)
        if isinstance(device, Problem):
            fields.problems.append(device)
        else:
            found.append(device)
    return tuple(found)


def _by_device(fields: Fields, key: str) -> FrozenMap[Named, float]:
    given = fields.get(key, FrozenMap())
    path = (*fields.path, key)
    if not isinstance(given, Mapping):
        text = f"must be a mapping of devices to numbers, found {shown(given)}"
        fields.problems.append(Problem(path, text))
        return FrozenMap()
    found: dict[Named, float] = {}
    for name, value in given.items():
        device = values.device(path, name)
        if isinstance(device, Problem):
            fields.problems.append(device)
        else:
            found[device] = fields.as_number((*path, str(name)), value, None, 0.0, True)
    return FrozenMap(found)
