"""Rows of the one table, on the screen, in Markdown and in JSON."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning
import psutil
import torch
from rich.console import Console
from rich.table import Table

HEADER = (
    "what",
    "setting",
    "contestant",
    "median",
    "against",
    "ratio",
    "quartiles",
    "target",
    "met",
)


@dataclass(frozen=True)
class Row:
    """One contestant in one setting.

    Attributes:
        median: Of all its steps, or the measured amount; ``unit`` says of what.
        against: What it is compared with; None for a row that only informs.
        ratios: One per turn, of the direction that ``against`` says.
        target: What the median ratio must be, such as ``>= 0.93``.
    """

    what: str
    setting: str
    contestant: str
    median: float | None
    unit: str = "s"
    against: str | None = None
    ratios: Sequence[float] = ()
    target: str | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def met(self) -> bool | None:
        if self.target is None or self.ratio is None:
            return None
        sign, limit = self.target.split()
        return self.ratio >= float(limit) if sign == ">=" else self.ratio <= float(limit)

    @property
    def failed(self) -> bool:
        return self.met is False or self.note.startswith("failed")

    def cells(self) -> list[str]:
        low, _, high = (
            statistics.quantiles(self.ratios) if len(self.ratios) > 1 else (0.0, 0.0, 0.0)
        )
        return [
            self.what,
            self.setting,
            self.contestant,
            self.note if self.median is None else f"{self.median:.3f} {self.unit}",
            self.against or "",
            "" if self.ratio is None else f"{self.ratio:.3f}",
            f"{low:.3f}-{high:.3f}" if len(self.ratios) > 1 else "",
            self.target or "",
            {True: "yes", False: "NO", None: ""}[self.met],
        ]


def show(rows: Sequence[Row]) -> None:
    table = Table(*HEADER, title="executor benchmark")
    for row in rows:
        table.add_row(*row.cells())
    Console(width=None if os.isatty(1) else 160).print(table)


def markdown(rows: Sequence[Row]) -> str:
    lines = [HEADER, ["---"] * len(HEADER), *(row.cells() for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def write(rows: Sequence[Row], path: Path, seconds: float) -> None:
    """Write the rows with the machine as JSON, and as a Markdown table beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".md").write_text(markdown(rows) + "\n")
    records = [{**asdict(row), "ratio": row.ratio, "met": row.met} for row in rows]
    content = {"machine": machine(), "seconds": round(seconds, 1), "rows": records}
    path.write_text(json.dumps(content, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """What a number is worth nothing without."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "processor": model,
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
    }
