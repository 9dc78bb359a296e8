"""The instructions that a device runs, as values and as text that can be read back.

    F3   forward of micro-batch 3         R   gradients that are final may be reduced from here on
    B3   backward of micro-batch 3        S   wait for all reductions, then the step is complete

Transfers are no instructions: they follow from the plan and the rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from lightning_edge.errors import ScheduleError
from lightning_edge.plan.problems import shown

__all__: list[str] = []

_INSTRUCTION = re.compile(r"([FB])(0|[1-9][0-9]{0,5})|([RS])", re.ASCII)
_LINE = re.compile(r"\s*(0|[1-9][0-9]{0,9})\s*:(.*)", re.ASCII)


class Op(str, Enum):
    """What an instruction does."""

    FORWARD = "F"
    BACKWARD = "B"
    REDUCE = "R"
    STEP = "S"


class Instruction(NamedTuple):
    """One thing a device does; `micro_batch` counts from 0 and is `None` for REDUCE and STEP."""

    op: Op
    micro_batch: int | None = None

    def __str__(self) -> str:
        return self.op.value + ("" if self.micro_batch is None else str(self.micro_batch))

    @classmethod
    def parse(cls, text: str) -> Instruction:
        """Return the instruction that prints as `text`.

        Raises:
            ScheduleError: If there is none.
        """
        match = _INSTRUCTION.fullmatch(text)
        if match is None:
            raise ScheduleError(f"{shown(text)} is not an instruction: write F3, B3, R or S")
        if match[3]:
            return cls(Op(match[3]))
        return cls(Op(match[1]), int(match[2]))


Lists = Mapping[int, Sequence[Instruction]]
"""The instruction list of every rank that has a stage."""


def to_text(lists: Lists) -> str:
    """Write instruction lists as text, one line `rank: F0 F1 B0 ... R S` each."""
    return "\n".join(f"{rank}: {' '.join(map(str, line))}".rstrip() for rank, line in lists.items())


def parse_text(text: str) -> dict[int, tuple[Instruction, ...]]:
    """Read instruction lists back from text; empty lines and `# comments` are left out.

    Raises:
        ScheduleError: With every line that cannot be read, marked where.
    """
    lists: dict[int, tuple[Instruction, ...]] = {}
    problems = []
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.partition("#")[0].rstrip()
        if not content:
            continue
        match = _LINE.fullmatch(content)
        if match is None:
            form = 'must read "rank: F0 B0 R S"'
            problems.append(f"line {number} {form}:\n     {shown(content)[1:-1]}  <-- here")
            continue
        rank, words = int(match[1]), match[2].split()
        if rank in lists:
            problems.append(f"line {number} lists rank {rank} again:\n     {content}  <-- here")
        wrong = [i for i, word in enumerate(words) if _INSTRUCTION.fullmatch(word) is None]
        for i in wrong:
            what = f"line {number}: {shown(words[i])} is not an instruction (F3, B3, R or S)"
            problems.append(f"{what}:\n     {marked(rank, words, i)}")
        if not wrong:
            lists[rank] = tuple(map(Instruction.parse, words))
    if problems:
        raise ScheduleError(numbered("the instruction lists cannot be read", problems))
    return lists


def marked(rank: int, words: Sequence[object], index: int, around: int = 8) -> str:
    """Write the line of a rank with a mark behind one instruction; long lines are shortened.

    `1: F0 B1 <-- here F1 B0 R S`
    """
    low, high = max(0, index - around), min(len(words), index + around + 1)
    before = [] if low == 0 else ["..."]
    after = [] if high == len(words) else ["..."]
    shown_words = [*before, *words[low : index + 1], "<-- here", *words[index + 1 : high], *after]
    return f"{rank}: {' '.join(map(str, shown_words))}"


def numbered(title: str, problems: Sequence[str]) -> str:
    """Put problems under a title, each with its number."""
    lines = [f"  {number}. {problem}" for number, problem in enumerate(problems, start=1)]
    return "\n".join([f"{title}:", *lines])
