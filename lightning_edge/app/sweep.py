"""The one table in which several runs end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

__all__: list[str] = []


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        overrides: What was typed for it.
        folder: Its folder, None if it failed.
        error: Why it failed.
    """

    overrides: Sequence[str]
    folder: Path | None
    error: str | None

    def metrics(self) -> dict[str, Any]:
        """What rank 0 has left; empty if it failed, or on other devices."""
        file = None if self.folder is None else self.folder / "metrics.json"
        return dict(json.loads(file.read_text())) if file is not None and file.is_file() else {}


def table(rows: Sequence[Row], width: int = 120) -> str:
    """Runs below each other, with what differs between them and what came of each.

    Args:
        rows: The runs.
        width: In characters.
    """
    common = set(rows[0].overrides).intersection(*(row.overrides for row in rows))
    found = [row.metrics() for row in rows]
    names = list(dict.fromkeys(name for one in found for name in one if "/" not in name))
    grid = Table(title=f"{len(rows)} runs", title_justify="left")
    grid.add_column("run", overflow="fold")
    for name in names:
        grid.add_column(name, justify="right")
    grid.add_column("folder", overflow="fold")
    for row, metrics in zip(rows, found, strict=True):
        what = " ".join(one for one in row.overrides if one not in common) or "(as typed)"
        cells = [_number(metrics.get(name)) for name in names]
        end = "failed" if row.error is not None else str(row.folder)
        grid.add_row(what, *cells, end)
    page = StringIO()
    Console(file=page, width=width).print(grid)
    return page.getvalue().rstrip()


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)
