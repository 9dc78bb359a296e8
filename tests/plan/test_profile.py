"""The Profile value: forms, problems, merging, and what sets two apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_edge.errors import ProfileError
from lightning_edge.plan.profile import Block, Profile, Timing
from lightning_edge.plan.profile_merging import differences
from lightning_edge.plan.workload import interpolate
from tests.plan.profiles import free_profiles, simple, written


@pytest.fixture
def example() -> Profile:
    return Profile.from_mapping(yaml.safe_load(written()))


def test_the_documented_example_is_a_profile(example: Profile) -> None:
    assert example.names == ("orin-a", "orin-b", "laptop")
    assert example.model.cuts == ("layers.0", "layers.1", "layers.2", "layers.3")
    assert example.missing() == []
    assert replace(example.devices[0], name="orin-b") == example.devices[1]
    assert example.devices[0].memory_bytes == 5_000_000_000
    link = example.link(0, 2)
    assert link is not None
    assert link.mbit_per_s == pytest.approx(100)
    block = example.model.blocks[1]
    assert (block.gradient_bytes, block.optimizer_bytes) == (3_000_000, 6_000_000)
    assert block.backward_bytes == block.forward_bytes == block.checkpoint_bytes == 65536


@settings(max_examples=60)
@given(profile=free_profiles())
def test_forms_say_the_same(profile: Profile) -> None:
    assert Profile.from_mapping(profile.to_mapping()) == profile
    assert Profile.from_json(profile.to_json()) == profile
    assert Profile.from_mapping(yaml.safe_load(profile.to_yaml())) == profile
    assert hash(Profile.from_mapping(profile.to_mapping())) == hash(profile)
    assert profile.names[0] in str(profile)


def test_equal_devices_and_blocks_share_a_line(example: Profile) -> None:
    tree = example.to_mapping()
    assert [entry.get("names", entry.get("name")) for entry in tree["devices"]] == [
        ["orin-a", "orin-b"],
        "laptop",
    ]
    assert len(tree["model"]["blocks"]) == 2
    assert tree["links"] == [{"between": "all", "seconds_per_byte": 8e-8, "latency_s": 0.001}]
    assert "layers.0 .. layers.3 (4)" in str(example)


def test_all_problems_come_at_once_with_their_lines(tmp_path) -> None:
    text = written().replace("idle_w: 9", "idle_w: -9").replace("kind: laptop", "kindd: laptop")
    text = text.replace("mbit_per_s: 100", "mbit_per_s: fast").replace(
        "rows: [1, 8]", "rows: [8, 1]"
    )
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ProfileError) as caught:
        Profile.from_yaml(tmp_path / "p.yaml")
    found = "\n".join(caught.value.problems)
    assert "line 9: devices[1].idle_w: must be a number from 0 up, found -9" in found
    assert 'line 12: devices[1].kindd: "kindd" is not a key here; did you mean "kind"?' in found
    assert 'links[0].mbit_per_s: must be a number above 0, found "fast"' in found
    assert found.count("rows must be whole numbers, ascending") == 2
    assert len(caught.value.problems) == 5


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"devices": []}, "names at least one device"),
        ({"devices": [{"name": "a"}, {"name": "a"}]}, 'there are 2 devices called "a"'),
        ({"devices": [{"name": "a", "mode": "15W"}]}, '"15W" is not one of its modes'),
        ({"links": [{"from": "a", "to": "lap"}]}, '"lap" is not a device'),
        ({"links": [{"between": "all"}]}, "say how fast it is, once"),
        ({"version": 2}, "this profile has version 2"),
        ({"model": {}}, "the key blocks is missing"),
        ({"devices": [{"name": "a", "provenance": "guessed"}]}, "not one of measured, prior"),
        ({"model": {"blocks": [{"name": "x"}], "shared": [{"blocks": ["x", "y"]}]}}, '"y" is not'),
    ],
)
def test_each_problem_says_what_was_found(change, text) -> None:
    tree = {"devices": [{"name": "a"}], "model": {"blocks": [{"name": "x"}]}} | change
    with pytest.raises(ProfileError) as caught:
        Profile.from_mapping(tree)
    assert text in str(caught.value)


@settings(max_examples=60)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "devices",
                        "model",
                        "links",
                        "blocks",
                        "name",
                        "timings",
                        "rows",
                        "modes",
                        "between",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=20,
    )
)
def test_any_value_is_a_profile_or_a_profile_error(tree) -> None:
    try:
        Profile.from_mapping(tree)
    except ProfileError as error:
        str(error).encode()


def test_provenance_is_kept_per_number(example: Profile) -> None:
    device = replace(example.devices[0], provenance={"all": "measured", "memory_bytes": "prior"})
    assert device.provenance_of("memory_bytes") == "prior"
    assert device.provenance_of("step_s") == "measured"
    assert example.devices[0].provenance_of("step_s") == "declared"
    marked = replace(example, devices=(device, *example.devices[1:]))
    assert "5 GB*" in str(marked)
    assert Profile.from_mapping(marked.to_mapping()) == marked


def test_a_device_without_timings_is_told_which_ones() -> None:
    profile = simple([1, 1])
    devices = (replace(profile.devices[0], timing="gpu"), profile.devices[1])
    (problem,) = replace(profile, devices=devices).missing()
    assert 'd0 has no timings of 4 blocks (b0, b1, b2, ...): add the key "gpu"' in problem


def test_profiles_of_single_devices_merge(example: Profile) -> None:
    def of(rank: int) -> Profile:
        device = replace(example.devices[rank], timing=f"own-{rank}")
        blocks = [
            replace(block, timings={f"own-{rank}": next(iter(block.timings.values()))})
            for block in example.model.blocks
        ]
        model = replace(example.model, blocks=tuple(blocks))
        return replace(example, devices=(device,), model=model, links=())

    parts = [of(rank) for rank in range(3)]
    whole = Profile.merge(parts, example.links)
    assert whole.names == example.names
    assert whole.links == example.links
    assert set(whole.model.blocks[0].timings) == {"own-0", "own-1", "own-2"}
    assert whole.missing() == []


def test_parts_that_contradict_each_other_do_not_merge(example: Profile) -> None:
    other = replace(
        example,
        devices=(replace(example.devices[2], name="desk"),),
        links=(),
        model=replace(example.model, blocks=example.model.blocks[:-1]),
        software={"torch": "9"},
    )
    with pytest.raises(ProfileError) as caught:
        Profile.merge([example, other])
    assert "model.blocks: desk has" in str(caught.value)
    assert 'software.torch: desk has "9", orin-a has nothing' in str(caught.value)


def test_differences_name_what_changed(example: Profile) -> None:
    assert differences(example, example) == []
    blocks = (example.model.blocks[0], replace(example.model.blocks[1], parameter_bytes=1))
    now = replace(
        example,
        devices=(replace(example.devices[0], mode="7W"), *example.devices[1:]),
        model=replace(example.model, blocks=(*blocks, *example.model.blocks[2:])),
        software={"torch": "2.13"},
    )
    assert differences(example, now) == [
        'torch was nothing, is "2.13"',
        'the mode of device orin-a was "15W", is "7W"',
        'model["layers.0"].parameter_bytes was 3000000, is 1',
    ]
    fewer = replace(example, devices=example.devices[:2], links=())
    assert differences(example, fewer) == ["device laptop is not there"]


def test_measured_numbers_do_not_make_a_profile_foreign(example: Profile) -> None:
    slower = {"laptop": Timing((1,), (9,), (9,)), "jetson-orin-nano": Timing((1,), (9,), (9,))}
    blocks = tuple(replace(block, timings=slower) for block in example.model.blocks)
    assert differences(example, replace(example, model=replace(example.model, blocks=blocks))) == []


@given(
    st.lists(st.integers(1, 64), min_size=1, max_size=5, unique=True).map(sorted),
    st.lists(st.floats(1e-4, 1), min_size=5, max_size=5).map(sorted),
)
def test_more_rows_never_take_less_time(rows, seconds) -> None:
    table = [interpolate(rows, seconds[: len(rows)], wanted) for wanted in range(80)]
    assert table[0] == 0
    assert all(a <= b * (1 + 1e-12) for a, b in zip(table, table[1:], strict=False))
    for known, value in zip(rows, seconds, strict=False):
        assert table[known] == pytest.approx(value)


def test_a_block_that_is_frozen_needs_no_optimizer_state() -> None:
    frozen = Block("b", parameter_bytes=10, gradient_bytes=0)
    assert (frozen.optimizer_bytes, frozen.gradient_bytes) == (0, 0)
