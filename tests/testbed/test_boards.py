from __future__ import annotations

import pytest

from lightning_edge.errors import TestbedError
from lightning_edge.testbed.boards import find_board, known_boards


def test_a_board_is_found_by_name_and_mode():
    assert find_board("orin-nano:7W").gflops == 155.0
    assert find_board("Orin-Nano") is find_board("orin-nano:15w")
    assert find_board("pi4").title == "pi4"


def test_every_board_has_one_default_mode():
    names = [board.name for board in known_boards()]
    defaults = [board.name for board in known_boards() if board.default]
    assert sorted(defaults) == sorted(set(names))


def test_every_board_says_where_its_watts_are_from():
    for board in known_boards():
        assert 0 < board.curve.idle_w < board.curve.busy_w
        assert board.quality in ("measured", "scaled", "assumed")
        assert board.curve.source.startswith(f"{board.quality}: ")
        assert len(board.curve.source) > 15


def test_jetsons_reach_the_same_part_of_their_peak():
    # 2 x CUDA cores x clock in GFLOP/s, from the boards' own mode tables
    peaks = {"nano:10W": 236, "xavier-nx:15W": 852, "orin-nano:15W": 1279, "agx-orin:MAXN": 5327}
    for title, peak in peaks.items():
        assert find_board(title).gflops == pytest.approx(0.37 * peak, rel=0.01)


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(TestbedError, match="orin-nano, .*pi5"):
        find_board("commodore")
    with pytest.raises(TestbedError, match=r"no mode '99w'; there is orin-nano:7W, orin-nano:15W"):
        find_board("orin-nano:99W")
