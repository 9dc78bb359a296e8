from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_edge.plan import Pipeline, Plan, Stage, values
from lightning_edge.plan.problems import Problem


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9).filter(lambda s: sum(s) > 1e-3))
def test_tidied_shares_can_be_pasted_into_a_plan(given_shares: list[float]) -> None:
    tidied = values.tidy(given_shares)
    Plan([Pipeline([Stage(dict(enumerate(tidied)))])])
    for share, tidy in zip(given_shares, tidied, strict=True):
        assert abs(share / sum(given_shares) - tidy) < 1e-4 + 1e-12
        assert round(tidy, 4) == tidy


@pytest.mark.parametrize("value", [0, 0.0, -0.0, 1, 1.0, 0.25, 1 + 1e-7])
def test_shares(value: float) -> None:
    share = values.share((), value)
    assert share == value
    assert str(share)[0] != "-"


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (60, "found 60; for 60 % write 0.6"),
        (37.5, "found 37.5; for 37.5 % write 0.375"),
        ("1e-3", 'found "1e-3"; write 0.001'),
        (float("nan"), "found nan"),
        (float("inf"), "found inf"),
        (-0.5, "found -0.5"),
        (True, "found True"),
        (None, "found nothing"),
        pytest.param(10**400, "found 1000000", id="huge"),
        ([], r"found \[\]"),
        (1j, "found 1j"),
    ],
)
def test_what_is_not_a_share(value: object, hint: str) -> None:
    problem = values.share((), value)
    assert isinstance(problem, Problem)
    with pytest.raises(AssertionError, match=f"a share is a number from 0 to 1, {hint}"):
        raise AssertionError(problem.text)


@pytest.mark.parametrize(
    "value", ["", " a", "a\n", "\ud800", "a\x00b", -1, 2**31, 1.0, True, None, ()]
)
def test_what_is_not_a_device(value: object) -> None:
    assert isinstance(values.device((), value), Problem)


@pytest.mark.parametrize(
    "value",
    [0, -1, 100_001, pytest.param(10**5000, id="huge"), 1.5, 8.0, True, None, "Auto", "8", []],
)
def test_what_is_not_a_count(value: object) -> None:
    problem = values.count((), value, "the number of micro-batches")
    assert isinstance(problem, Problem)
    assert problem.text.startswith("the number of micro-batches is a whole number from 1")


def test_counts_given_as_text_or_misspelt_say_what_to_write() -> None:
    assert str(values.count((), "8", "it")).endswith('found "8"; write 8')
    assert str(values.count((), "Auto", "it")).endswith('found "Auto"; did you mean "auto"?')
