"""What a user sets on the strategy: whatever it is, a `PlanError` says what is wrong."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_edge.errors import PlanError, ProfileError
from lightning_edge.loop.options import Options

GIVEN: dict[str, Any] = {
    "plan": "auto", "groups": None, "across": "auto", "objective": "time", "micro_batches": "auto",
    "split_points": "auto", "profile": "auto", "data": "owner", "eval_micro_batches": 1,
    "replan": None, "wire_dtype": None, "power_modes": "keep", "timeout": timedelta(seconds=60),
    "save_on_failure": False,
}  # fmt: skip
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from(list(GIVEN)), ANYTHING, max_size=4))
def test_any_options_are_taken_or_refused_in_our_words(given: dict[str, Any]) -> None:
    try:
        Options.checked(**{**GIVEN, **given})
    except (PlanError, ProfileError) as error:
        str(error).encode("utf-8", "backslashreplace")


@pytest.mark.parametrize("where", [3, "", None, 1.0])
def test_where_to_save_on_failure(where: object) -> None:
    with pytest.raises(PlanError, match="save_on_failure=.* is not True, False or a folder"):
        Options.checked(**{**GIVEN, "save_on_failure": where})
    assert Options.checked(**{**GIVEN, "save_on_failure": Path("a")}).save_on_failure == "a"
