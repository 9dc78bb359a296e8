"""Hypothesis strategies for plans."""

from __future__ import annotations

from hypothesis import strategies as st

from lightning_edge.plan import Pipeline, Plan, Stage


@st.composite
def shares(draw: st.DrawFn, size: int) -> list[float]:
    """Shares that add up to 1; some may be 0."""
    weights = draw(st.lists(st.integers(0, 1000), min_size=size, max_size=size))
    if not any(weights):
        weights[draw(st.integers(0, size - 1))] = 1
    return [weight / sum(weights) for weight in weights]


@st.composite
def stages(draw: st.DrawFn, most: int = 5) -> list[Stage]:
    """Stages of one to three devices in any order; two ranks at most are left without a stage."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=most))
    devices = draw(st.permutations(range(sum(sizes) + 2)))
    found = []
    first = 0
    for index, size in enumerate(sizes):
        members = devices[first : first + size]
        first += size
        amounts = draw(shares(size))
        start = f"b{index - 1}" if index else None
        found.append(Stage(dict(zip(members, amounts, strict=True)), start))
    return found


@st.composite
def depths(draw: st.DrawFn, number: int) -> list[int]:
    """Depths that never grow along the pipeline."""
    return sorted(draw(st.lists(st.integers(1, 12), min_size=number, max_size=number)))[::-1]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Resolved plans of one pipeline, with ranks up to 19."""
    bare = draw(stages())
    deep = draw(depths(len(bare)))
    automatic = draw(st.booleans())
    pipeline = Pipeline(
        [
            Stage(stage.devices, stage.start, in_flight="auto" if automatic else depth)
            for stage, depth in zip(bare, deep, strict=True)
        ]
    )
    micro_batches = draw(st.sampled_from(["auto", 1, 2, 3, 7, 16]))
    return Plan([pipeline], micro_batches).resolve([f"name{rank}" for rank in range(20)])


@st.composite
def free_plans(draw: st.DrawFn) -> Plan:
    """Any sound plan: also names, several pipelines, other parallelisms, power modes."""
    printable = st.characters(min_codepoint=33, exclude_categories=("C", "Z"))
    awkward = st.sampled_from(
        ["on", "null", "~", "1e3", "0x10", "{", "a: b", "- x", "#", "!x", "="]
    )
    names = awkward | st.text(printable, min_size=1, max_size=8).map(lambda text: f"{text}m")
    devices = names | st.integers(0, 2**31 - 1)
    unused = draw(st.lists(devices, min_size=1, max_size=12, unique=True))
    powered = draw(st.dictionaries(st.sampled_from(unused), names, max_size=3))
    pipelines = []
    while unused and len(pipelines) < 3:
        found: list[Stage] = []
        while unused and len(found) < 4:
            members = [unused.pop() for _ in range(draw(st.integers(1, min(3, len(unused)))))]
            amounts = draw(shares(len(members)))
            found.append(
                Stage(
                    dict(zip(members, amounts, strict=True)),
                    start=f"{draw(names)}.{len(found)}" if found else None,
                    parallelism=draw(st.sampled_from(["data", "tensor", "sequence"])),
                    in_flight=draw(st.sampled_from(["auto", 5])),
                    checkpoint=draw(st.booleans()),
                )
            )
        pipelines.append(found)
    amounts = draw(shares(len(pipelines)))
    equal = draw(st.booleans())
    return Plan(
        [Pipeline(s, None if equal else a) for s, a in zip(pipelines, amounts, strict=True)],
        draw(st.just("auto") | st.integers(1, 100_000)),
        powered,
    )
