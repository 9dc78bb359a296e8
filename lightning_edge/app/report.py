"""`lightning-edge report`: a finished run in the terminal, and as one HTML page."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from rich.console import Console, JustifyMethod
from rich.table import Table

from lightning_edge.app.failure import CommandError, guarded
from lightning_edge.app.page import page
from lightning_edge.app.sheets import Sheet, sheets

__all__: list[str] = []


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    return guarded("report", lambda: _report(arguments))


def _report(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("lightning-edge report", description=__doc__)
    parser.add_argument(
        "folder", nargs="?", type=Path, help="of a run, or of several; default: outputs"
    )
    parser.add_argument("--html", type=Path, help="file; default: report.html in the folder")
    given = parser.parse_args(list(arguments))
    folder = find_run(given.folder or Path("outputs"))
    tables = sheets(folder)
    if not tables:
        raise CommandError(f"{folder} holds no results of a run: was it ended before its end?")
    print(f"Run {folder.name}\n")
    for sheet in tables:
        print(text(sheet))
    file = given.html or folder / "report.html"
    file.write_text(page(folder, tables), encoding="utf-8")
    print(f"lightning-edge report: the same with pictures is in {file}")
    return 0


def find_run(folder: Path) -> Path:
    """The folder of a run: the given one, or the newest of those in it.

    Raises:
        CommandError: There is none.
    """
    if not folder.is_dir():
        raise CommandError(
            f"there is no folder {folder}: give that of a run, such as outputs/20260102-030405-ab12"
        )
    if (folder / "overrides.yaml").is_file():
        return folder
    runs = sorted(path.parent for path in folder.glob("*/overrides.yaml"))
    if not runs:
        raise CommandError(f"no run has left anything in {folder}: give the folder of a run")
    return runs[-1]


def text(sheet: Sheet, width: int | None = None) -> str:
    """A table for a terminal.

    Args:
        sheet: The table.
        width: In characters; the terminal's by default.
    """
    grid = Table(title=sheet.title, title_justify="left")
    for index, column in enumerate(sheet.columns):
        justify: JustifyMethod = "left" if index in sheet.texts else "right"
        grid.add_column(column, justify=justify, overflow="fold")
    for row in sheet.rows:
        grid.add_row(*row)
    out = StringIO()
    columns = width or shutil.get_terminal_size((110, 24)).columns
    console = Console(file=out, width=columns)
    console.print(grid, markup=False)
    if sheet.note:
        console.print(sheet.note, markup=False)
    return out.getvalue()
