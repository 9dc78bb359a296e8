"""Running `lightning-edge` as a user does: as a process, in a directory of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ended:
    """What a command left."""

    status: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The last line on stderr."""
        return self.err.rstrip().rpartition("\n")[2]


def start(*arguments: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Start a command."""
    return subprocess.Popen(
        [sys.executable, "-m", "lightning_edge.app", *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "LIGHTNING_EDGE_CACHE": str(folder / "cache"), **environment},
    )


def finish(process: subprocess.Popen[str], timeout_s: float = 150.0) -> Ended:
    """Wait for a command that was started."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"no end within {timeout_s} s:\n{out}\n{err}") from None
    return Ended(process.returncode, out, err)


def command(*arguments: str, folder: Path, **environment: str) -> Ended:
    """Run a command to its end."""
    return finish(start(*arguments, folder=folder, **environment))
