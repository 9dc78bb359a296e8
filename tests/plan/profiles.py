"""Profiles for tests: one written by hand, one of any size, and Hypothesis strategies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from lightning_edge.plan import profile as profiles
from lightning_edge.plan.profile import Block, Device, Link, Model, PowerMode, Profile, Timing

NAMES = st.text("abcxyz.0é-", min_size=1, max_size=6)
NUMBERS = st.floats(0, 1e6, allow_nan=False) | st.sampled_from([0.0, 1e-9, 1 / 3])
PROVENANCE = st.dictionaries(
    st.sampled_from(["all", "idle_w", "memory_bytes"]),
    st.sampled_from(["measured", "prior", "declared"]),
    max_size=2,
)


def written() -> str:
    """The example of the module's docstring."""
    lines = (profiles.__doc__ or "").splitlines()
    return "\n".join(line[4:] for line in lines if line.startswith("    "))


def simple(
    speeds: Sequence[float],
    blocks: int = 4,
    mbit: float = 100.0,
    latency_s: float = 0.0,
    memory_bytes: int | None = None,
    block_s: float = 0.01,
    crossing: float = 1000.0,
    parameters: int = 1000,
    activation: float = 1000.0,
    **device: Any,
) -> Profile:
    """Equal blocks: `block_s` per row forwards, twice that backwards; devices `d0`, `d1` ..."""
    modes = {"idle_w": 2.0, "compute_w": 10.0, "communication_w": 4.0}
    devices = tuple(
        Device(
            f"d{i}",
            timing="any",
            memory_bytes=memory_bytes,
            modes=(PowerMode("default", speed, **modes),),
            **device,
        )
        for i, speed in enumerate(speeds)
    )
    timing = Timing((1,), (block_s,), (2 * block_s,))
    row = tuple(
        Block(
            f"b{i}",
            {"any": timing},
            parameter_bytes=parameters,
            activation_bytes=activation,
            forward_bytes=crossing if i else 0.0,
        )
        for i in range(blocks)
    )
    links = tuple(
        Link(a.name, b.name, 8e-6 / mbit, latency_s) for a in devices for b in devices if a != b
    )
    return Profile(devices, Model("simple", row), links)


@st.composite
def free_profiles(draw: st.DrawFn) -> Profile:
    """Any sound profile."""
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    keys = ["cpu", "gpu"]
    watts = st.none() | NUMBERS
    mode = st.builds(
        PowerMode,
        NAMES,
        st.floats(0.1, 10),
        st.none() | st.sampled_from(keys),
        watts,
        watts,
        watts,
        provenance=PROVENANCE,
    )
    devices = tuple(
        Device(
            name,
            draw(st.sampled_from(keys)),
            memory_bytes=draw(st.none() | st.integers(1, 10**12)),
            accelerator=draw(st.none() | NAMES),
            modes=tuple(draw(st.lists(mode, min_size=1, max_size=3, unique_by=lambda m: m.name))),
            battery_j=draw(st.none() | NUMBERS),
            step_s=draw(NUMBERS),
            provenance=draw(PROVENANCE),
        )
        for name in names
    )
    columns = st.lists(NUMBERS, min_size=2, max_size=2)
    blocks = tuple(
        Block(
            name,
            {
                key: Timing((1, 8), tuple(draw(columns)), tuple(draw(columns)), draw(NUMBERS))
                for key in draw(st.sets(st.sampled_from(keys)))
            },
            draw(st.integers(0, 10**10)),
            draw(st.just(-1) | st.integers(0, 10**10)),
            draw(st.just(-1) | st.integers(0, 10**10)),
            draw(NUMBERS),
            draw(st.just(-1.0) | NUMBERS),
            forward_bytes=draw(NUMBERS),
            backward_bytes=draw(st.just(-1.0) | NUMBERS),
            cut=draw(st.booleans()),
        )
        for name in draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    )
    links = tuple(
        Link(a, b, draw(NUMBERS), draw(NUMBERS), draw(st.just(()) | st.just(("air",))))
        for a in names
        for b in names
        if a != b and draw(st.booleans())
    )
    software = draw(st.dictionaries(NAMES, NAMES, max_size=2))
    return Profile(devices, Model("m", blocks), links, software)
