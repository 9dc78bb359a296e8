from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_edge.errors import PlanError
from lightning_edge.plan import Pipeline, Plan, Stage

GOOD = {"pipelines": [{"stages": [{"devices": [0]}, {"start": "b", "devices": [1]}]}]}


def problems(tree: object) -> tuple[str, ...]:
    with pytest.raises(PlanError) as caught:
        Plan.from_mapping(tree)  # type: ignore[arg-type]
    return caught.value.problems


def stages(*found: object, **more: object) -> dict[str, Any]:
    return {"pipelines": [{"stages": list(found)}], **more}


FIRST = "pipelines[0].stages[0]"
SECOND = "pipelines[0].stages[1]"


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (3, "a plan is a mapping with the key pipelines, found 3"),
        ([GOOD], "a plan is a mapping with the key pipelines, found [{"),
        (None, "a plan is a mapping with the key pipelines, found nothing"),
        ({}, 'the key pipelines is missing: write "pipelines: [{stages: [...]}]"'),
        ({"pipelines": []}, "pipelines: a plan needs at least one pipeline: write"),
        ({"pipelines": {"stages": []}}, "pipelines: must be a list of pipelines, found {'stages'"),
        ({"pipelines": "ab"}, 'pipelines: must be a list of pipelines, found "ab"'),
        (
            {"pipelines": [[]]},
            "pipelines[0]: a pipeline is a mapping with the key stages, found []",
        ),
        ({"pipelines": [{}]}, "pipelines[0]: the key stages is missing"),
        (stages(), "pipelines[0].stages: a pipeline needs at least one stage"),
        (stages(7), f"{FIRST}: a stage is a mapping with the key devices, found 7"),
        (stages({}), f"{FIRST}: the key devices is missing"),
        (stages({"devices": []}), f"{FIRST}.devices: must name at least one device"),
        (stages({"devices": {}}), f"{FIRST}.devices: must name at least one device"),
        (stages({"devices": 0}), f"{FIRST}.devices: must be devices such as"),
        (
            stages({"devices": [0, 0]}),
            f"{FIRST}.devices[1]: device 0 is listed twice",
        ),
        (
            stages({"devices": {0: 0.5, "0": 0.5}}),
            f'{FIRST}.devices["0"]: device 0 is listed twice',
        ),
        (
            stages({"devices": {0: 0.5, 1: 0.6}}),
            f"{FIRST}.devices: shares add up to 1.1, not 1; write {{0: 0.4545, 1: 0.5455}}",
        ),
        (
            stages({"devices": {0: 0.333, "a": 0.333, 2: 0.333}}),
            f"{FIRST}.devices: shares add up to 0.999, not 1; for equal shares write [0, a, 2]",
        ),
        (
            stages({"devices": {0: 0, 1: 0}}),
            f"{FIRST}.devices: shares add up to 0, not 1; give one of them a share above 0",
        ),
        (
            stages({"devices": {0: "x"}}),
            f'{FIRST}.devices[0]: a share is a number from 0 to 1, found "x"',
        ),
        (stages({"devices": [True]}), f"{FIRST}.devices[0]: True is not a device"),
        (
            stages({"devices": [0], "start": "b"}),
            f"{FIRST}.start: the first stage starts at the model's first module: remove start: ",
        ),
        (stages({"devices": [0]}, {"devices": [1]}), f"{SECOND}: the key start is missing"),
        (
            stages({"devices": [0]}, {"devices": [1], "start": 5}),
            f"{SECOND}.start: must name a sub-module",
        ),
        (
            stages(*({"devices": [i], **({"start": "b"} if i else {})} for i in range(3))),
            'pipelines[0].stages[2].start: an earlier stage starts at "b" already',
        ),
        (
            stages({"devices": [0, 1]}, {"devices": [1], "start": "b"}),
            f"{SECOND}.devices: device 1 is in {FIRST} already: a device works in exactly one",
        ),
        (
            {"pipelines": [*GOOD["pipelines"], {"stages": [{"devices": [1]}]}]},
            f"pipelines[1].stages[0].devices: device 1 is in {SECOND} already",
        ),
        (
            stages({"devices": [0], "paralelism": "data"}),
            f'{FIRST}.paralelism: "paralelism" is not a key here; did you mean "parallelism"? '
            "(known: checkpoint, devices, in_flight, parallelism, start)",
        ),
        (stages({"devices": [0], 3: 4}), f"{FIRST}: 3 is not a key here"),
        (
            stages({"devices": [0], "parallelism": "Data"}),
            f'{FIRST}.parallelism: parallelism is one of data, tensor, sequence, found "Data"; did '
            'you mean "data"?',
        ),
        (
            stages({"devices": [0], "checkpoint": "yes"}),
            f'{FIRST}.checkpoint: must be true or false, found "yes"',
        ),
        (
            stages({"devices": [0], "in_flight": 0}),
            f"{FIRST}.in_flight: in-flight depth is a whole",
        ),
        (
            stages(
                {"devices": [0], "in_flight": 1}, {"devices": [1], "start": "b", "in_flight": 2}
            ),
            f"{SECOND}.in_flight: 2 cannot run, as {FIRST} keeps 1 in flight and both would wait "
            "for each other: write 1 or less here, or 2 there",
        ),
        (
            {"pipelines": [{**GOOD["pipelines"][0], "share": 0.5}]},
            "pipelines: the shares of the pipelines add up to 0.5, not 1; write 1.0",
        ),
        (
            {"pipelines": [{**GOOD["pipelines"][0], "share": "all"}]},
            'pipelines[0].share: a share is a number from 0 to 1, found "all"',
        ),
        (
            {**GOOD, "micro_batches": 0},
            "micro_batches: the number of micro-batches is a whole number",
        ),
        ({**GOOD, "power_modes": "15W"}, "power_modes: must be power modes such as {0: 15W}"),
        (
            {**GOOD, "power_modes": {0: True}},
            'power_modes[0]: a power mode is a name such as "15W"',
        ),
        ({**GOOD, "power_modes": {0: "a", "0": "b"}}, 'power_modes["0"]: device 0 is listed twice'),
        (
            {**GOOD, "micro_batchs": 4},
            'micro_batchs: "micro_batchs" is not a key here; did you mean',
        ),
        (
            {"stages": [{"devices": [0]}]},
            'stages: stages are part of a pipeline: write "pipelines: [{stages: [...]}]"',
        ),
    ],
)
def test_each_problem_alone(tree: object, expected: str) -> None:
    (found,) = problems(tree)
    assert found.startswith(expected)


