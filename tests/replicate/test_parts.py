"""Parts of a checkpoint go together again, and are never more than tensors and plain values."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_edge.errors import CheckpointError
from lightning_edge.replicate import parts
from lightning_edge.replicate.parts import Origin
from lightning_edge.replicate.placeholder import fake_mode

HOLDERS = ((0,), (0, 1))
ORIGIN = Origin("3fa2b1", 12, 1, ("orin", "pi"), HOLDERS)


def tree(rank: int) -> dict[str, object]:
    with fake_mode():
        elsewhere = torch.empty(2, 3)
    here = torch.full((2, 3), float(rank))
    return {
        "state_dict": {"a": here if rank == 0 else elsewhere, "b": here if rank else elsewhere},
        "optimizer_states": [{"state": {rank: {"step": here}}, "param_groups": [{"lr": 0.1}]}],
        "epoch": 3,
    }


def test_parts_go_together(tmp_path: Path) -> None:
    for rank in (1, 0):
        origin = Origin("3fa2b1", 12, rank, ("orin", "pi"), HOLDERS)
        path = parts.write(origin, parts.without(tree(rank), lambda path: False), tmp_path)
        assert path == tmp_path / "step-12-3fa2b1" / f"rank-{rank}.part"
    read = [parts.read(path) for path in sorted(path.parent.iterdir())]
    assert [origin.rank for origin, _ in read] == [0, 1]
    whole = parts.together([tree for _, tree in read])
    assert [float(whole["state_dict"][name].mean()) for name in "ab"] == [0.0, 1.0]
    assert list(whole["optimizer_states"][0]["state"]) == [0, 1]
    assert whole["epoch"] == 3


def test_what_nobody_has_is_known() -> None:
    assert parts.lost(HOLDERS, [0]) == ()
    assert parts.lost(HOLDERS, [1]) == ((0,),)
    assert parts.lost(HOLDERS, []) == HOLDERS


def test_what_others_know_better_is_left_out() -> None:
    left = parts.without({"x": torch.ones(2), "y": torch.ones(2)}, lambda path: path == ("y",))
    assert (left["x"].is_meta, left["y"].is_meta) == (False, True)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (os.path.join(os.environ["TMPDIR"], "exploded"),)


def test_nothing_in_a_part_is_run(tmp_path: Path) -> None:
    path = parts.write(ORIGIN, {"state_dict": {}, "more": Bomb()}, tmp_path)
    with pytest.raises(CheckpointError, match="cannot be read as a part of a checkpoint"):
        parts.read(path)
    assert not os.path.exists(os.path.join(os.environ["TMPDIR"], "exploded"))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_part_is_refused_or_read(tmp_path: Path, data: st.DataObject) -> None:
    path = parts.write(ORIGIN, parts.without(tree(1), lambda path: False), tmp_path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with suppress(CheckpointError):
        parts.read(path)


@pytest.mark.parametrize("content", [{}, [], 3, {"part": 1}, {"part": 9}, {"part": 1, "origin": 3}])
def test_other_files_are_no_parts(content: object, tmp_path: Path) -> None:
    path = tmp_path / "rank-0.part"
    torch.save(content, path)
    with pytest.raises(CheckpointError):
        parts.read(path)
