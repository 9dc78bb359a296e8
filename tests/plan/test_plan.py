from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings

from lightning_edge.errors import PlanError, UnsupportedError
from lightning_edge.plan import Pipeline, Plan, Stage
from tests.plan.plans import free_plans

DESIGN = """\
pipelines:
  - share: 1.0                      # of the batch's rows
    stages:
      - devices: {0: 0.625, 1: 0.375}
      - start: model.blocks.5
        devices: {2: 1.0}
        parallelism: data
        in_flight: 3
micro_batches: 8
power_modes: {0: 15W}
"""


def two_stages(**changes: object) -> Plan:
    stages = [Stage({0: 0.625, 1: 0.375}), Stage([2], "model.blocks.5", in_flight=3)]
    return replace(Plan([Pipeline(stages, 1.0)], 8, {0: "15W"}), **changes)


def hybrid() -> Plan:
    return Plan([Pipeline([Stage({"orin": 0.7, 2: 0.3}), Stage(["pi"], "b")])])


def test_the_yaml_form_is_the_one_that_was_fixed(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(DESIGN)
    assert Plan.from_yaml(file) == two_stages()


def test_defaults_of_everything_but_stages_and_devices() -> None:
    plan = Plan.from_mapping({"pipelines": [{"stages": [{"devices": [3, 1]}]}]})
    assert plan == Plan([Pipeline([Stage([3, 1])])])
    (stage,) = plan.stages
    assert (stage.start, stage.parallelism, stage.in_flight) == (None, "data", "auto")
    assert (plan.micro_batches, plan.power_modes, plan.pipelines[0].share) == ("auto", {}, None)


def test_a_list_of_devices_means_equal_shares_in_that_order() -> None:
    assert list(Stage([4, "pi", 2, 0]).devices.items()) == [
        (4, 0.25),
        ("pi", 0.25),
        (2, 0.25),
        (0, 0.25),
    ]


def test_texts_of_digits_are_ranks() -> None:
    assert Stage({"0": 1.0}) == Stage([0])
    assert Plan([Pipeline([Stage([7])])], power_modes={"7": 0}).power_modes == {7: "0"}


def test_numbers_of_other_libraries_become_plain_ones() -> None:
    stage = Stage({np.int64(0): np.float32(0.5), 1: np.float64(0.5)}, in_flight=np.int32(2))
    plan = Plan([Pipeline([stage], np.float64(1))], np.int64(4))
    kept = [*plan.stages[0].devices.items(), plan.stages[0].in_flight, plan.micro_batches]
    assert [type(value) for pair in kept[:2] for value in pair] == [int, float, int, float]
    assert type(kept[2]) is int
    assert type(kept[3]) is int
    assert yaml.safe_load(plan.to_yaml())["micro_batches"] == 4


def test_stages_and_pipelines_may_be_given_as_mappings() -> None:
    stages = [{"devices": [0]}, {"devices": [1], "start": "b"}]
    expected = Plan([Pipeline([Stage([0]), Stage([1], "b")])])
    assert Plan([{"stages": stages}]) == expected  # type: ignore[list-item]
    assert Plan([Pipeline(stages)]) == expected  # type: ignore[arg-type]


@settings(max_examples=40)
@given(free_plans())
def test_every_plan_survives_yaml_json_pickle_copy_and_repr(plan: Plan) -> None:
    read = yaml.safe_load(plan.to_yaml())
    assert Plan.from_mapping(read) == plan
    assert Plan.from_mapping(plan.to_mapping()) == plan
    assert Plan.from_json(plan.to_json()) == plan
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert copy.deepcopy(plan) == plan
    assert eval(repr(plan)) == plan
    for other in (Plan.from_json(plan.to_json()), Plan.from_mapping(read)):
        assert hash(other) == hash(plan)
        for mine, theirs in zip(plan.pipelines, other.pipelines, strict=True):
            for stage, back in zip(mine.stages, theirs.stages, strict=True):
                assert list(stage.devices) == list(back.devices), "the order of rows is kept"


@settings(max_examples=40)
@given(free_plans())
def test_every_plan_survives_a_file(tmp_path_factory: pytest.TempPathFactory, plan: Plan) -> None:
    folder = tmp_path_factory.getbasetemp()
    assert plan.to_yaml(folder / "plan.yaml") == (folder / "plan.yaml").read_text("utf-8")
    assert Plan.from_yaml(folder / "plan.yaml") == plan
    (folder / "plan.json").write_text(plan.to_json(), "utf-8")
    assert Plan.from_yaml(folder / "plan.json") == plan


def test_plans_cannot_be_changed() -> None:
    plan = two_stages()
    with pytest.raises(FrozenInstanceError):
        plan.micro_batches = 4  # type: ignore[misc]
    with pytest.raises(TypeError):
        plan.stages[0].devices[0] = 1.0  # type: ignore[index]


def test_the_order_of_devices_counts_and_that_of_power_modes_does_not() -> None:
    assert Stage([0, 1]) != Stage([1, 0])
    assert Stage([0, 1]).devices == {1: 0.5, 0: 0.5}, "against a plain mapping it does not"
    stages = [Pipeline([Stage([0, 1])])]
    one, other = (Plan(stages, 4, dict(modes)) for modes in (["0a", "1b"], ["1b", "0a"]))
    assert (one, hash(one), one.to_json()) == (other, hash(other), other.to_json())


def test_changing_what_a_plan_was_made_from_does_not_change_it() -> None:
    shares = {0: 0.5, 1: 0.5}
    plan = Plan([Pipeline([Stage(shares)])])
    shares[0] = 7.0
    assert plan.stages[0].devices[0] == 0.5


def test_who_is_where() -> None:
    plan = two_stages()
    assert [plan.stage_of(rank) for rank in range(4)] == [0, 0, 1, None]
    assert [plan.ranks(stage) for stage in range(2)] == [(0, 1), (2,)]


def test_resolve_replaces_names_and_auto() -> None:
    plan = replace(hybrid(), power_modes={"pi": "low"}).resolve(["pi", "orin", "mac", "idle"])
    assert plan == Plan(
        [Pipeline([Stage({1: 0.7, 2: 0.3}, in_flight=3), Stage([0], "b", in_flight=1)])],
        8,
        {0: "low"},
    )
    assert plan.resolve(["a", "b", "c"]) == plan


def test_resolve_keeps_devices_without_work() -> None:
    plan = Plan([Pipeline([Stage({0: 1.0, 1: 0.0})])]).resolve(["a", "b", "c"])
    assert plan.stage_of(1) == 0
    assert plan.stage_of(2) is None
    assert plan.micro_batches == 1


def test_resolve_reports_all_devices_that_are_not_there() -> None:
    plan = Plan(
        [Pipeline([Stage(["Orin", 2]), Stage(["pie", 9], "b"), Stage(["twin"], "c")])],
        power_modes={"pi": "low", 3: "high"},
    )
    with pytest.raises(PlanError) as caught:
        plan.resolve(["orin", "mac", "pi", "pi", "Orin"])
    assert caught.value.problems == (
        'pipelines[0].stages[1].devices.pie: "pie" is not a device that takes part; did you mean '
        '"pi"? (present: 0 (orin), 1 (mac), 2 (pi), 3 (pi), 4 (Orin))',
        "pipelines[0].stages[1].devices[9]: there is no rank 9: 5 devices take part (ranks 0 to 4)",
        'pipelines[0].stages[2].devices.twin: "twin" is not a device that takes part (present: '
        "0 (orin), 1 (mac), 2 (pi), 3 (pi), 4 (Orin))",
        'power_modes.pi: ranks 2, 3 are all called "pi": write the rank',
    )


def test_resolve_sees_that_a_name_and_a_rank_are_one_device() -> None:
    with pytest.raises(PlanError, match=r"this is rank 1 \(orin\) again, which .*devices\.orin"):
        Plan([Pipeline([Stage(["orin"]), Stage([1], "b")])]).resolve(["pi", "orin"])


def test_check_accepts_a_plan_that_fits() -> None:
    two_stages().check([f"model.blocks.{i}" for i in range(8)], 3)
    two_stages().check()
    hybrid().check(["a", "b"], 3)


def test_check_reports_everything_at_once() -> None:
    stages = [Stage([0]), Stage([5], "c"), Stage([6], "a"), Stage([2], "bb", parallelism="tensor")]
    plan = Plan([Pipeline(stages), Pipeline([Stage([9])])], power_modes={8: "x"})
    with pytest.raises(PlanError) as caught:
        plan.check(["a", "b", "c"], 6)
    assert caught.value.problems == (
        "pipelines: 2 pipelines side by side are not supported yet: write one",
        'pipelines[0].stages[3].parallelism: "tensor" is not supported yet: write "data"',
        'pipelines[0].stages[2].start: "a" does not run after "c" of pipelines[0].stages[1].start: '
        "list starts in execution order",
        'pipelines[0].stages[3].start: "bb" is not a cut point; nearest: "b" '
        '(the model has 3, from "a" to "c")',
        "pipelines[0].stages[2].devices[6]: there is no rank 6: 6 devices take part (ranks 0 to 5)",
        "pipelines[1].stages[0].devices[9]: there is no rank 9: 6 devices take part (ranks 0 to 5)",
        "power_modes[8]: there is no rank 8: 6 devices take part (ranks 0 to 5)",
    )


def test_resolve_with_the_cut_points_reports_everything_at_once() -> None:
    plan = Plan([Pipeline([Stage(["orin"]), Stage(["mac"], "x", parallelism="sequence")])])
    with pytest.raises(PlanError) as caught:
        plan.resolve(["pi"], ["a"])
    assert [problem.partition(": ")[0] for problem in caught.value.problems] == [
        "pipelines[0].stages[1].parallelism",
        "pipelines[0].stages[1].start",
        "pipelines[0].stages[0].devices.orin",
        "pipelines[0].stages[1].devices.mac",
    ]


def test_check_of_a_model_that_cannot_be_cut() -> None:
    with pytest.raises(PlanError, match="this model has none, so only a plan of one stage"):
        two_stages().check([])
    Plan([Pipeline([Stage([0, 1])])]).check([], 2)


def test_several_pipelines_have_no_single_list_of_stages() -> None:
    plan = Plan([Pipeline([Stage([0])]), Pipeline([Stage([1])])])
    with pytest.raises(UnsupportedError, match="2 pipelines side by side are not supported yet"):
        _ = plan.stages


def test_later_problems_still_name_the_line_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(DESIGN)
    plan = Plan.from_yaml(file)
    with pytest.raises(PlanError) as caught:
        plan.check(["model.blocks.4"], 2)
    assert caught.value.source == str(file)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["line 5", "line 6"]
    with pytest.raises(PlanError, match="line 6: .*no rank 2"):
        plan.resolve(["a", "b"])
    with pytest.raises(PlanError, match="line 5: .*not a cut point"):
        plan.resolve(["a", "b", "c"]).check(["x"])


def test_checkpointing_is_kept_in_every_form() -> None:
    plan = Plan([Pipeline([Stage([0], checkpoint=True), Stage([1], "b")])])
    assert plan.to_mapping()["pipelines"][0]["stages"][0]["checkpoint"] is True
    assert "checkpoint" not in plan.to_mapping()["pipelines"][0]["stages"][1]
    assert [stage.checkpoint for stage in plan.resolve(["a", "b"]).stages] == [True, False]
    assert Plan.from_mapping(plan.to_mapping()) == plan
