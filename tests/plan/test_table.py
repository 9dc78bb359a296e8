from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from lightning_edge.plan import Pipeline, Plan, Stage
from lightning_edge.plan.table import table
from tests.plan.plans import free_plans


def example() -> Plan:
    stages = [Stage({0: 0.625, 1: 0.375}), Stage([2], "model.blocks.5")]
    return Plan([Pipeline(stages)], 8, {0: "15W"})


def test_a_plan_prints_as_a_table() -> None:
    assert str(example().resolve(["a", "b", "c"])).splitlines() == [
        "2 stages on 3 devices; 8 micro-batches",
        "",
        "| stage | start          | devices                | parallelism | in flight |",
        "|-------|----------------|------------------------|-------------|-----------|",
        "| 0     | (first module) | 0 62.5% (15W), 1 37.5% | data        | 3         |",
        "| 1     | model.blocks.5 | 2 100%                 | data        | 1         |",
    ]


def test_names_and_devices_without_work() -> None:
    text = table(example(), ["orin", "mac", "pi", "phone", "tv"])
    assert "; without work: 3 phone, 4 tv" in text
    assert "| 2 pi 100% " in text
    assert "| auto " in text


def test_several_pipelines() -> None:
    plan = Plan([Pipeline([Stage([0])], 0.7), Pipeline([Stage([1])], 0.3)])
    text = str(plan)
    assert text.startswith(
        "2 pipelines on 2 devices; micro-batches: auto\n\npipeline 0: 70% of the"
    )
    assert "\n\npipeline 1: 30% of the rows\n\n| stage" in text


def test_many_devices_stand_one_below_the_other() -> None:
    lines = table(Plan([Pipeline([Stage([f"device-{i}" for i in range(6)])])])).splitlines()
    assert len(lines) == 2 + 2 + 6
    assert lines[5].split("|")[3].strip() == "device-1 16.7%,"


def test_markup_in_names_is_text() -> None:
    assert "[bold]x 100%" in str(Plan([Pipeline([Stage(["[bold]x"])])]))


@settings(max_examples=40)
@given(free_plans(), st.integers(60, 120))
def test_nothing_is_cut_off_at_any_width(plan: Plan, width: int) -> None:
    text = table(plan, width=width)
    assert "\x1b" not in text, "no colours"
    grid = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line == line.rstrip() and cell_len(line) <= width for line in grid)
    # Folded or not, every letter of the plan is there.
    letters = Counter("".join(grid))
    for pipeline in plan.pipelines:
        for stage in pipeline.stages:
            cells = [stage.start or "(firstmodule)", stage.parallelism, str(stage.in_flight)]
            for device, share in stage.devices.items():
                cells += [
                    str(device),
                    f"{round(100 * share, 1):g}%",
                    plan.power_modes.get(device, ""),
                ]
            letters.subtract("".join("".join(cells).split()))
    assert min(letters.values()) >= 0


def test_checkpointing_has_a_column_where_it_is_used() -> None:
    plan = Plan([Pipeline([Stage([0], checkpoint=True), Stage([1], "b")])])
    column = [line.split("|")[-2].strip(" -") for line in table(plan).splitlines()[2:]]
    assert column == ["checkpoint", "", "yes", "no"]
    assert "checkpoint" not in table(Plan([Pipeline([Stage([0])])]))