def test_all_problems_at_once() -> None:
    tree = {
        "pipelines": [
            {
                "share": "half",
                "stages": [
                    {"start": "a", "devices": {0: 0.5, 1: 0.4}, "in_fligth": 3},
                    {"devices": {0: 1.0}, "in_flight": "lots"},
                    {"start": "b", "devices": {True: 1.0}, "parallelism": "tensors"},
                ],
            },
            [],
        ],
        "micro_batches": -1,
        "power_modes": {None: None},
        "objective": "time",
    }
    found = problems(tree)
    assert [text.partition(": ")[0] for text in found] == [
        "objective",
        "micro_batches",
        "pipelines[0].share",
        f"{FIRST}.in_fligth",
        f"{FIRST}.start",
        f"{FIRST}.devices",
        SECOND,
        f"{SECOND}.in_flight",
        "pipelines[0].stages[2].devices",
        "pipelines[0].stages[2].parallelism",
        "pipelines[1]",
        f"{SECOND}.devices",
        "power_modes",
        "power_modes",
    ]


def test_python_and_mappings_report_the_same() -> None:
    wrong = [Stage(5), Stage({0: 0.7}, parallelism="x"), "stage"]  # type: ignore[arg-type]
    with pytest.raises(PlanError) as caught:
        Plan([Pipeline(wrong, "s"), 4], 0, 7)  # type: ignore[arg-type, list-item]
    trees = [{"devices": 5}, {"devices": {0: 0.7}, "parallelism": "x"}, "stage"]
    tree = {"pipelines": [{"stages": trees, "share": "s"}, 4], "micro_batches": 0, "power_modes": 7}
    assert caught.value.problems == problems(tree)


