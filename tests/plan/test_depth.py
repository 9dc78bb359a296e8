from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_edge.plan.depth import auto_micro_batches, conflicts, resolve_depths

AUTO: Literal["auto"] = "auto"


def test_auto_micro_batches() -> None:
    assert [auto_micro_batches(stages) for stages in (1, 2, 5)] == [1, 8, 20]


@pytest.mark.parametrize(
    ("wanted", "micro_batches", "expected"),
    [
        ([AUTO] * 4, 16, (7, 5, 3, 1)),
        ([AUTO] * 4, 4, (4, 4, 3, 1)),
        ([AUTO], 1, (1,)),
        ([3, AUTO, 1], 8, (3, 3, 1)),  # as deep as the stage before allows
        ([1, AUTO, AUTO], 8, (1, 1, 1)),
        ([AUTO, AUTO, 6], 8, (6, 6, 6)),  # as deep as the stage after needs
        ([AUTO, 50, AUTO], 8, (8, 8, 1)),
        ([50, 50], 8, (8, 8)),
    ],
)
def test_depths(wanted: list[int | Literal["auto"]], micro_batches: int, expected: object) -> None:
    assert resolve_depths(wanted, micro_batches) == expected


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([3, 2, 1], []),
        ([1, 2], [(0, 1)]),
        ([1, None, 2, 3], [(0, 2), (2, 3)]),
        ([2, 1, 2], [(1, 2)]),
        ([8, 9], []),  # more than 8 micro-batches there are not
        ([None, 5], []),
    ],
)
def test_conflicts(wanted: list[int | None], expected: object) -> None:
    assert conflicts(wanted, 8) == expected


@given(st.lists(st.none() | st.integers(1, 20), min_size=1, max_size=8), st.integers(1, 16))
def test_depths_without_conflicts_never_grow(wanted: list[int | None], micro_batches: int) -> None:
    if conflicts(wanted, micro_batches):
        return
    depths = resolve_depths([AUTO if k is None else k for k in wanted], micro_batches)
    assert list(depths) == sorted(depths, reverse=True)
    assert min(depths) >= 1
    for asked, depth in zip(wanted, depths, strict=True):
        assert asked is None or depth == min(asked, micro_batches)
