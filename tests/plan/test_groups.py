from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_edge.errors import PlanError
from lightning_edge.plan import Pipeline, Plan, Stage
from lightning_edge.plan.groups import plan_from_groups

NAMES = ["orin0", "orin1", "pi0", "pi1"]
CUTS = [f"h.{i}" for i in range(6)]
PARAMETERS = [50, 10, 10, 10, 10, 10, 40]

ORINS = {"devices": ["orin0", 1], "parallelism": "data"}
PIS = {"devices": ["pi0", "pi1"], "parallelism": "pipeline"}


def planned(
    groups: Any = None, across: Any = "auto", cuts: int = 6, **more: Any
) -> tuple[Plan, tuple[str, ...]]:
    plan, reasons = plan_from_groups(
        groups, across, NAMES, CUTS[:cuts], PARAMETERS[: cuts + 1], **more
    )
    resolved = plan.resolve(NAMES)
    resolved.check(CUTS[:cuts], len(NAMES))
    return plan, reasons


def stages(plan: Plan) -> list[tuple[str | None, dict[Any, float]]]:
    return [(stage.start, dict(stage.devices)) for stage in plan.stages]


def problems(
    groups: Any = None, across: Any = "auto", cuts: int = 6, **more: Any
) -> tuple[str, ...]:
    with pytest.raises(PlanError) as caught:
        planned(groups, across, cuts, **more)
    return caught.value.problems


def test_nothing_said_is_a_pipeline_balanced_by_parameters() -> None:
    plan, reasons = planned()
    # 50 | 10 10 | 10 10 10 | 40
    assert stages(plan) == [
        (None, {0: 1.0}),
        ("h.0", {1: 1.0}),
        ("h.2", {2: 1.0}),
        ("h.5", {3: 1.0}),
    ]
    assert plan.micro_batches == "auto"
    assert reasons == (
        "a pipeline of 4 stages: each of the 4 devices then holds a part of the model only, and "
        "sends activations instead of the gradients of all parameters",
        "cut into 50, 20, 30, 40 parameters: balanced by parameters as if all devices were equal, "
        "as nothing was measured",
    )


def test_a_model_with_few_cut_points_shares_stages() -> None:
    plan, reasons = planned(cuts=1)
    assert stages(plan) == [(None, {0: 0.5, 1: 0.5}), ("h.0", {2: 0.5, 3: 0.5})]
    assert "no more cut points in the model, so devices share stages" in reasons[0]
    plan, _ = planned(cuts=2)
    assert [len(devices) for _, devices in stages(plan)] == [2, 1, 1]


def test_a_model_that_cannot_be_cut_is_trained_in_data_parallelism() -> None:
    plan, reasons = planned(cuts=0)
    assert stages(plan) == [(None, {0: 0.25, 1: 0.25, 2: 0.25, 3: 0.25})]
    assert reasons == ("data parallelism on 4 devices: the model cannot be cut",)


def test_across_data_without_groups() -> None:
    assert stages(planned(across="data")[0]) == [(None, dict.fromkeys(range(4), 0.25))]


def test_one_device_needs_no_reasons() -> None:
    plan, reasons = plan_from_groups(None, "auto", ["mac"], CUTS, PARAMETERS)
    assert (stages(plan), reasons) == ([(None, {0: 1.0})], ())


@pytest.mark.parametrize("across", ["pipeline", "auto"])
def test_groups_are_segments_of_one_pipeline(across: str) -> None:
    plan, reasons = planned({"orins": ORINS, "pis": PIS}, across, micro_batches=8)
    assert plan == Plan(
        [Pipeline([Stage([0, 1]), Stage([2], "h.3"), Stage([3], "h.5")])],
        8,
    )
    assert ('across is "pipeline"' in reasons[0]) == (across == "auto")
    assert reasons[-1].startswith("cut into 80, 20, 40 parameters: balanced by parameters")


