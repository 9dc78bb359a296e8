"""Words to a testbed that may be watching: `ready`, then one line per training step."""

from __future__ import annotations

import os

__all__: list[str] = []

VARIABLE = "LIGHTNING_EDGE_STEP_FILE"


def announce(line: str) -> None:
    """Append a line to the file that the environment names, if it names one."""
    path = os.environ.get(VARIABLE)
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{line}\n")
