from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_edge.plan.balance import balance


def costs(loads: list[int], devices: list[int], counts: tuple[int, ...]) -> list[float]:
    first, found = 0, []
    for count, members in zip(counts, devices, strict=True):
        found.append(sum(loads[first : first + count]) / members)
        first += count
    assert first == len(loads)
    return found


@pytest.mark.parametrize(
    ("loads", "devices", "expected"),
    [
        ([8, 2, 2, 2, 4], [1, 1], (1, 4)),
        ([8, 2, 2, 2, 4], [2, 1], (3, 2)),
        ([1, 1, 1, 1, 1, 1], [1, 1, 1], (2, 2, 2)),
        ([100] + [10] * 12, [1, 1, 1], (1, 6, 6)),  # one block is heaviest: the others stay even
        ([5], [3], (1,)),
        ([0, 0, 7], [1, 1, 1], (1, 1, 1)),
    ],
)
def test_small_cases(loads: list[int], devices: list[int], expected: object) -> None:
    assert balance(loads, devices) == expected


@settings(max_examples=40)
@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=8),
    st.lists(st.integers(1, 3), min_size=1, max_size=4),
)
def test_as_good_as_trying_everything(loads: list[int], devices: list[int]) -> None:
    devices = devices[: len(loads)]
    best = min(
        (max(cost), sum(c * c for c in cost))
        for cuts in combinations(range(1, len(loads)), len(devices) - 1)
        for edges in [(0, *cuts, len(loads))]
        for cost in [
            costs(loads, devices, tuple(b - a for a, b in zip(edges, edges[1:], strict=False)))
        ]
    )
    counts = balance(loads, devices)
    assert min(counts) >= 1
    found = costs(loads, devices, counts)
    assert (max(found), sum(c * c for c in found)) == pytest.approx(best)


@pytest.mark.parametrize("devices", [[], [1, 1, 1]])
def test_impossible_numbers_of_stages(devices: list[int]) -> None:
    with pytest.raises(ValueError, match=f"cannot cut 2 blocks into {len(devices)} stages"):
        balance([1, 2], devices)