def test_the_order_of_groups_is_the_order_of_the_pipeline() -> None:
    plan, _ = planned({"pis": PIS, "orins": ORINS})
    assert [list(devices) for _, devices in stages(plan)] == [[2], [3], [0, 1]]


def test_auto_groups_work_in_data_parallelism_and_say_so() -> None:
    plan, reasons = planned({"orins": {"devices": [0, 1]}, "pi": {"devices": [2]}}, "pipeline")
    assert [list(devices) for _, devices in stages(plan)] == [[0, 1], [2]]
    assert reasons[0].startswith('group "orins" works in data parallelism: its devices are taken')
    assert reasons[-1] == "without work, as in no group: device 3 (pi1)"


def test_data_groups_across_data_are_one_stage_with_their_shares() -> None:
    shares = {"pi0": 0.75, "pi1": 0.25}
    plan, _ = planned({"orins": ORINS, "pis": {"devices": shares}}, "data")
    assert stages(plan) == [(None, {0: 0.25, 1: 0.25, 2: 0.375, 3: 0.125})]


def test_shares_in_a_group_are_kept() -> None:
    plan, _ = planned({"orins": {"devices": {"orin0": 0.9, 1: 0.1}}, "pis": PIS})
    assert stages(plan)[0] == (None, {0: 0.9, 1: 0.1})


def test_across_data_is_chosen_when_there_are_too_few_cut_points() -> None:
    plan, reasons = planned({"a": {"devices": [0]}, "b": {"devices": [1, 2, 3]}}, cuts=0)
    assert len(plan.stages) == 1
    assert reasons == (
        'across is "data": the model has no cut points, too few for a pipeline of 2 groups',
    )


def test_split_points_are_used_as_they_are() -> None:
    plan, reasons = planned({"orins": ORINS, "pis": PIS}, split_points=["h.0", "h.1"])
    assert [start for start, _ in stages(plan)] == [None, "h.0", "h.1"]
    assert not any("balanced" in reason for reason in reasons)
    plan, reasons = planned(split_points=["h.4"])
    assert stages(plan) == [(None, {0: 0.5, 1: 0.5}), ("h.4", {2: 0.5, 3: 0.5})]
    assert "there are no more cut points asked for, so devices share stages" in reasons[0]
    plan, reasons = planned(split_points=[])
    assert len(plan.stages) == 1
    assert reasons == ("data parallelism on 4 devices: no cut points were asked for",)


