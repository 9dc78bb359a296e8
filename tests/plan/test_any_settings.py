"""Whatever is given as an objective or as groups: it is one, or a `PlanError` says why not."""

from __future__ import annotations

import json
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_edge.errors import PlanError, ProfileError
from lightning_edge.plan.groups import plan_from_groups
from lightning_edge.plan.objective import Objective
from lightning_edge.plan.profile import Profile
from tests.plan.profiles import written

KEYS = st.sampled_from(
    ["minimize", "max_step_s", "max_slowdown", "battery_j", "steps", "keep", "exclude", "across"]
    + ["groups", "devices", "parallelism", "micro_batches", "split_points", "power_modes", "a", ""]
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
    | st.sampled_from(["time", "energy", "auto", "data", "pipeline", "orin", "pi", "h.1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


@settings(max_examples=60)
@given(ANYTHING, st.dictionaries(st.sampled_from(["groups", "micro_batches"]), ANYTHING))
def test_any_value_is_an_objective_or_a_plan_error(value: Any, more: dict[str, Any]) -> None:
    try:
        Objective.parse(value, **more)
    except PlanError as error:
        str(error).encode("utf-8", "backslashreplace")


@settings(max_examples=60)
@given(ANYTHING, ANYTHING, ANYTHING, ANYTHING)
def test_any_values_are_groups_or_a_plan_error(
    groups: Any, across: Any, micro_batches: Any, split_points: Any
) -> None:
    names, cuts = ["orin", "pi"], ["h.0", "h.1"]
    try:
        plan_from_groups(groups, across, names, cuts, [1, 1, 1], micro_batches, split_points)
    except PlanError as error:
        str(error).encode("utf-8", "backslashreplace")


SNIPPETS = st.sampled_from(
    ["devices", ": ", "- ", "\n", "  ", "[", "]", "{", "}", ",", "&a", "*a", "!!int", "'", '"']
    + ["0", "1.5", ".nan", "-.inf", "1e999", "9" * 400, "~", "---", "\t", "\x00", "\ud83d", "GiB"]
)


@settings(max_examples=25)
@given(st.data(), st.booleans())
def test_a_damaged_profile_is_a_profile_or_a_profile_error(
    data: st.DataObject, as_json: bool
) -> None:
    text = list(json.dumps(yaml.safe_load(written())) if as_json else written())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(text)))
        text[place : place + data.draw(st.integers(0, 3))] = data.draw(SNIPPETS)
    read = Profile.from_json if as_json else _from_yaml
    try:
        read("".join(text))
    except ProfileError as error:
        str(error).encode("utf-8", "backslashreplace")


def _from_yaml(text: str) -> Profile:
    from lightning_edge.plan import parsing

    tree, _, _ = parsing.parse_yaml(text, "x", parsing.PROFILE)
    return Profile.from_mapping(tree)
