"""A moment of a run as text: a picture that stays at the bottom of a terminal, or plain lines.

While the picture is there, everything else has to be printed above it. So the streams of this
process are led through it, also those that loggers had taken before; other processes of the same
terminal keep what they have to say (`Deferred`).
"""

from __future__ import annotations

import atexit
import io
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lightning_edge.plan.prediction import seconds

__all__: list[str] = []

BAR_WIDTH = 24
COLUMNS = ("device", "stage", "speed", "computes", "waits", "sends", "power")


@dataclass(frozen=True)
class DeviceLine:
    """What a device did lately.

    Attributes:
        name: The device.
        stage: Index of its stage; None without work.
        rows_per_s: Rows of the batch that it computes per second.
        computes: Share of the time.
        waits: Share of the time.
        sends: Share of the time.
        power_w: What is counted with it; None if nothing is.
    """

    name: str
    stage: int | None
    rows_per_s: float | None
    computes: float | None
    waits: float | None
    sends: float | None
    power_w: float | None = None

    def cells(self) -> tuple[str, ...]:
        """One text per column."""
        power = "-" if self.power_w is None else f"{self.power_w:.3g} W"
        if self.stage is None or self.rows_per_s is None:
            return (self.name, "no work", "-", "-", "-", "-", power)
        shares = (f"{100 * (s or 0.0):.0f} %" for s in (self.computes, self.waits, self.sends))
        return (self.name, str(self.stage), f"{self.rows_per_s:.3g} rows/s", *shares, power)


@dataclass(frozen=True)
class Moment:
    """How far a run is.

    Attributes:
        epoch: From 1 up.
        epochs: Their number, if it is known.
        step: Optimizer steps done.
        steps: Their number, if it is known.
        step_s: Seconds per step; None before the second.
        metrics: What the model logs with `prog_bar`.
        devices: What each did.
        doing: Other than training.
    """

    epoch: int = 1
    epochs: int | None = None
    step: int = 0
    steps: int | None = None
    step_s: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    devices: Sequence[DeviceLine] = ()
    doing: str = ""

    def validating(self) -> Moment:
        """The same, while it is validated."""
        return replace(self, doing="validating")

    @property
    def counts(self) -> tuple[str, str, str]:
        """Epoch, step, and what there is to say of the time."""
        epochs = f"/{self.epochs}" if self.epochs else ""
        steps = f"/{self.steps}" if self.steps else ""
        said = [] if self.step_s is None else [f"{seconds(self.step_s)}/step"]
        if self.doing:
            said.append(self.doing)
        elif self.step_s is not None and self.steps:
            said.append(f"{_duration(self.step_s * max(self.steps - self.step, 0))} left")
        return f"epoch {self.epoch}{epochs}", f"{self.step}{steps}", "   ".join(said)


def plain(moment: Moment) -> str:
    """Lines for a file."""
    epoch, step, said = moment.counts
    parts = [epoch, f"step {step}", said, *_metrics(moment)]
    rows = [device.cells() for device in moment.devices]
    lines = ["  ".join(part for part in parts if part)]
    if rows:
        widths = [max(len(row[i]) for row in (COLUMNS, *rows)) for i in range(len(COLUMNS))]
        for row in (COLUMNS, *rows):
            first, *others = (cell.rjust(w) for cell, w in zip(row, widths, strict=True))
            lines.append("  ".join(["", row[0].ljust(len(first)), *others]).rstrip())
    return "\n".join(lines)


def picture(moment: Moment) -> RenderableType:
    """The same for a terminal."""
    epoch, step, said = moment.counts
    grid = Table.grid(padding=(0, 2, 0, 0))
    bar = ProgressBar(total=moment.steps, completed=moment.step, width=BAR_WIDTH)
    grid.add_row(epoch, bar, step, said)
    parts: list[RenderableType] = [grid]
    if moment.metrics:
        text = Text("   ".join(_metrics(moment)), no_wrap=True, overflow="ellipsis")
        parts.append(text)
    if moment.devices:
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
        for name in COLUMNS:
            justify = "left" if name == "device" else "right"
            table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        for device in moment.devices:
            table.add_row(*device.cells())
        parts.append(table)
    return Group(*parts)


class Screen:
    """The picture of the newest moment, at the bottom of a terminal.

    Args:
        console: The terminal.
    """

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=4)
        self._moved: list[tuple[logging.StreamHandler[TextIO], TextIO]] = []

    def start(self) -> None:
        """Take over the terminal's end."""
        before = (sys.stdout, sys.stderr)
        self._live.start()
        self._moved = lead_loggers(before)

    def show(self, moment: Moment) -> None:
        """Replace the picture."""
        self._live.update(picture(moment))

    def stop(self) -> None:
        """Leave the last picture where it is."""
        give_back(self._moved)
        self._live.stop()


class Deferred:
    """Keeps what this process prints until `stop`."""

    def __init__(self) -> None:
        self._text = io.StringIO()
        self._before = (sys.stdout, sys.stderr)
        self._moved: list[tuple[logging.StreamHandler[TextIO], TextIO]] = []

    def start(self) -> None:
        """Begin."""
        self._before = (sys.stdout, sys.stderr)
        sys.stdout = sys.stderr = self._text
        self._moved = lead_loggers(self._before)
        atexit.register(self.stop)  # nothing is lost where a process ends without its callbacks

    def stop(self) -> None:
        """Say it all."""
        atexit.unregister(self.stop)
        sys.stdout, sys.stderr = self._before
        give_back(self._moved)
        sys.stderr.write(self._text.getvalue())
        sys.stderr.flush()


def lead_loggers(
    before: tuple[TextIO, TextIO],
) -> list[tuple[logging.StreamHandler[TextIO], TextIO]]:
    """Lead all log handlers that write to the given streams to the present ones.

    Args:
        before: stdout and stderr as they were.

    Returns:
        The handlers, each with its stream of before.
    """
    known = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict)]
    now = (sys.stdout, sys.stderr)
    moved = []
    for handler in {h for logger in (logging.root, *known) for h in logger.handlers}:
        if isinstance(handler, logging.StreamHandler) and handler.stream in before:
            moved.append((handler, handler.stream))
            handler.setStream(now[before.index(handler.stream)])
    return moved


def give_back(moved: Sequence[tuple[logging.StreamHandler[TextIO], TextIO]]) -> None:
    """Undo `lead_loggers`."""
    for handler, stream in moved:
        handler.setStream(stream)


def _metrics(moment: Moment) -> list[str]:
    return [f"{name} {value:.4g}" for name, value in moment.metrics.items()]


def _duration(value: float) -> str:
    """Seconds as people say them: `42 s`, `3 min`, `2 h 5 min`."""
    if value < 90:
        return f"{value:.0f} s"
    minutes = round(value / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
