"""One HTML page that needs no other file: tables, and pictures inside."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_edge.app.sheets import Sheet, prediction_of

__all__: list[str] = []

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse } td, th { padding: .25rem 1.2rem .25rem 0; text-align: left;
  vertical-align: top; font-variant-numeric: tabular-nums } .number { text-align: right }
th { border-bottom: 2px solid #888; font-weight: 600 } td { border-bottom: 1px solid #ddd }
.note { color: #555; font-size: .9rem } img { max-width: 100% }
pre { background: #f4f4f4; padding: .8rem; overflow-x: auto; font-size: .85rem }
.wide { overflow-x: auto }
"""
_SKIPPED = ("epoch", "step", "energy", "power", "joules", "device/", "phase/", "lr-", "carbon")


def page(folder: Path, tables: list[Sheet]) -> str:
    """Return the page of a run.

    Args:
        folder: Of the run.
        tables: To show.
    """
    title = f"Run {folder.name}"
    parts = [f"<h1>{html.escape(title)}</h1>", _overrides(folder)]
    for sheet in tables:
        parts.append(_table(sheet))
        if sheet.title == "Plan":
            parts.append(_timeline(folder))
        elif sheet.title == "Results":
            parts.append(_curves(folder))
    parts.append(_picture(folder / "energy.png", "Power over time, and joules by phase"))
    for name, heading in (("plan.txt", "Why this plan"), ("config.yaml", "Configuration")):
        if (folder / name).is_file():
            text = html.escape((folder / name).read_text())
            parts.append(f"<details><summary>{heading}</summary><pre>{text}</pre></details>")
    body = "\n".join(part for part in parts if part)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}'
        f"</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _table(sheet: Sheet) -> str:
    sides = ["" if i in sheet.texts else ' class="number"' for i in range(len(sheet.columns))]

    def line(tag: str, cells: Sequence[str]) -> str:
        pairs = zip(sides, cells, strict=True)
        return "".join(f"<{tag}{side}>{html.escape(cell)}</{tag}>" for side, cell in pairs)

    head = line("th", sheet.columns)
    rows = "\n".join(f"<tr>{line('td', row)}</tr>" for row in sheet.rows)
    note = f'<p class="note">{html.escape(sheet.note)}</p>' if sheet.note else ""
    return (
        f'<h2>{html.escape(sheet.title)}</h2><div class="wide"><table><tr>{head}</tr>\n{rows}\n'
        f"</table></div>{note}"
    )


def _overrides(folder: Path) -> str:
    file = folder / "overrides.yaml"
    words = [line[2:] for line in file.read_text().splitlines()] if file.is_file() else []
    text = " ".join(word for word in words if word) or "with the defaults"
    return f'<p class="note">{html.escape(text)}</p>'


def _picture(path: Path, text: str) -> str:
    return _image(path.read_bytes(), text) if path.is_file() else ""


def _image(data: bytes, text: str) -> str:
    coded = base64.b64encode(data).decode()
    return f'<p><img alt="{html.escape(text)}" src="data:image/png;base64,{coded}"></p>'


def _timeline(folder: Path) -> str:
    prediction = prediction_of(folder)
    if prediction is None:
        return _picture(folder / "timeline.png", "Timeline of one step, predicted")
    data = io.BytesIO()
    prediction.plot(data)  # type: ignore[arg-type]  # whatever matplotlib writes to
    return _image(data.getvalue(), "Timeline of one step, predicted")


def _curves(folder: Path) -> str:
    """What the CSV logger has kept of losses and metrics, over steps."""
    file = folder / "logs" / "metrics.csv"
    if not file.is_file():
        return ""
    curves: dict[str, list[tuple[float, float]]] = {}
    with file.open(newline="") as lines:
        for line in csv.DictReader(lines):
            for name, value in line.items():
                wanted = value and line.get("step") and not any(s in name for s in _SKIPPED)
                if wanted:
                    curves.setdefault(name, []).append((float(line["step"]), float(value)))
    return _image(_plot(curves), "Losses and metrics over steps") if curves else ""


def _plot(curves: dict[str, list[tuple[float, float]]]) -> bytes:
    """Losses on the left, everything else, such as accuracies, on the right."""
    from matplotlib.figure import Figure

    sides = [[n for n in curves if "loss" in n], [n for n in curves if "loss" not in n]]
    sides = [names for names in sides if names]
    figure: Any = Figure(figsize=(10, 3.2), layout="constrained")
    (row,) = figure.subplots(1, len(sides), squeeze=False)
    for axes, names in zip(row, sides, strict=True):
        for name in names:
            points = curves[name]
            marker = "o" if len(points) < 30 else None
            axes.plot(*zip(*points, strict=True), label=name, marker=marker, markersize=3)
        axes.set_xlabel("optimizer step")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=130)
    return data.getvalue()
