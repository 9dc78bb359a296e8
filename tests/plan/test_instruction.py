from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_edge.errors import ScheduleError
from lightning_edge.plan.instruction import Instruction, Op, marked, parse_text, to_text

INSTRUCTIONS = st.builds(
    Instruction, st.sampled_from([Op.FORWARD, Op.BACKWARD]), st.integers(0, 999_999)
) | st.sampled_from([Instruction(Op.REDUCE), Instruction(Op.STEP)])


def test_instructions_print_as_what_they_are() -> None:
    assert str(Instruction(Op.FORWARD, 3)) == "F3"
    assert (
        f"{Instruction(Op.BACKWARD, 0)} {Instruction(Op.REDUCE)} {Instruction(Op.STEP)}" == "B0 R S"
    )


@given(INSTRUCTIONS)
def test_instructions_parse_back(instruction: Instruction) -> None:
    assert Instruction.parse(str(instruction)) == instruction


@pytest.mark.parametrize(
    "text", ["", "F", "F-1", "F01", "f1", "R1", "S ", "B٣", "F1\n", "F9999999"]
)
def test_what_is_no_instruction(text: str) -> None:
    with pytest.raises(ScheduleError, match="is not an instruction: write F3, B3, R or S"):
        Instruction.parse(text)


@given(st.dictionaries(st.integers(0, 10**9), st.lists(INSTRUCTIONS, max_size=9).map(tuple)))
def test_lists_parse_back(lists: dict[int, tuple[Instruction, ...]]) -> None:
    assert parse_text(to_text(lists)) == lists


def test_text_of_lists() -> None:
    text = "0: F0 B0 R S\n\n  12 :F0   # a comment\n3:"
    assert to_text(parse_text(text)) == "0: F0 B0 R S\n12: F0\n3:"


def test_every_line_that_cannot_be_read_is_reported() -> None:
    with pytest.raises(ScheduleError) as caught:
        parse_text("0: F0 X1 B0 f1\nrank 1: F0\n2: S\n2: R\n0x1: S")
    assert str(caught.value) == (
        "the instruction lists cannot be read:\n"
        '  1. line 1: "X1" is not an instruction (F3, B3, R or S):\n'
        "     0: F0 X1 <-- here B0 f1\n"
        '  2. line 1: "f1" is not an instruction (F3, B3, R or S):\n'
        "     0: F0 X1 B0 f1 <-- here\n"
        '  3. line 2 must read "rank: F0 B0 R S":\n'
        "     rank 1: F0  <-- here\n"
        "  4. line 4 lists rank 2 again:\n"
        "     2: R  <-- here\n"
        '  5. line 5 must read "rank: F0 B0 R S":\n'
        "     0x1: S  <-- here"
    )


def test_marks_in_long_lines_are_shortened() -> None:
    words = [f"F{i}" for i in range(40)]
    assert marked(0, words, 20, around=2) == "0: ... F18 F19 F20 <-- here F21 F22 ..."
    assert marked(0, words, 0, around=1) == "0: F0 <-- here F1 ..."
    assert marked(0, words, 39, around=1) == "0: ... F38 F39 <-- here"


@given(st.text(alphabet="0123456789:FBRS \n#x", max_size=60) | st.text(max_size=40))
def test_any_text_is_lists_or_a_schedule_error(text: str) -> None:
    try:
        lists = parse_text(text)
    except ScheduleError as error:
        str(error).encode()
    else:
        assert parse_text(to_text(lists)) == lists
