from __future__ import annotations

import os

from lightning_edge.testbed.output import KEPT_LINES, Output


def test_lines_come_whole_under_their_device():
    printed: list[tuple[str, str]] = []
    output = Output(lambda name, line: printed.append((name, line)))
    pipes = {name: os.pipe() for name in ("a", "b")}
    for name, (reading, _) in pipes.items():
        output.add(name, open(reading, "rb", buffering=0))  # noqa: SIM115 - closed by Output
    output.start()
    os.write(pipes["a"][1], b"one\r\ntw")
    os.write(pipes["b"][1], b"other\n")
    os.write(pipes["a"][1], "o \u00e9\n".encode())
    os.write(pipes["a"][1], b"no newline \xff")
    for _, writing in pipes.values():
        os.close(writing)
    output.finish()
    assert [line for name, line in printed if name == "a"] == [
        "one",
        "two \u00e9",
        "no newline \ufffd",
    ]
    assert output.lines("a") == ("one", "two \u00e9", "no newline \ufffd")
    assert output.lines("b") == ("other",)


def test_a_reader_that_has_gone_does_not_stop_the_devices():
    def printer(name: str, line: str) -> None:
        raise BrokenPipeError

    output = Output(printer)
    reading, writing = os.pipe()
    output.add("a", open(reading, "rb", buffering=0))  # noqa: SIM115
    os.write(writing, b"line\n" * (KEPT_LINES + 5))
    os.close(writing)
    output.start()
    output.finish()
    assert len(output.lines("a")) == KEPT_LINES


def test_pipes_are_closed_even_if_reading_never_began():
    output = Output(None)
    reading, writing = os.pipe()
    pipe = open(reading, "rb", buffering=0)  # noqa: SIM115
    output.add("a", pipe)
    output.finish()
    os.close(writing)
    assert pipe.closed
