from __future__ import annotations

from fractions import Fraction
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_edge.plan.rows import micro_batch_bounds, row_intervals, whole_rows
from tests.plan.plans import shares


@pytest.mark.parametrize(
    ("rows", "micro_batches", "expected"),
    [
        (0, 4, ()),
        (1, 4, ((0, 1),)),
        (8, 4, ((0, 2), (2, 4), (4, 6), (6, 8))),
        (7, 3, ((0, 3), (3, 5), (5, 7))),
        (3, 1, ((0, 3),)),
    ],
)
def test_micro_batches(rows: int, micro_batches: int, expected: object) -> None:
    assert micro_batch_bounds(rows, micro_batches) == expected


@given(st.integers(0, 300), st.integers(1, 40))
def test_micro_batches_cover_the_batch_evenly(rows: int, micro_batches: int) -> None:
    bounds = micro_batch_bounds(rows, micro_batches)
    assert len(bounds) == min(rows, micro_batches)
    assert [row for start, stop in bounds for row in range(start, stop)] == list(range(rows))
    sizes = [stop - start for start, stop in bounds]
    assert sizes == sorted(sizes, reverse=True)
    assert not sizes or sizes[0] - sizes[-1] <= 1


@pytest.mark.parametrize(("rows", "micro_batches"), [(-1, 2), (3, 0)])
def test_micro_batches_of_nonsense(rows: int, micro_batches: int) -> None:
    with pytest.raises(ValueError, match=f"cannot divide {rows} rows into {micro_batches}"):
        micro_batch_bounds(rows, micro_batches)


def test_shares_hold_over_the_batch_although_micro_batches_are_too_small_for_them() -> None:
    intervals = row_intervals([0.8, 0.2], micro_batch_bounds(16, 8))
    sizes = [[stop - start for start, stop in devices] for devices in intervals]
    assert [sum(column) for column in zip(*sizes, strict=True)] == [13, 3]
    # The three rows of the second device come at about equal distances (see the module's picture).
    assert sizes == [[2, 0], [2, 0], [1, 1], [2, 0], [1, 1], [2, 0], [2, 0], [1, 1]]


def test_small_cases_by_hand() -> None:
    assert row_intervals([0.5, 0.5], [(0, 4), (4, 8)]) == (((0, 2), (2, 4)), ((4, 6), (6, 8)))
    assert row_intervals([1.0], [(0, 3)]) == (((0, 3),),)
    assert row_intervals([0.5, 0.0, 0.5], [(0, 2)]) == (((0, 1), (1, 1), (1, 2)),)
    assert row_intervals([0.4, 0.6], []) == ()


@pytest.mark.parametrize(
    ("given_shares", "rows", "expected"),
    [
        ([0.8, 0.2], 16, [13, 3]),
        ([1 / 3] * 3, 3, [1, 1, 1]),
        ([1 / 3] * 3, 4, [2, 1, 1]),
        ([0.1] * 10, 10, [1] * 10),
        ([0.7, 0.2, 0.1], 10, [7, 2, 1]),
        ([0.0, 1.0], 5, [0, 5]),
        ([0.5, 0.5], 1, [1, 0]),
        ([0.5, 0.5, 0.0], 0, [0, 0, 0]),
    ],
)
def test_largest_remainder(given_shares: list[float], rows: int, expected: list[int]) -> None:
    assert whole_rows(given_shares, rows) == expected


@given(st.integers(1, 6).flatmap(shares), st.integers(0, 200), st.integers(1, 30))
def test_nothing_is_lost_and_every_share_holds(
    given_shares: list[float], rows: int, micro_batches: int
) -> None:
    bounds = micro_batch_bounds(rows, micro_batches)
    intervals = row_intervals(given_shares, bounds)
    for (start, stop), devices in zip(bounds, intervals, strict=True):
        edges = [start, *(high for _, high in devices)]
        assert edges == sorted(edges), "monotone, so nothing is negative"
        assert edges[-1] == stop
        assert [low for low, _ in devices] == edges[:-1], "consecutive, so nothing is lost"
    for device, share in enumerate(given_shares):
        sizes = [devices[device][1] - devices[device][0] for devices in intervals]
        total = sum(sizes)
        assert abs(total - share * rows) < 1, "largest remainder keeps within one row"
        assert share > 0 or total == 0
        # Up to the end of each micro-batch, the device has its due of its total, rounded.
        for (_, stop), had in zip(bounds, accumulate(sizes), strict=True):
            assert abs(had - Fraction(total * stop, rows)) < 1


@given(st.integers(1, 5).flatmap(shares), st.integers(1, 64), st.integers(1, 9))
def test_how_a_batch_is_divided_into_micro_batches_does_not_change_who_has_how_many_rows(
    given_shares: list[float], rows: int, micro_batches: int
) -> None:
    for bounds in (micro_batch_bounds(rows, micro_batches), [(0, rows)]):
        sizes = [0] * len(given_shares)
        for devices in row_intervals(given_shares, bounds):
            for device, (start, stop) in enumerate(devices):
                sizes[device] += stop - start
        assert sizes == whole_rows(given_shares, rows)
