"""What the capacity benchmark found: one table, JSON and Markdown, and a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.table import machine

HEADER = ("what", "devices", "blocks", "M parameters", "of one device", "target", "peak MiB")
TITLES = {"plain": "Lightning", "ddp": "Lightning DDP", "edge": "edge_collab"}


@dataclass(frozen=True)
class Sized:
    """The largest model of one pool.

    Attributes:
        kind: plain, ddp or edge.
        peak_bytes: The most of its own memory that any device had with it.
    """

    kind: str
    devices: int
    blocks: int
    parameters: int
    width: int
    peak_bytes: int


def cells(sizes: Sequence[Sized], targets: Mapping[int, float]) -> list[list[str]]:
    """Return the table's rows; the first of `sizes` is one device."""
    rows = []
    for size in sizes:
        ratio = size.parameters / sizes[0].parameters
        target = targets.get(size.devices) if size.kind == "edge" else None
        met = "" if target is None else f">= {target} {'yes' if ratio >= target else 'NO'}"
        rows.append(
            [
                TITLES[size.kind],
                str(size.devices),
                str(size.blocks),
                f"{size.parameters / 1e6:.1f}",
                f"{ratio:.2f}",
                met,
                f"{size.peak_bytes / 2**20:.0f}",
            ]
        )
    return rows


def show(sizes: Sequence[Sized], targets: Mapping[int, float]) -> None:
    table = Table(*HEADER, title="largest GPT on devices of 1 GB")
    for row in cells(sizes, targets):
        table.add_row(*row)
    Console(width=120).print(table)


def write(sizes: Sequence[Sized], path: Path, seconds: float) -> None:
    """Write JSON with the machine and the date, and a Markdown table beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [list(HEADER), ["---"] * len(HEADER), *cells(sizes, {})]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    path.with_suffix(".md").write_text(text + "\n")
    content = {
        "machine": machine(),
        "seconds": round(seconds, 1),
        "sizes": [asdict(size) for size in sizes],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def draw(sizes: Sequence[Sized], path: Path) -> None:
    """Draw parameters over devices, with the line of a perfect division."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 4))
    own = [size for size in sizes if size.kind != "ddp"]
    one = sizes[0].parameters / 1e6
    devices = [size.devices for size in own]
    axis.plot(devices, [one * n for n in devices], "--", color="tab:gray", label="perfect")
    axis.plot(devices, [s.parameters / 1e6 for s in own], "o-", color="tab:green", label="measured")
    for size in sizes:
        if size.kind == "ddp":
            axis.plot([size.devices], [size.parameters / 1e6], "x", color="tab:red", label="DDP")
    axis.set_xlabel("devices of 1 GB")
    axis.set_ylabel("million parameters trained with AdamW")
    axis.set_xticks(devices)
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