def test_mixed_pipeline_shares_take_equal_ones_for_those_not_given() -> None:
    one, other = ({"stages": [{"devices": [rank]}]} for rank in (0, 1))
    Plan.from_mapping({"pipelines": [{**one, "share": 0.5}, other]})
    (found,) = problems({"pipelines": [{**one, "share": 0.75}, other]})
    assert "add up to 1.25, not 1; write 0.6, 0.4" in found


def test_a_container_that_holds_itself() -> None:
    endless: dict[str, Any] = {}
    endless["pipelines"] = [endless]
    endless["power_modes"] = endless
    assert len(problems(endless)) >= 2
    loop: list[Any] = []
    loop.append(loop)
    assert problems({"pipelines": loop})
    with pytest.raises(PlanError):
        Plan(loop)


class Rude:
    """Cannot even be printed."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


@pytest.mark.parametrize(
    "value", [Rude(), object, pytest.param(10**5000, id="huge"), frozenset({1})]
)
def test_values_that_are_hard_to_print(value: object) -> None:
    places = [{"devices": value}, {"devices": [value], "start": value, "in_flight": value}, value]
    for tree in (value, {"pipelines": value}, *(stages(place) for place in places)):
        assert "".join(problems(tree)).encode()
    assert problems(stages({"devices": [0]}, power_modes=value, micro_batches=value))


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=3)
    | st.sampled_from(["auto", "data", "tensor", 1j, object])
)
KEYS = st.sampled_from(
    ["pipelines", "stages", "devices", "share", "start", "parallelism", "in_flight"]
    + ["micro_batches", "power_modes", "stage", 0, 1, "0", "orin"]
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(
            KEYS | SCALARS.filter(lambda s: not isinstance(s, Rude)), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@st.composite
def nearly_plans(draw: st.DrawFn) -> object:
    """The shape of a plan, with anything at each place."""

    def maybe(usual: st.SearchStrategy[Any]) -> Any:
        return draw(st.one_of(usual, usual, usual, ANYTHING))

    def stage(index: int) -> Any:
        return maybe(
            st.fixed_dictionaries(
                {"devices": st.just([index]) | st.dictionaries(st.integers(0, 5), st.floats(0, 1))},
                optional={
                    "start": st.just(f"b{index}") | ANYTHING,
                    "parallelism": st.just("data") | ANYTHING,
                    "in_flight": st.integers(1, 3) | ANYTHING,
                },
            )
        )

    found = [stage(index) for index in range(draw(st.integers(0, 3)))]
    pipeline = maybe(st.just({"stages": found, "share": maybe(st.none())}))
    tree = {
        "pipelines": maybe(st.just([pipeline])),
        "micro_batches": maybe(st.just("auto")),
        "power_modes": maybe(st.just({})),
    }
    return maybe(st.just(tree))


def plan_or_problems(build: Callable[[], Plan]) -> Plan | tuple[str, ...]:
    """What comes out of building a plan; any other error than `PlanError` fails the test."""
    try:
        return build()
    except PlanError as error:
        str(error).encode()
        return error.problems


@settings(max_examples=40)
@given(nearly_plans() | ANYTHING)
def test_anything_is_a_plan_or_a_plan_error(tree: Any) -> None:
    found = plan_or_problems(lambda: Plan.from_mapping(tree))
    assert found
    if isinstance(found, Plan):
        assert Plan.from_mapping(found.to_mapping()) == found
        assert str(found).encode()


@settings(max_examples=40)
@given(ANYTHING, ANYTHING, ANYTHING, ANYTHING)
def test_constructors_raise_plan_errors_only(a: Any, b: Any, c: Any, d: Any) -> None:
    for build in (
        lambda: Plan(a, b, c),
        lambda: Plan([Pipeline(a, b)], c, d),
        lambda: Plan([Pipeline([Stage(a, None, b, c), Stage([7], d)])]),
        lambda: Plan([Pipeline([a, b])]),
        lambda: Plan([a, Pipeline([Stage([0])])]),
    ):
        found = plan_or_problems(build)
        assert found
        if isinstance(found, Plan):
            assert Plan.from_mapping(found.to_mapping()) == found