@pytest.mark.parametrize(
    ("groups", "more", "expected"),
    [
        (
            {"orins": ORINS, "pis": PIS},
            {"across": "data"},
            'groups.pis.parallelism: "pipeline" with across="data" means pipelines side by side, '
            'which are not supported yet: write "data" here or across="pipeline"',
        ),
        (
            {"a": {"devices": [0], "parallelism": "tensor"}},
            {},
            'groups.a.parallelism: "tensor" is not supported yet: write "data" or "pipeline"',
        ),
        (
            {"a": {"devices": [0], "parallelism": "sequence"}},
            {},
            'groups.a.parallelism: "sequence" is not supported yet: write "data" or "pipeline"',
        ),
        (
            {"a": {"devices": [0], "parallelism": "pipe"}},
            {},
            'groups.a.parallelism: must be one of auto, data, pipeline, tensor, sequence, found "p',
        ),
        (
            {"a": {"devices": {0: 0.5, 1: 0.5}, "parallelism": "pipeline"}},
            {},
            "groups.a.parallelism: each device of a pipeline has all rows: list the devices",
        ),
        (
            {"orins": ORINS, "pis": PIS},
            {"split_points": ["h.3"]},
            "split_points: 1 cut point given, but the groups make 3 stages: 2 cut points needed",
        ),
        (
            None,
            {"split_points": CUTS[:5]},
            "split_points: 5 cut points for 6 stages, but there are only 4 devices",
        ),
        (
            {"all": {"devices": NAMES, "parallelism": "pipeline"}},
            {"cuts": 1},
            "groups: they make 4 stages, but the model has 1 cut point: make groups",
        ),
        ([], {}, "groups: must be groups such as"),
        ({}, {}, "groups: must be groups such as"),
        ({3: ORINS}, {}, "groups: the name of a group is a text, found 3"),
        ({"a": []}, {}, "groups.a: a group is a mapping with the key devices, found []"),
        ({"a": {}}, {}, "groups.a: the key devices is missing"),
        ({"a": {"devices": []}}, {}, "groups.a.devices: must name at least one device"),
        ({"a": {"devices": [7]}}, {}, "groups.a.devices: there is no rank 7: 4 devices take part"),
        (
            {"a": ORINS, "b": ORINS},
            {},
            'groups.b.devices: device 0 (orin0) is in group "a" already',
        ),
        ({"a": {"devices": [0], "shares": 1}}, {}, 'groups.a.shares: "shares" is not a key here'),
        (None, {"across": "pipelin"}, "across: must be one of auto, pipeline, data, found"),
        (None, {"across": 3}, "across: must be one of auto, pipeline, data, found 3"),
        (None, {"split_points": "h.3"}, 'split_points: must be a list of cut points or "auto"'),
        (None, {"split_points": [None]}, "split_points[0]: must name a sub-module such as"),
        (None, {"split_points": ["h.33"]}, 'split_points[0]: "h.33" is not a cut point; nearest:'),
        (None, {"split_points": ["h.3", "h.3"]}, 'split_points[1]: "h.3" does not run after "h.3"'),
        (
            None,
            {"micro_batches": 0},
            "micro_batches: the number of micro-batches is a whole number",
        ),
    ],
)
def test_each_problem(groups: Any, more: dict[str, Any], expected: str) -> None:
    found = problems(groups, **more)
    assert found[0].startswith(expected), found


def test_all_problems_at_once() -> None:
    groups = {
        "orins": {"devices": ["orin0", "orin2"], "paralelism": "data"},
        "pis": {"devices": [0, 3], "parallelism": 7},
    }
    found = problems(groups, "both", micro_batches="many", split_points=["h.9"])
    assert [problem.partition(": ")[0] for problem in found] == [
        "groups.orins.paralelism",
        "groups.orins.devices",
        "groups.pis.devices",
        "groups.pis.parallelism",
        "across",
        "split_points[0]",
        "micro_batches",
    ]


def test_wrong_lengths_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="one entry more than block_names"):
        plan_from_groups(None, "auto", NAMES, CUTS, PARAMETERS[:-1])


@settings(max_examples=40)
@given(st.data())
def test_any_groups_give_a_sound_plan_or_a_plan_error(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 6))
    names = [f"d{rank}" for rank in range(count)]
    left = data.draw(st.permutations(range(count)))
    groups: dict[str, Any] | None = {}
    while left and len(groups) < 3:
        size = data.draw(st.integers(1, len(left)))
        parallelism = data.draw(st.sampled_from(["auto", "data", "pipeline"]))
        groups[f"g{len(groups)}"] = {"devices": left[:size], "parallelism": parallelism}
        left = left[size:]
        if data.draw(st.booleans()):
            break
    groups = data.draw(st.sampled_from([groups, None]))
    cuts = [f"c{i}" for i in range(data.draw(st.integers(0, 6)))]
    loads = data.draw(st.lists(st.integers(0, 99), min_size=len(cuts) + 1, max_size=len(cuts) + 1))
    across = data.draw(st.sampled_from(["auto", "pipeline", "data"]))
    try:
        plan, _ = plan_from_groups(groups, across, names, cuts, loads)
    except PlanError:
        assert groups is not None, "nothing was asked for, so there is always a plan"
        assert len(cuts) < count - 1 or across == "data"
        return
    resolved = plan.resolve(names)
    resolved.check(cuts, count)
    used = (
        set(range(count)) if groups is None else {d for g in groups.values() for d in g["devices"]}
    )
    assert {d for s in range(len(plan.stages)) for d in resolved.ranks(s)} == used
